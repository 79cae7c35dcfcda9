import { readdir, rm, stat } from 'node:fs/promises'
import { errnoOf, MirrorError } from '../lib/errors.ts'
import { acquireFileLock, type FileLock, type FileLockOptions, type LockHolder } from '../lib/file-lock.ts'
import { isThere, readSmallFile, syncFolder, writeFileAtomic } from '../lib/fs.ts'
import type { Logger } from '../lib/logger.ts'
import { describeFileFailure } from '../lib/system-errors.ts'
import { type Clock, createWriteBehind } from '../lib/time.ts'
import { FileBlobStore } from './file-blob-store.ts'
import { makeStoreFolders, refuseNewerStore, storeLayout, type StoreLayout } from './layout.ts'
import { FileRefStore } from './record-files.ts'
import type { RepositoryRecord } from './records.ts'

export interface StoreOptions {
  /** The store's folder; made when it is not there. */
  readonly root: string
  readonly verifyReads: 'auto' | 'always'
  /** Bytes to leave free on the disk. */
  readonly minFree: number
  readonly logger: Logger
  readonly clock: Clock
  /** See `FileLockOptions`. */
  readonly instance?: string | undefined
  readonly onLost?: (() => void) | undefined
}

/** A store that this process has to itself: blobs, what upstreams said of them, and the time it has run. */
export interface Store {
  readonly layout: StoreLayout
  readonly blobs: FileBlobStore
  readonly refs: FileRefStore
  readonly runningClock: RunningClock
  /** Writes everything down and lets the next process in. Writers are to be closed before. */
  close(): Promise<void>
}

const clockSaveMs = 60_000

/**
 * Opens the store, or makes an empty one. Whatever is damaged in it counts as absent. Throws `MirrorError` when another
 * process has it, a newer version wrote it, or its folder cannot be used.
 */
export async function openStore(options: StoreOptions): Promise<Store> {
  const layout = storeLayout(options.root)
  try {
    await refuseNewerStore(options.root)
    const isNew = !(await isThere(layout.blobs))
    await makeStoreFolders(layout)
    const lock = await acquireStoreLock(layout, options)
    try {
      return await openLocked(options, layout, lock, isNew)
    } catch (error) {
      await lock.release()
      throw error
    }
  } catch (error) {
    throw toUnusableStoreError(error, options.root)
  }
}

/** Takes the lock of a store: one process at a time may write to it. Throws a MirrorError while another process has it. */
export async function acquireStoreLock(layout: StoreLayout, options: FileLockOptions): Promise<FileLock> {
  const taken = await acquireFileLock(layout.lock, options)
  if ('lock' in taken) return taken.lock
  throw inUseError(layout, taken.holder)
}

function inUseError(layout: StoreLayout, { pid, instance }: LockHolder): MirrorError {
  const hints = ['See what runs: mirror status', 'Stop it: mirror down']
  if (instance !== undefined)
    return new MirrorError(
      `The store at ${layout.root} is in use by a mirror in a container; only one can write to it.`,
      { hints },
    )
  const who = pid === process.pid ? `this process (${pid})` : `process ${pid}`
  return new MirrorError(`The store at ${layout.root} is in use by ${who}; only one process can write to it.`, {
    hints: [
      ...hints,
      'Use another store: mirror up --data DIR, or MIRROR_HOME=DIR mirror up',
      `If process ${pid} is no mirror, remove ${layout.lock}`,
    ],
  })
}

async function openLocked(
  { verifyReads, minFree, logger, clock }: StoreOptions,
  layout: StoreLayout,
  lock: FileLock,
  isNew: boolean,
): Promise<Store> {
  await removeLeftovers(layout, clock.wall())
  const suspect = !isNew && !(await isThere(layout.cleanMarker))
  if (suspect) {
    const why = (await isThere(layout.uncheckedMarker))
      ? 'an earlier stop was not clean, and some blobs were not checked since'
      : 'the last stop was not clean'
    logger.info({ path: layout.root }, `${why}; blobs are checked when first read`)
  }
  const refs = await FileRefStore.open({ layout, logger })
  const runningClock = await openRunningClock(layout.runningClock, findLatestUse(refs.all()), clock)
  for (const marker of [layout.cleanMarker, layout.uncheckedMarker]) await rm(marker, { recursive: true, force: true })
  await syncFolder(layout.home)
  const blobs = new FileBlobStore({ layout, verifyReads, suspect, minFree, logger })
  const savingClock = createWriteBehind({
    write: () => runningClock.save(),
    logger,
    failure: 'could not save the running time',
    everyMs: clockSaveMs,
  })

  const closeStore = async () => {
    try {
      await blobs.close()
      await refs.close()
      await savingClock.close()
      // Blobs that nobody has checked since an unclean stop stay suspect.
      const marker = blobs.isTrusted ? layout.cleanMarker : layout.uncheckedMarker
      await logSystemError(logger, 'could not mark the store as clean', () => writeFileAtomic(marker, ''))
    } finally {
      await lock.release()
    }
  }
  let closed: Promise<void> | undefined
  return { layout, blobs, refs, runningClock, close: () => (closed ??= closeStore()) }
}

