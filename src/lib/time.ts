import { describeFailure } from './errors.ts'
import type { Logger } from './logger.ts'

/** Provides the time. `wall` may jump and is only displayed or stored; `monotonic` never jumps and measures ages and time-outs. */
export interface Clock {
  /** Returns the milliseconds since the Unix epoch. */
  wall(): number
  /** Returns the milliseconds since a fixed point in the life of this process. */
  monotonic(): number
  /** Resolves after `ms`; rejects with the signal's reason when it aborts first. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>
}

/** Reads the machine's clock. */
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

/** Measures the time that the mirror has run, so that downtime or a jump of the wall clock does not age content. */
export interface RunningClock {
  /** Returns the running time across restarts, ms. */
  now: () => number
}

/** Continues a running time from `begin`, ms. */
export function continueClock(clock: Pick<Clock, 'monotonic'>, begin: number): RunningClock {
  const started = clock.monotonic()
  return { now: () => begin + Math.max(0, clock.monotonic() - started) }
}

/** Receives the error that a timer's task throws. */
export type OnFailure = (error: unknown) => void

/**
 * Runs a task every `ms` milliseconds. Passes errors of the task to `onFailure` and continues, so that no error becomes an unhandled
 * rejection. Skips a round while the task still runs. The timer does not keep the process alive. Returns the function that stops it.
 */
export function runEvery(ms: number, task: () => unknown, onFailure: OnFailure): () => void {
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

/** Runs a task once after `ms` milliseconds, under the same rules as `runEvery`. Returns the function that cancels it. */
export function runLater(ms: number, task: () => unknown, onFailure: OnFailure): () => void {
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

/** Creates a handler that logs the error of a timer's task with a message such as `could not check the memory`. */
export function logFailure(logger: Logger, message: string): OnFailure {
  return (error) => logger.error({ error: describeFailure(error) }, message)
}

interface WriteBehindOptions {
  /**
   * Writes the current state in memory to disk, if the disk differs. Is called repeatedly, one call at a time.
   */
  readonly write: () => Promise<void>
  readonly logger: Logger
  /** Holds the log message for a failed write: `could not save the statistics`. The next attempt follows within `everyMs`. */
  readonly failure: string
  /** Sets the interval of writes without an `update`, ms. */
  readonly everyMs: number
}

/**
 * Creates a writer that keeps a state on disk equal to the state in memory. Each write compares the two instead of counting changes. So a
 * change also reaches the disk when no `update` announced it, when it came during a write, or when its write failed, and an older write
 * never replaces a newer one.
 */
export function createWriteBehind({ write, logger, failure, everyMs }: WriteBehindOptions) {
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
  const stopTimer = runEvery(everyMs, update, logFailure(logger, failure))

  return {
    /** Starts a write after a change in memory. Returns at once; a call during a write leads to another write. */
    update,
    /** Writes a last time, after the running write. */
    async close(): Promise<void> {
      update()
      isClosed = true
      stopTimer()
      await running
    },
    /** Stops without a last write; resolves when the running write has ended. */
    async stop(): Promise<void> {
      isClosed = true
      isDue = false
      stopTimer()
      await running
    },
  }
}
