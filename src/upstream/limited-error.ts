import type { Clock } from '../lib/time.ts'
import type { Answer } from './transport.ts'
import { readText, reasonIn, withReason } from './failures.ts'
import { readLimit, type Limit } from './rate-limit.ts'
import { TransientError } from './transient-error.ts'
import { UpstreamError } from './upstream.ts'

/** A 429 that has to be remembered. */
export class LimitedError extends UpstreamError {
  readonly limit: Limit

  constructor(where: string, limit: Limit) {
    const retryAfterSeconds = Math.max(1, Math.ceil(limit.retryAfterMs / 1000))
    const message = `${where} wants no more requests from here for ${retryAfterSeconds} s`
    super('limited', 429, withReason(message, limit.reason), { retryAfterSeconds })
    this.limit = limit
  }
}

/** The failure that a 429 answer is. A limit of less than a second, ghcr.io's habit, is worth waiting for. */
export async function limitFailure(
  where: string,
  answer: Answer,
  clock: Clock,
  read: (text: string) => string | undefined = reasonIn,
): Promise<UpstreamError> {
  const text = await readText(answer)
  const limit = { ...readLimit(answer.header, text, clock.wall()), reason: read(text) }
  if (limit.retryAfterMs >= 1000) return new LimitedError(where, limit)
  return new TransientError('limited', 429, `${where} wants fewer requests at once.`, { pauseMs: limit.retryAfterMs })
}
