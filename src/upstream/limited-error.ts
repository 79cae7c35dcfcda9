import type { Clock } from '../lib/clock.ts'
import type { Answer } from './exchange.ts'
import { readLimit, type Limit } from './rate-limit.ts'
import { TransientError } from './transient-error.ts'
import { UpstreamError } from './upstream.ts'

/** A 429 that has to be remembered. */
export class LimitedError extends UpstreamError {
  readonly limit: Limit

  constructor(where: string, limit: Limit) {
    const retryAfterSeconds = Math.max(1, Math.ceil(limit.retryAfterMs / 1000))
    super('limited', 429, `${where} wants no more requests from here for ${retryAfterSeconds} s.`, {
      retryAfterSeconds,
    })
    this.limit = limit
  }
}

const textBytes = 4096

/** The failure that a 429 answer is. A limit of less than a second, ghcr.io's habit, is worth waiting for. */
export async function limitFailure(where: string, answer: Answer, clock: Clock): Promise<UpstreamError> {
  const limit = readLimit(answer.header, await readStart(answer), clock.wall())
  if (limit.retryAfterMs >= 1000) return new LimitedError(where, limit)
  return new TransientError('limited', 429, `${where} wants fewer requests at once.`, { pauseMs: limit.retryAfterMs })
}

async function readStart(answer: Answer): Promise<string> {
  const chunks: Uint8Array[] = []
  let length = 0
  try {
    for await (const chunk of answer.body) {
      chunks.push(chunk)
      length += chunk.length
      if (length >= textBytes) break
    }
  } catch (error) {
    // The status alone says enough.
    if (!(error instanceof UpstreamError)) throw error
  }
  return Buffer.concat(chunks).toString('utf8')
}
