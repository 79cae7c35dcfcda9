import { readdir, rm, stat } from 'node:fs/promises'
import { getErrno, MirrorError } from '../lib/errors.ts'
import { acquireFileLock, type FileLock, type FileLockOptions, type LockHolder } from '../lib/file-lock.ts'
import { pathExists, readSmallFile, syncFolder, writeFileAtomic } from '../lib/fs.ts'
import type { Logger } from '../lib/logger.ts'
import { describeFileFailure } from '../lib/system-errors.ts'
import { type Clock, continueClock, createWriteBehind, type RunningClock } from '../lib/time.ts'
import type { Digest } from '../oci/reference.ts'
import { FileBlobStore } from './file-blob-store.ts'
import {
  createStoreLayout,
  isPreviousFormat,
  makeStoreFolders,
  movePreviousStore,
  refuseNewerStore,
  type StoreLayout,
} from './layout.ts'

const clockSaveMs = 60_000
const quarantineRetentionMs = 7 * 24 * 3_600_000

export interface StoreOptions {
  /** Names the store's folder; created when it is missing. */
  readonly root: string
  readonly verifyReads: 'auto' | 'always'
  /** Bytes to leave free on the disk. */
  readonly minFree: number
  readonly logger: Logger
  readonly clock: Clock
  /** Is called after a damaged blob was moved to the quarantine. */
  readonly onDamaged?: ((digest: Digest) => void) | undefined
  /** See `FileLockOptions`. */
  readonly instance?: string | undefined
  readonly onLost?: (() => void) | undefined
}

/** Is the part of the metadata that the store itself needs. Whoever opens the store says how they are loaded. */
interface StoreMetadata {
  /** Returns the latest time of a use of content, running time ms. */
  findLatestUse(): number
  close(): Promise<void>
}

type LoadMetadata<Metadata extends StoreMetadata> = (layout: StoreLayout) => Promise<Metadata>

/** Represents an open store, locked by this process: blobs, metadata and the running time. */
export type Store<Metadata extends StoreMetadata> = Awaited<ReturnType<typeof openStore<Metadata>>>

/**
 * Opens the store, or creates an empty one. Damaged content counts as absent. Throws a MirrorError when another process uses the
 * store, a newer version wrote it, or its folder cannot be used.
 */
export async function openStore<Metadata extends StoreMetadata>(
  options: StoreOptions,
  loadMetadata: LoadMetadata<Metadata>,
) {
  return (await claimStore(options)).open(loadMetadata)
}

/** Represents a store that is locked by this process, and not open yet. */
export type ClaimedStore = Awaited<ReturnType<typeof claimStore>>

/** Locks a store, and creates it when it is missing. Throws as `openStore` does. */
export async function claimStore(options: StoreOptions) {
  const layout = createStoreLayout(options.root)
  try {
    await refuseNewerStore(options.root)
    if (await isPreviousFormat(options.root)) {
      const previous = await acquireStoreLock(createStoreLayout(options.root, 1), options)
      await previous.release()
      await movePreviousStore(options.root)
    }
    const isNew = !(await pathExists(layout.blobs))
    await makeStoreFolders(layout)
    const lock = await acquireStoreLock(layout, options)
    return {
      /** Opens the store, once. Throws as `openStore` does; then the lock is released. */
      async open<Metadata extends StoreMetadata>(loadMetadata: LoadMetadata<Metadata>) {
        try {
          return await openLocked(options, layout, lock, isNew, loadMetadata)
        } catch (error) {
          await lock.release()
          throw toUnusableStoreError(error, options.root)
        }
      },
      /** Releases the lock of a store that is not opened. */
      release: () => lock.release(),
    }
  } catch (error) {
    throw toUnusableStoreError(error, options.root)
  }
}

/** Takes the lock of a store: one process at a time may write to it. Throws a MirrorError while another process has it. */
export async function acquireStoreLock(layout: StoreLayout, options: FileLockOptions): Promise<FileLock> {
  const taken = await acquireFileLock(layout.lock, options)
  if ('lock' in taken) return taken.lock
  throw createInUseError(layout, taken.holder)
}

function createInUseError(layout: StoreLayout, { pid, instance }: LockHolder): MirrorError {
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
      `If process ${pid} is not mirror, remove ${layout.lock}`,
    ],
  })
}

async function openLocked<Metadata extends StoreMetadata>(
  { verifyReads, minFree, logger, clock, onDamaged }: StoreOptions,
  layout: StoreLayout,
  lock: FileLock,
  isNew: boolean,
  loadMetadata: LoadMetadata<Metadata>,
) {
  await removeLeftovers(layout, clock.wall())
  const suspect = !isNew && !(await pathExists(layout.cleanMarker))
  if (suspect) {
    const why = (await pathExists(layout.uncheckedMarker))
      ? 'an earlier stop was not clean, and some blobs were not checked since'
      : 'the last stop was not clean'
    logger.info({ path: layout.root }, `${why}; blobs are checked when first read`)
  }
  const metadata = await loadMetadata(layout)
  const runningClock = await openRunningClock(layout.runningClock, metadata.findLatestUse(), clock)
  for (const marker of [layout.cleanMarker, layout.uncheckedMarker]) await rm(marker, { recursive: true, force: true })
  await syncFolder(layout.home)
  const blobs = new FileBlobStore({ layout, verifyReads, suspect, minFree, logger, onDamaged })
  const savingClock = createWriteBehind({
    write: () =>
      writeFileAtomic(layout.runningClock, `${JSON.stringify({ runningMs: Math.round(runningClock.now()) })}\n`),
    logger,
    failure: 'could not save the running time',
    everyMs: clockSaveMs,
  })

  const closeStore = async () => {
    try {
      await blobs.close()
      await metadata.close()
      await savingClock.close()
      // Keep blobs suspect that were not verified since an unclean stop.
      const marker = blobs.isTrusted ? layout.cleanMarker : layout.uncheckedMarker
      await logSystemError(logger, 'could not mark the store as clean', () => writeFileAtomic(marker, ''))
    } finally {
      await lock.release()
    }
  }
  let closed: Promise<void> | undefined
  return {
    layout,
    blobs,
    metadata,
    runningClock,
    /** Writes all changes and releases the lock. All writers must be closed before. */
    close: () => (closed ??= closeStore()),
  }
}

