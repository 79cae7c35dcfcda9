import type { Logger } from '../lib/logger.ts'
import { type Clock, later, logFailure } from '../lib/time.ts'
import type { Store } from './open-store.ts'
import { removeOldQuarantine } from './quarantine.ts'
import { verifyStore } from './verify.ts'

export interface ScrubOptions {
  readonly store: Pick<Store, 'blobs' | 'layout'>
  readonly clock: Clock
  readonly logger: Logger
  /** From the start to the first round, ms. */
  readonly firstAfter?: number
  /** From the end of a round to the next, ms. */
  readonly every?: number
  readonly bytesPerSecond?: number
}

/** Looks for bit rot in the background, so slowly that nobody notices. */
export interface Scrub {
  close(): Promise<void>
}

const hour = 3_600_000

export function createScrub(options: ScrubOptions): Scrub {
  const { store, clock, logger, firstAfter = hour, every = 24 * hour, bytesPerSecond = 8 * 1024 * 1024 } = options
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
        if (checked === total) logger.info({ checked, damaged: damaged.length }, 'checked the stored blobs')
      await removeOldQuarantine(store.layout, clock.wall())
    } catch (error) {
      if (!signal.aborted) onFailure(error)
    }
    if (!signal.aborted) stopWaiting = wait(every)
  }
  const onFailure = logFailure(logger, 'could not check the stored blobs')
  const wait = (ms: number) => later(ms, () => (round = scrub()), onFailure)
  let stopWaiting = wait(firstAfter)

  return {
    async close() {
      closing.abort()
      stopWaiting()
      await round
    },
  }
}
