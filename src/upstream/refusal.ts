import type { Clock } from '../lib/clock.ts'
import type { Answer } from './exchange.ts'
import { limitFailure } from './limited-error.ts'
import { TransientError } from './transient-error.ts'
import { UpstreamError } from './upstream.ts'

/**
 * The failure that an answer other than the wanted one is. Lets go of its body. `meansAbsent`: statuses of the registry's own
 * that say of what was asked for that it is not there, besides 404 and 410.
 */
export async function refusal(
  host: string,
  answer: Answer,
  clock: Clock,
  meansAbsent: readonly number[] = [],
): Promise<UpstreamError> {
  const { status, foreign } = answer
  if (status === 429 && !foreign) return limitFailure(host, answer, clock)
  answer.discard()
  if (status === 404 || status === 410 || (!foreign && meansAbsent.includes(status))) {
    return new UpstreamError('absent', 404, `${host} does not have it.`)
  }
  // What storage behind the registry says is not the registry's word; an expired link is one reason, and a new one may heal it.
  if (foreign) return new TransientError('unavailable', 502, `The storage that ${host} sent us to answered ${status}.`)
  if (status === 401 || status === 403 || status === 451) {
    return new UpstreamError('denied', status === 401 ? 401 : 403, `${host} does not give it to us (${status}).`)
  }
  const message = `${host} answered ${status}.`
  if (status === 408) return new TransientError('unavailable', 502, message)
  // 501 and 505 are said by a server that is well.
  if (status >= 500 && status !== 501 && status !== 505) {
    return new TransientError('unavailable', 502, message, { breaksCircuit: true })
  }
  return new UpstreamError('invalid', 502, message)
}