/**
 * Opens a store to read it: takes no lock, changes nothing, and finds an empty store where there is none. A store of release 0.1 is read as
 * it is. Throws a MirrorError when a newer version wrote the store, or its folder cannot be read.
 */
export async function readStore<Metadata extends StoreMetadata>(
  options: Pick<StoreOptions, 'root' | 'logger' | 'clock'>,
  loadMetadata: LoadMetadata<Metadata>,
) {
  const { root, logger, clock } = options
  try {
    await refuseNewerStore(root)
    const layout = createStoreLayout(root, (await isPreviousFormat(root)) ? 1 : undefined)
    const metadata = await loadMetadata(layout)
    const blobs = new FileBlobStore({
      layout,
      verifyReads: 'auto',
      suspect: true,
      minFree: 0,
      logger,
      isReadOnly: true,
    })
    await blobs.ready
    const runningClock = await openRunningClock(layout.runningClock, metadata.findLatestUse(), clock)
    return { layout, blobs, metadata, runningClock, close: () => blobs.close() }
  } catch (error) {
    throw toUnusableStoreError(error, root)
  }
}

/** Runs an action, and logs system errors instead of throwing them. */
async function logSystemError(logger: Logger, message: string, action: () => Promise<void>): Promise<void> {
  try {
    await action()
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    logger.error({ error: String(error) }, message)
  }
}

function toUnusableStoreError(error: unknown, root: string): unknown {
  const code = getErrno(error)
  if (error instanceof MirrorError || code === undefined) return error
  const failure = describeFileFailure(error, (error as NodeJS.ErrnoException).path ?? root)
  const why = code === 'ENOENT' ? 'the folder cannot be created' : (failure?.why ?? 'the system refuses it')
  return new MirrorError(`Cannot use the folder ${root} for the store: ${why} (${code}).`, {
    hints: [...(failure?.next ?? []), 'Use another folder: mirror up --data DIR, or MIRROR_HOME=DIR mirror up'],
    cause: error,
  })
}

/** Removes temp files of dead processes, and expired files of the quarantine. The caller must hold the store's lock. */
async function removeLeftovers(layout: StoreLayout, wallNow: number): Promise<void> {
  await removeEntries(layout, layout.temporary, () => true)
  // Remove the hidden temp files of atomic writes.
  await removeEntries(layout, layout.home, (name) => name.startsWith('.'))
  await removeExpiredQuarantine(layout, wallNow)
}

async function removeEntries(layout: StoreLayout, folder: string, isLeft: (name: string) => boolean): Promise<void> {
  for (const name of await readdir(folder))
    if (isLeft(name)) await rm(layout.entry(folder, name), { recursive: true, force: true })
}

/** Continues from the saved time, or from `floor`, the latest time in the records, when that is later. */
async function openRunningClock(path: string, floor: number, clock: Clock): Promise<RunningClock> {
  return continueClock(clock, Math.max(await readSavedTime(path), floor))
}

/** Reads the saved time, ms; 0 when it is missing or damaged. */
async function readSavedTime(path: string): Promise<number> {
  try {
    const { runningMs } = Object(JSON.parse(await readSmallFile(path))) as { runningMs?: unknown }
    return Number.isSafeInteger(runningMs) && (runningMs as number) >= 0 ? (runningMs as number) : 0
  } catch (error) {
    if (error instanceof SyntaxError || getErrno(error) !== undefined) return 0
    throw error
  }
}

/** Removes files that are in the quarantine for more than a week. The caller must hold the store's lock. */
export async function removeExpiredQuarantine(layout: StoreLayout, wallNow: number): Promise<void> {
  for (const { path, movedAt } of await listQuarantined(layout))
    if (wallNow - movedAt > quarantineRetentionMs) await rm(path, { recursive: true, force: true })
}

/**
 * Removes quarantined files, the oldest first, until `bytes` are freed. Returns the freed bytes, with `dryRun` those that would be
 * freed. Logs system errors and stops at the first one. The caller must hold the store's lock.
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
    if (getErrno(error) === undefined) throw error
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

/** Lists the files of the quarantine that may be removed, the oldest first. */
async function listQuarantined(layout: StoreLayout): Promise<Quarantined[]> {
  const found: Quarantined[] = []
  for (const name of await readdir(layout.quarantine)) {
    if (layout.originOf(name) !== undefined) continue
    const path = layout.entry(layout.quarantine, name)
    try {
      const { size, mtimeMs } = await stat(path)
      found.push({ path, size, movedAt: mtimeMs })
    } catch (error) {
      // ENOENT: another task (eviction or scrub) may remove the file at the same time.
      if (getErrno(error) !== 'ENOENT') throw error
    }
  }
  return found.toSorted((a, b) => a.movedAt - b.movedAt)
}
