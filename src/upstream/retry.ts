import type { Clock } from '../lib/time.ts'
import { TransientError } from './transient-error.ts'

const pausesMs = [150, 450]
const budgetMs = 10_000

/**
 * Runs a GET or HEAD up to three times, as long as it fails with a TransientError and no try would begin later than 10 s after
 * the first. The pauses are spread by half to both sides, so that clients that failed together do not return together.
 */
export async function withRetries<T>(
  attempt: () => Promise<T>,
  { clock, random, signal }: { clock: Clock; random: () => number; signal?: AbortSignal | undefined },
): Promise<T> {
  const start = clock.monotonic()
  for (const pause of pausesMs) {
    try {
      return await attempt()
    } catch (error) {
      if (!(error instanceof TransientError)) throw error
      const wait = error.pauseMs === undefined ? pause * (0.5 + random()) : error.pauseMs * (1 + random())
      if (clock.monotonic() + wait - start >= budgetMs) throw error
      await clock.sleep(wait, signal)
    }
  }
  return attempt()
}
