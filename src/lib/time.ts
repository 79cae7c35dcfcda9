import { describeFailure } from './errors.ts'
import type { Logger } from './logger.ts'

/** Time as a port: `wall` may jump (it is only ever shown or written down), `monotonic` never does (every age and time-out). */
export interface Clock {
  /** Milliseconds since the Unix epoch. */
  wall(): number
  /** Milliseconds since some fixed point of this process. */
  monotonic(): number
  /** Resolves after `ms`; rejects with the signal's reason when it aborts first. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>
}

/** The machine's own clock. */
export const systemClock: Clock = {
  wall: () => Date.now(),
  monotonic: () => performance.now(),
  sleep: (ms, signal) =>
    new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason)
      const onAbort = () => {
        clearTimeout(timer)
        reject(signal?.reason)
      }
      const timer = setTimeout(() => {
        signal?.removeEventListener('abort', onAbort)
        resolve()
      }, ms)
      signal?.addEventListener('abort', onAbort, { once: true })
    }),
}

/** Takes what a task of a timer throws. */
export type OnFailure = (error: unknown) => void

/**
 * Runs a task every `ms` milliseconds. A task that throws or rejects goes to `onFailure` and the timer runs on: no failure of
 * a timer becomes an unhandled rejection. A round that is due while the task still runs is left out. The timer does not keep
 * the process alive. Returns how to stop it.
 */
export function every(ms: number, task: () => unknown, onFailure: OnFailure): () => void {
  let isRunning = false
  const round = async () => {
    if (isRunning) return
    isRunning = true
    try {
      await task()
    } catch (error) {
      onFailure(error)
    } finally {
      isRunning = false
    }
  }
  const timer = setInterval(() => void round(), ms).unref()
  return () => clearInterval(timer)
}

/** Runs a task once after `ms` milliseconds, under the same rules. Returns how to cancel it. */
export function later(ms: number, task: () => unknown, onFailure: OnFailure): () => void {
  const run = async () => {
    try {
      await task()
    } catch (error) {
      onFailure(error)
    }
  }
  const timer = setTimeout(() => void run(), ms).unref()
  return () => clearTimeout(timer)
}

/** Logs what a task of a timer throws: `could not look at the memory`. */
export function logFailure(logger: Logger, message: string): OnFailure {
  return (error) => logger.error({ error: describeFailure(error) }, message)
}

interface WriteBehindOptions {
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

interface WriteBehind {
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
