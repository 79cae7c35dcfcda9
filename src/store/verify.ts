import type { Logger } from '../lib/logger.ts'
import { type Clock, runLater, logFailure, systemClock } from '../lib/time.ts'
import type { Digest } from '../oci/reference.ts'
import type { FileBlobStore } from './file-blob-store.ts'
import type { StoreLayout } from './layout.ts'
import { removeExpiredQuarantine } from './open-store.ts'

const hour = 3_600_000
const reportEveryMs = 100

export interface VerifyOptions {
  /** Is true to quarantine damaged blobs, so that they are fetched again, instead of only reporting them. */
  readonly quarantine: boolean
  /** Cancels the verification, which then throws the signal's reason. */
  readonly signal: AbortSignal
  /** Sets the speed limit; unlimited when undefined. */
  readonly bytesPerSecond?: number
  readonly clock?: Clock
}

export interface VerifyState {
  /** Counts the checked blobs. */
  readonly checked: number
  readonly total: number
  readonly checkedBytes: number
  readonly totalBytes: number
  readonly damaged: readonly Digest[]
}

/** Verifies all blobs. Yields its progress ten times a second and at the end. */
export async function* verifyStore(
  { blobs }: { readonly blobs: FileBlobStore },
  { quarantine, signal, bytesPerSecond = Infinity, clock = systemClock }: VerifyOptions,
): AsyncGenerator<VerifyState, void> {
  await blobs.ready
  const digests = [...blobs.sizes.keys()]
  const started = clock.monotonic()
  const totalBytes = blobs.usage.bytes
  const damaged: Digest[] = []
  let checked = 0
  let checkedBytes = 0
  let reported = started
  const state = () => ({ checked, total: digests.length, checkedBytes, totalBytes, damaged: [...damaged] })

  for (const digest of digests) {
    const check = blobs.check(digest, quarantine)
    try {
      for (;;) {
        signal.throwIfAborted()
        const { done, value } = await check.next()
        if (done) {
          if (value === 'damaged') damaged.push(digest)
          break
        }
        checkedBytes += value
        const ahead = started + (checkedBytes / bytesPerSecond) * 1000 - clock.monotonic()
        if (ahead > 0) await clock.sleep(ahead, signal)
        if (clock.monotonic() - reported < reportEveryMs) continue
        reported = clock.monotonic()
        yield state()
      }
    } finally {
      await check.return('absent')
    }
    checked += 1
  }
  yield state()
}

interface ScrubOptions {
  readonly store: { readonly blobs: FileBlobStore; readonly layout: StoreLayout }
  readonly clock: Clock
  readonly logger: Logger
  /** Sets the delay before the first round, ms. */
  readonly firstAfterMs?: number
  /** Sets the pause between two rounds, ms. */
  readonly intervalMs?: number
  readonly bytesPerSecond?: number
}

/** Starts a background task that finds bit rot: it verifies all blobs at 8 MiB/s, and again 24 hours later, by default. */
export function createScrub(options: ScrubOptions) {
  const {
    store,
    clock,
    logger,
    firstAfterMs = hour,
    intervalMs = 24 * hour,
    bytesPerSecond = 8 * 1024 * 1024,
  } = options
  const closing = new AbortController()
  const { signal } = closing
  let round: Promise<void> = Promise.resolve()

  const scrub = async () => {
    try {
      for await (const { checked, total, damaged } of verifyStore(store, {
        quarantine: true,
        signal,
        bytesPerSecond,
        clock,
      }))
        if (checked === total) logger.info({ checked, damaged: damaged.length }, 'verified the stored blobs')
      await removeExpiredQuarantine(store.layout, clock.wall())
    } catch (error) {
      if (!signal.aborted) onFailure(error)
    }
    if (!signal.aborted) stopWaiting = wait(intervalMs)
  }
  const onFailure = logFailure(logger, 'could not verify the stored blobs')
  const wait = (ms: number) => runLater(ms, () => (round = scrub()), onFailure)
  let stopWaiting = wait(firstAfterMs)

  return {
    /** Ends the task; resolves when it no longer reads the store. */
    async close(): Promise<void> {
      closing.abort()
      stopWaiting()
      await round
    },
  }
}
