import type { Clock } from '../lib/time.ts'
import { readReason, reasonIn, withReason } from './failures.ts'
import type { Answer } from './transport.ts'
import { limitFailure } from './limited-error.ts'
import { TransientError } from './transient-error.ts'
import { UpstreamError } from './upstream.ts'

/**
 * What a registry's 4xx answer says about the content that was asked for. A status that is not listed here is about the request
 * (400, 405, 406, 409, 411, 413 to 417, 421, 422, 424, 426, 428, 431 …): the registry did not understand it, and said nothing
 * about the content, so a cached tag stays.
 */
const meanings: ReadonlyMap<number, 'absent' | 'denied' | 'later' | 'proxy'> = new Map([
  [401, 'denied'],
  /** A subscription has ended. */
  [402, 'denied'],
  [403, 'denied'],
  [404, 'absent'],
  /** The network's proxy says this, not the registry. */
  [407, 'proxy'],
  [408, 'later'],
  [410, 'absent'],
  /** Harbor says this of images that a policy blocks. */
  [412, 'denied'],
  [423, 'denied'],
  [425, 'later'],
  [451, 'denied'],
])

/** Whether a status of the registry's own refuses the content to whoever asked. */
export function isDenial(status: number): boolean {
  return meanings.get(status) === 'denied'
}

export interface RefusalOptions {
  /** Statuses of the registry's own that mean the same as a 404 here. */
  readonly meansAbsent?: readonly number[] | undefined
  /** What was sent to the upstream and must not be shown. */
  readonly secrets?: readonly string[] | undefined
}

/** The failure that an answer other than the wanted one is, with the registry's own reason. Lets go of its body. */
export async function refusal(
  host: string,
  answer: Answer,
  clock: Clock,
  { meansAbsent = [], secrets = [] }: RefusalOptions = {},
): Promise<UpstreamError> {
  const { status, foreign, storage } = answer
  const where = foreign === undefined ? host : `${host} (redirected to ${foreign})`
  if (status === 429 && !storage) return limitFailure(where, answer, clock, (text) => reasonIn(text, secrets))
  const reason = await readReason(answer, secrets)
  const meaning = meanings.get(status)
  if (meaning === 'absent' || (!storage && meansAbsent.includes(status))) {
    return new UpstreamError('absent', 404, withReason(`${where} does not have it`, reason))
  }
  if (meaning === 'proxy') {
    return new UpstreamError(
      'unavailable',
      502,
      withReason(`The proxy on the way to ${where} answered ${status}`, reason),
    )
  }
  // What storage behind the registry says is not the registry's word; an expired link is one reason, and a new one may heal it.
  if (storage) {
    const message = withReason(`The storage that ${host} sent us to answered ${status}`, reason)
    return new TransientError('unavailable', 502, message)
  }
  if (meaning === 'denied') {
    const what = status === 401 && foreign === undefined && secrets.length > 0 ? 'the credential' : 'it'
    return new UpstreamError('denied', status, withReason(`${where} refused ${what} (${status})`, reason))
  }
  const message = withReason(`${where} answered ${status}`, reason)
  if (meaning === 'later') return new TransientError('unavailable', 502, message)
  // 501 and 505 are said by a server that is well.
  if (status >= 500 && status !== 501 && status !== 505) {
    return new TransientError('unavailable', 502, message, { breaksCircuit: foreign === undefined })
  }
  return new UpstreamError('invalid', 502, message)
}
