import { describeFailure } from './errors.ts'
import type { Logger } from './logger.ts'

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
