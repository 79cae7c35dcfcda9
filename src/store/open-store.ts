import { rm } from 'node:fs/promises'
import { errnoOf, MirrorError } from '../lib/errors.ts'
import { isThere, syncFolder, writeFileAtomic } from '../lib/fs.ts'
import type { Logger } from '../lib/logger.ts'
import { describeFileFailure } from '../lib/system-errors.ts'
import { type Clock, createWriteBehind } from '../lib/time.ts'
import { FileBlobStore } from './file-blob-store.ts'
import { FileRefStore } from './record-files.ts'
import { makeStoreFolders, refuseNewerStore, storeLayout, type StoreLayout } from './layout.ts'
import { removeLeftovers } from './leftovers.ts'
import type { RepositoryRecord } from './records.ts'
import { openRunningClock, type RunningClock } from './running-clock.ts'
import { acquireStoreLock, type StoreLock } from './lock.ts'

export interface StoreOptions {
  /** The store's folder; made when it is not there. */
  readonly root: string
  readonly verifyReads: 'auto' | 'always'
  /** Bytes to leave free on the disk. */
  readonly minFree: number
  readonly logger: Logger
  readonly clock: Clock
  /** See `StoreLockOptions`. */
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
    throw asUnusable(error, options.root)
  }
}

async function openLocked(
  { verifyReads, minFree, logger, clock }: StoreOptions,
  layout: StoreLayout,
  lock: StoreLock,
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
  const runningClock = await openRunningClock(layout.runningClock, latestUse(refs.all()), clock)
  for (const marker of [layout.cleanMarker, layout.uncheckedMarker]) await rm(marker, { recursive: true, force: true })
  await syncFolder(layout.home)
  const blobs = new FileBlobStore({ layout, verifyReads, suspect, minFree, logger })
  const savingClock = createWriteBehind({
    write: () => runningClock.save(),
    logger,
    failure: 'could not save the running time',
    everyMs: clockSaveMs,
  })

  const shut = async () => {
    try {
      await blobs.close()
      await refs.close()
      await savingClock.close()
      // Blobs that nobody has checked since an unclean stop stay suspect.
      const marker = blobs.isTrusted ? layout.cleanMarker : layout.uncheckedMarker
      await attempt(logger, 'could not mark the store as clean', () => writeFileAtomic(marker, ''))
    } finally {
      await lock.release()
    }
  }
  let closed: Promise<void> | undefined
  return { layout, blobs, refs, runningClock, close: () => (closed ??= shut()) }
}

function latestUse(records: Iterable<RepositoryRecord>): number {
  let latest = 0
  for (const record of records) {
    for (const { usedAt } of record.manifests.values()) latest = Math.max(latest, usedAt)
    for (const { usedAt } of record.blobs.values()) latest = Math.max(latest, usedAt)
    for (const { usedAt } of record.referrers.values()) latest = Math.max(latest, usedAt)
  }
  return latest
}

/** What the disk refuses is said, and costs no more than the thing itself. */
async function attempt(logger: Logger, message: string, action: () => Promise<void>): Promise<void> {
  try {
    await action()
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    logger.error({ error: String(error) }, message)
  }
}

function asUnusable(error: unknown, root: string): unknown {
  const code = errnoOf(error)
  if (error instanceof MirrorError || code === undefined) return error
  const failure = describeFileFailure(error, (error as NodeJS.ErrnoException).path ?? root)
  const why = code === 'ENOENT' ? 'no folder can be made there' : (failure?.why ?? 'the system refuses it')
  return new MirrorError(`Cannot use the folder ${root} for the store: ${why} (${code}).`, {
    hints: [...(failure?.next ?? []), 'Use another folder: mirror up --data DIR, or MIRROR_HOME=DIR mirror up'],
    cause: error,
  })
}