function findLatestUse(records: Iterable<RepositoryRecord>): number {
  let latest = 0
  for (const record of records) {
    for (const { usedAt } of record.manifests.values()) latest = Math.max(latest, usedAt)
    for (const { usedAt } of record.blobs.values()) latest = Math.max(latest, usedAt)
    for (const { usedAt } of record.referrers.values()) latest = Math.max(latest, usedAt)
  }
  return latest
}

/** What the disk refuses is said, and costs no more than the thing itself. */
async function logSystemError(logger: Logger, message: string, action: () => Promise<void>): Promise<void> {
  try {
    await action()
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    logger.error({ error: String(error) }, message)
  }
}

function toUnusableStoreError(error: unknown, root: string): unknown {
  const code = errnoOf(error)
  if (error instanceof MirrorError || code === undefined) return error
  const failure = describeFileFailure(error, (error as NodeJS.ErrnoException).path ?? root)
  const why = code === 'ENOENT' ? 'no folder can be made there' : (failure?.why ?? 'the system refuses it')
  return new MirrorError(`Cannot use the folder ${root} for the store: ${why} (${code}).`, {
    hints: [...(failure?.next ?? []), 'Use another folder: mirror up --data DIR, or MIRROR_HOME=DIR mirror up'],
    cause: error,
  })
}

/** Clears away what dead processes left half done, and old damaged blobs. Needs the store's lock. */
async function removeLeftovers(layout: StoreLayout, wallNow: number): Promise<void> {
  await removeEntries(layout, layout.temporary, () => true)
  // Atomic writes go through a hidden file beside their target.
  await removeEntries(layout, layout.home, (name) => name.startsWith('.'))
  await removeEntries(layout, layout.repositories, (name) => name.startsWith('.'))
  await removeExpiredQuarantine(layout, wallNow)
}

async function removeEntries(layout: StoreLayout, folder: string, isLeft: (name: string) => boolean): Promise<void> {
  for (const name of await readdir(folder))
    if (isLeft(name)) await rm(layout.entry(folder, name), { recursive: true, force: true })
}

/** Time that counts only while the mirror runs, so that a holiday or a jump of the wall clock makes nothing old. */
interface RunningClock {
  /** Milliseconds, across restarts. */
  now(): number
  /** Writes it down for the next start. */
  save(): Promise<void>
}

/** Goes on from what was saved, and never from before `floor`: the latest time that something is known to carry. */
async function openRunningClock(path: string, floor: number, clock: Clock): Promise<RunningClock> {
  const begin = Math.max(await readSavedTime(path), floor)
  const started = clock.monotonic()
  const now = () => begin + Math.max(0, clock.monotonic() - started)
  return {
    now,
    save: () => writeFileAtomic(path, `${JSON.stringify({ runningMs: Math.round(now()) })}\n`),
  }
}

/** 0 when there is none or it is damaged. */
async function readSavedTime(path: string): Promise<number> {
  try {
    const { runningMs } = Object(JSON.parse(await readSmallFile(path))) as { runningMs?: unknown }
    return Number.isSafeInteger(runningMs) && (runningMs as number) >= 0 ? (runningMs as number) : 0
  } catch (error) {
    if (error instanceof SyntaxError || errnoOf(error) !== undefined) return 0
    throw error
  }
}

const quarantineRetentionMs = 7 * 24 * 3_600_000

/** Damaged blobs are kept for a week, for who wants to know what happened to them. Needs the store's lock. */
export async function removeExpiredQuarantine(layout: StoreLayout, wallNow: number): Promise<void> {
  for (const { path, movedAt } of await listQuarantined(layout))
    if (wallNow - movedAt > quarantineRetentionMs) await rm(path, { recursive: true, force: true })
}

/**
 * Drops damaged blobs, the oldest first, until that many bytes are free. The bytes that went, or with `dryRun` would go; what
 * the disk refuses is said and left. Needs the store's lock.
 */
export async function dropQuarantined(
  layout: StoreLayout,
  { bytes, dryRun, logger }: { bytes: number; dryRun: boolean; logger: Logger },
): Promise<number> {
  let freed = 0
  try {
    for (const { path, size } of await listQuarantined(layout)) {
      if (freed >= bytes) break
      if (!dryRun) await rm(path, { recursive: true, force: true })
      freed += size
    }
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    logger.error({ error: String(error) }, 'could not drop damaged blobs to make room')
  }
  if (freed > 0 && !dryRun) logger.info({ bytes: freed }, 'dropped damaged blobs to make room')
  return freed
}

interface Quarantined {
  readonly path: string
  /** Bytes. */
  readonly size: number
  /** Wall clock ms. */
  readonly movedAt: number
}

/** Those that may go, the oldest first. */
async function listQuarantined(layout: StoreLayout): Promise<Quarantined[]> {
  const found: Quarantined[] = []
  for (const name of await readdir(layout.quarantine)) {
    if (layout.originOf(name) !== undefined) continue
    const path = layout.entry(layout.quarantine, name)
    try {
      const { size, mtimeMs } = await stat(path)
      found.push({ path, size, movedAt: mtimeMs })
    } catch (error) {
      // The sweeper and the scrub may clear away at the same time.
      if (errnoOf(error) !== 'ENOENT') throw error
    }
  }
  return found.toSorted((a, b) => a.movedAt - b.movedAt)
}
