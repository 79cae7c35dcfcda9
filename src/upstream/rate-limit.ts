import { describeFailure } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { anonymousIdentity, type Identity } from '../oci/registry.ts'
import type { TransportResponse } from './transport.ts'
import type { RateLimit, Upstream } from './upstream.ts'

/** Names the repository that Docker Hub offers for reading the quota. A HEAD of its manifest costs no pull. */
const quotaRepository = 'ratelimitpreview/test'
const hubHosts: readonly string[] = ['registry-1.docker.io', 'index.docker.io', 'registry.hub.docker.com']

/**
 * Distinguishes the limits in a 429 response: `manifests` = Docker Hub's pull quota, which only GETs of manifests spend; `all` =
 * every request.
 */
export interface Limit {
  readonly scope: 'manifests' | 'all'
  /** Holds the time without requests: as announced, but at most an hour, or a default. */
  readonly retryAfterMs: number
  /** Holds the time until the end that the upstream announced; undefined if it announced none, or if that end has passed. */
  readonly announcedMs?: number | undefined
  /** Holds the upstream's own message. */
  readonly reason?: string | undefined
}

/** Sets how long an account counts as unlimited: the window of Docker Hub's quotas, ms. */
const unlimitedMs = 6 * 3_600_000

type Header = (name: string) => string | undefined

/** Checks whether the URL of an upstream is Docker Hub's own. */
export function isDockerHub(url: string): boolean {
  return URL.canParse(url) && hubHosts.includes(new URL(url).hostname)
}

/**
 * Asks Docker Hub for the quota with one HEAD request that costs no pull. The upstream remembers the answer (`health().rateLimit`). A
 * failure has no effect, because no client waits for the answer.
 */
export async function probeQuota(upstream: Pick<Upstream, 'resolve'>, logger: Logger): Promise<void> {
  try {
    await upstream.resolve(
      quotaRepository,
      { kind: 'tag', tag: 'latest' },
      { access: 'credentialed', isExtra: true, isBestEffort: true },
    )
  } catch (error) {
    logger.debug({ reason: describeFailure(error) }, 'could not read the quota of Docker Hub')
  }
}

/** Checks whether nothing is known about the quota now, because no response told it, or because its window has ended since. */
export function isQuotaOutdated(known: RateLimit | undefined, wall: number): boolean {
  if (known === undefined) return true
  if ('unlimited' in known) return wall >= known.at + unlimitedMs
  return wall >= Math.min(known.at + known.windowSeconds * 1000, known.resetsAt ?? Infinity)
}

/**
 * Returns what is known about the quota after a response to a request for `repository`. Docker Hub sends no quota to an account
 * without a limit, but also none for some images: only the response for the quota repository proves that there is no limit.
 */
export function updateRateLimit(
  known: RateLimit | undefined,
  response: Pick<TransportResponse, 'status' | 'header' | 'redirectHost'>,
  { repository, identity, wall }: { readonly repository: string; readonly identity: Identity; readonly wall: number },
): RateLimit | undefined {
  if (response.redirectHost !== undefined) return known
  const limit = readRateLimit(response.header, wall)
  if (limit) return limit
  const isProof = repository === quotaRepository && response.status === 200 && identity !== anonymousIdentity
  if (!isProof || response.header('ratelimit-limit') !== undefined) return known
  return { unlimited: true, source: response.header('docker-ratelimit-source'), at: wall }
}

/** Returns what is known about the quota after a 429 of the pull quota, which may come without the quota's headers. */
export function spendRateLimit(known: RateLimit | undefined, limit: Limit, wall: number): RateLimit | undefined {
  if (limit.scope !== 'manifests' || known === undefined || 'unlimited' in known) return known
  const { announcedMs = Infinity } = limit
  const resetsAt = announcedMs <= known.windowSeconds * 1000 ? wall + announcedMs : known.resetsAt
  return { ...known, remaining: 0, at: wall, resetsAt }
}

/** Parses Docker Hub's `ratelimit-limit: 100;w=21600` and its companions; undefined when one is missing. `wall`: wall clock ms. */
export function readRateLimit(header: Header, wall: number): RateLimit | undefined {
  const limit = parseLeadingNumber(header('ratelimit-limit'))
  const remaining = parseLeadingNumber(header('ratelimit-remaining'))
  const window = /;\s*w=(\d{1,7})(?!\d)/.exec(header('ratelimit-limit') ?? '')?.[1]
  if (limit === undefined || remaining === undefined || window === undefined) return undefined
  return {
    limit,
    remaining,
    windowSeconds: Number(window),
    source: header('docker-ratelimit-source'),
    at: wall,
    resetsAt: readReset(header, wall, Number(window)),
  }
}

/** Reads when the quota is full again, wall clock ms: seconds from now, or since the Unix epoch. Ignores a time after the window. */
function readReset(header: Header, wall: number, windowSeconds: number): number | undefined {
  const seconds = parseLeadingNumber(header('ratelimit-reset') ?? header('x-ratelimit-reset'))
  if (seconds === undefined) return undefined
  const at = seconds > windowSeconds ? seconds * 1000 : wall + seconds * 1000
  return at >= wall && at <= wall + windowSeconds * 1000 ? at : undefined
}

/** Parses the number at the start of a header's value; undefined for one that is too large to be meant. */
export function parseLeadingNumber(text: string | undefined): number | undefined {
  const digits = /^\s*(\d{1,12})(?!\d)/.exec(text ?? '')?.[1]
  return digits === undefined ? undefined : Number(digits)
}
