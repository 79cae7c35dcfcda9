import { formatDuration, formatTimeOfDay, formatTimeZone } from '../lib/units.ts'
import { anonymousIdentity, type Identity } from '../oci/registry.ts'
import { LimitedError } from '../upstream/failures.ts'
import { UpstreamError } from '../upstream/upstream.ts'
import { isValidFor, type RequestContext } from './grants.ts'

/** Describes the age of a tag at the time of a request, and the request's cache control. Times are monotonic ms. */
interface TagAge {
  /** Holds the time when this process last revalidated the tag; undefined after a start. */
  readonly checkedAt: number | undefined
  readonly now: number
  readonly freshFor: number
  readonly noCache: boolean
  readonly offline: boolean
}

/** Reports whether a tag may be served without a request to its upstream. Digests are immutable and need no such check. */
export function isFresh(age: TagAge): boolean {
  if (age.offline) return true
  if (age.noCache || age.checkedAt === undefined) return false
  return age.now - age.checkedAt < age.freshFor
}

/** Decides when cached content replaces the answer of an upstream: `cache.stale` in mirror.yaml. */
export type StalePolicy = 'on-error' | 'always' | 'never'

/** Reports whether a cached tag may replace the answer of an upstream that failed in this way (decision D1). */
export function mayServeStale(
  policy: StalePolicy,
  failure: 'absent' | 'denied' | 'limited' | 'unavailable' | 'invalid',
): boolean {
  if (policy === 'never') return false
  return policy === 'always' || failure === 'limited' || failure === 'unavailable' || failure === 'invalid'
}

/** Reports whether a cached list may replace the answer to a request that failed with `error`. Offline, it always may. */
export function maySubstitute(
  error: unknown,
  { offline, stale }: { readonly offline: boolean; readonly stale: StalePolicy },
): error is UpstreamError {
  return error instanceof UpstreamError && (offline || mayServeStale(stale, error.failure))
}

/** Says why an upstream did not confirm content. */
export interface StaleReason {
  /** Holds a clause such as `docker.io is limiting this address`. */
  readonly text: string
  /** Holds the end of a rate limit, as the upstream announced it, wall clock ms. */
  readonly until?: number | undefined
  /** Holds when the upstream gets requests again, wall clock ms. */
  readonly retryAt?: number | undefined
}

/** Holds why the check of a tag failed, and for which credential. */
export interface CheckFailure {
  readonly reason: StaleReason
  readonly identity: Identity
}

/**
 * Returns the reason of an earlier failure if it concerns the caller: it may describe the account of a credential. Does not wait for the
 * caller's identity, because a credential helper may be slow: without a known identity, only an anonymous failure concerns the caller.
 */
export function pickReason(
  { findLastIdentity }: Pick<RequestContext, 'findLastIdentity'>,
  failure: CheckFailure | undefined,
): StaleReason | undefined {
  return failure && isValidFor(failure, findLastIdentity() ?? anonymousIdentity) ? failure.reason : undefined
}

/** Limits the reason in a warning, so that it does not displace the other parts, characters. */
const maxReasonLength = 130

export const offlineReason: StaleReason = { text: 'the mirror is offline' }

/** Returns the reason when an upstream takes longer than the client waits, ms. */
export function toSlowReason({ host }: RequestContext, waitedMs: number): StaleReason {
  return { text: `${host} did not answer within ${formatDuration(waitedMs)}` }
}

/** Returns the reason for a request that failed with an UpstreamError. `identity`: the credential of the request. `now`: wall clock ms. */
export function toStaleReason(
  { host }: RequestContext,
  { error, identity }: { readonly error: unknown; readonly identity: Identity },
  now: number,
): StaleReason {
  if (!(error instanceof UpstreamError)) return { text: `${host} could not be asked` }
  const { failure, retryAfterSeconds, cause } = error
  const retryAt = retryAfterSeconds === undefined ? undefined : now + retryAfterSeconds * 1000
  if (failure === 'limited') {
    const text = `${host} is limiting this ${identity === anonymousIdentity ? 'address' : 'account'}`
    const announcedMs = error instanceof LimitedError ? error.limit.announcedMs : undefined
    return announcedMs === undefined ? { text, retryAt } : { text, until: now + announcedMs }
  }
  // A request that the circuit breaker refuses has failed for an earlier reason.
  const { message } = cause instanceof UpstreamError ? cause : error
  const text = shortenText(message.replace(/\.+$/, ''), maxReasonLength)
  return { text: message.includes(host) ? text : `${host}: ${text}`, retryAt }
}

/**
 * Describes content that was served instead of the upstream's answer, in one line. Leaves out an end that has passed. `asOf`, `now`:
 * wall clock ms.
 */
export function describeStale(
  { text, until, retryAt }: StaleReason,
  served: string,
  asOf: number | undefined,
  now: number,
): string {
  const format = (at: number) => `${formatTimeOfDay(at, now)} ${formatTimeZone(at)}`
  const end = until === undefined || until <= now ? '' : ` until ${format(until)}`
  const next = retryAt === undefined || retryAt <= now ? '' : ` (asked again at ${format(retryAt)})`
  return `${text}${end}${next}; served ${served}${asOf === undefined ? '' : ` as of ${format(asOf)}`}`
}

/** Cuts a text in the middle, because its end often tells most. */
export function shortenText(text: string, length: number): string {
  if (text.length <= length) return text
  const half = Math.floor((length - 3) / 2)
  return `${text.slice(0, half)}...${text.slice(-half)}`
}
