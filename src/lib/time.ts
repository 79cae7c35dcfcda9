import { describeFailure } from './errors.ts'
import { every, logFailure } from './every.ts'
import type { Logger } from './logger.ts'

export interface WriteBehindOptions {
  /**
   * Makes the disk say what memory says at that moment. Called again and again, one call at a time; a call that finds nothing to
   * write returns at once.
   */
  readonly write: () => Promise<void>
  readonly logger: Logger
  /** What the log says when the disk refuses a write: `could not save the statistics`. The next try comes within `everyMs`. */
  readonly failure: string
  /** How often the disk is compared with memory without being asked, ms. */
  readonly everyMs: number
}

export interface WriteBehind {
  /** Memory has changed. Returns at once; a change during a write leads to another write. */
  update(): void
  /** Writes once more, after the write that is running, and then no more. */
  close(): Promise<void>
  /** Writes no more; resolves when the write that is running has ended. */
  stop(): Promise<void>
}

/**
 * Keeps something on disk equal to something in memory. It compares the two instead of counting changes: a change that nobody
 * announced, that came during a write, or whose write failed reaches the disk as well, and an older write never lands on a newer.
 */
export function createWriteBehind({ write, logger, failure, everyMs }: WriteBehindOptions): WriteBehind {
  let isDue = false
  let isClosed = false
  let running: Promise<void> | undefined

  const run = async () => {
    while (isDue) {
      isDue = false
      try {
        await write()
      } catch (error) {
        logger.error({ error: describeFailure(error) }, failure)
      }
    }
  }
  const update = () => {
    if (isClosed) return
    isDue = true
    running ??= run().finally(() => (running = undefined))
  }
  const stopTimer = every(everyMs, update, logFailure(logger, failure))

  return {
    update,
    async close() {
      update()
      isClosed = true
      stopTimer()
      await running
    },
    async stop() {
      isClosed = true
      isDue = false
      stopTimer()
      await running
    },
  }
}
