import { LRUCache } from 'lru-cache'
import type { Logger } from '../lib/logger.ts'
import type { Clock } from '../lib/time.ts'
import { UpstreamError, type UpstreamFailure, type UpstreamHealth } from './upstream.ts'

const pausesMs = [150, 450]
const budgetMs = 10_000
const failuresToOpen = 5
const openMs = 30_000
/** Limits the repositories that probe an upstream at the same time, so that a probe that hangs does not block the others. */
const maxProbes = 5
const maxEntries = 1000

/**
 * Runs a GET or HEAD up to three times, while it fails with a TransientError and the next attempt would begin within 10 s of the
 * first. Pauses vary by up to half, so that requests that failed together are not repeated together.
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

/**
 * Names the kind of an outage (decision D6): `unreachable` = no connection; `silent` = a connection, but no response in time;
 * `answered` = a 5xx response. The last two may concern a single repository.
 */
export type Outage = 'unreachable' | 'silent' | 'answered'

/** Reports a failure that a retry may avoid: no response, a 5xx response, a body cut short, a short rate limit. */
export class TransientError extends UpstreamError {
  /** Is undefined for a failure that the circuit breaker does not count. */
  readonly outage: Outage | undefined
  /** Holds the pause that the upstream asked for, ms; undefined for the usual pause. */
  readonly pauseMs: number | undefined

  /** `breaksCircuit`: the circuit breaker counts the failure, as an `answered` outage unless `outage` says otherwise. */
  constructor(
    failure: UpstreamFailure,
    status: number,
    message: string,
    options: { breaksCircuit?: boolean; outage?: Outage; pauseMs?: number; cause?: unknown } = {},
  ) {
    super(failure, status, message, {
      ...(options.pauseMs !== undefined && { retryAfterSeconds: Math.max(1, Math.ceil(options.pauseMs / 1000)) }),
      cause: options.cause,
    })
    this.outage = options.breaksCircuit === true ? (options.outage ?? 'answered') : undefined
    this.pauseMs = options.pauseMs
  }

  /** Is true if the upstream responded. A network failure carries its cause. */
  get isAnswer(): boolean {
    return this.cause === undefined
  }
}

interface RequestSource {
  readonly repository: string
  /** Identifies the request: equal for requests with the same response. */
  readonly request: string
}

/** Reports the refusal of a request that keeps failing. The rest of the upstream may be healthy. */
export class RepeatedFailure extends UpstreamError {
  override name = 'RepeatedFailure'
}

interface RequestFailures {
  failures: number
  /** Monotonic ms. */
  until: number
  isProbed: boolean
  last: TransientError | undefined
}

/**
 * Creates a circuit breaker: stops requests to an upstream, or to the broken part of it, while they would fail (decision D6).
 *
 * A failed connection concerns the whole upstream. A 5xx response, or no response in time, concerns one repository, because a
 * repository can be broken alone: it counts once for each repository. Five in a row open the circuit for 30 s. After failed
 * connections, the open circuit refuses every request to the upstream; after failed repositories, it refuses only these repositories.
 * A single request that fails five times in a row is refused for 30 s by itself.
 */
export function createCircuit(host: string, clock: Clock, logger: Logger) {
  /** Counts failed connections since the upstream's last response. */
  let connectionFailures = 0
  /** Ends the refusal of the whole upstream, monotonic ms; undefined unless connections failed. */
  let closedUntil: number | undefined
  /** Records failed repositories since the upstream's last response, and until when an open circuit refuses each, monotonic ms. */
  const repositories = new LRUCache<string, number>({ max: maxEntries })
  const requests = new LRUCache<string, RequestFailures>({ max: maxEntries })
  const probing = new Set<string>()
  // Counts a failure once, because many requests may wait for the same token request and report its failure.
  const counted = new WeakSet<TransientError>()

  /** Holds the reason for an open circuit. */
  let lastFailure: TransientError | undefined

  const failures = () => connectionFailures + repositories.size
  const isOpen = () => closedUntil !== undefined || failures() >= failuresToOpen

  /** Admits a request, and returns how to end its probe. Throws when the circuit refuses the request. */
  function admit({ repository, request }: RequestSource): () => void {
    const now = clock.monotonic()
    const own = requests.get(request)
    const isOwnProbe = own !== undefined && own.failures >= failuresToOpen
    if (isOwnProbe && own.last && (own.isProbed || own.until > now)) {
      const retryAfterSeconds = toWholeSeconds(own.until - now)
      const message = describePause(own.last, 'This request keeps failing and is sent', retryAfterSeconds)
      throw new RepeatedFailure('unavailable', 503, message, { retryAfterSeconds, cause: own.last })
    }
    const until = isOpen() ? Math.max(closedUntil ?? 0, repositories.get(repository) ?? 0) : 0
    const isProbe = isOpen() && (closedUntil !== undefined || repositories.has(repository))
    if (lastFailure && (until > now || (isProbe && (probing.has(repository) || probing.size >= maxProbes)))) {
      const retryAfterSeconds = toWholeSeconds(until - now)
      const message = describePause(lastFailure, `${host} is asked`, retryAfterSeconds)
      throw new UpstreamError('unavailable', 503, message, { retryAfterSeconds, cause: lastFailure })
    }
    if (isOwnProbe) own.isProbed = true
    if (isProbe) probing.add(repository)
    return () => {
      if (isOwnProbe) own.isProbed = false
      if (isProbe) probing.delete(repository)
    }
  }

  function recordAnswer({ request }: RequestSource): void {
    const wasOpen = isOpen()
    connectionFailures = 0
    closedUntil = undefined
    repositories.clear()
    requests.delete(request)
    if (wasOpen) logger.info({ upstream: host }, 'the upstream responds again')
  }

  function recordFailure(error: TransientError, { repository, request }: RequestSource, isProbe: boolean): void {
    const wasOpen = isOpen()
    const until = clock.monotonic() + openMs
    if (error.outage !== 'unreachable') recordRequestFailure(request, error, until)
    if (counted.has(error) && !isProbe) return
    counted.add(error)
    lastFailure = error
    if (error.outage === 'unreachable') {
      connectionFailures += 1
      if (failures() >= failuresToOpen && (isProbe || closedUntil === undefined)) closedUntil = until
    } else {
      repositories.set(repository, until)
      // A connection succeeded, so other repositories may try.
      if (isProbe) [connectionFailures, closedUntil] = [0, undefined]
    }
    if (isOpen() && (isProbe || !wasOpen))
      logger.warn({ upstream: host, reason: error.message }, 'the upstream does not respond; the mirror waits for 30 s')
  }

  function recordRequestFailure(request: string, error: TransientError, until: number): void {
    const own = requests.get(request) ?? { failures: 0, until: 0, isProbed: false, last: undefined }
    if (own.last === error) return
    own.last = error
    own.failures += 1
    own.until = until
    requests.set(request, own)
  }

  return {
    /** Runs one attempt and records its result. Throws an UpstreamError (503) at once for a request that the circuit refuses. */
    async run<T>(source: RequestSource, attempt: () => Promise<T>): Promise<T> {
      const wasShut = closedUntil !== undefined
      const endProbe = admit(source)
      try {
        const result = await attempt()
        recordAnswer(source)
        return result
      } catch (error) {
        if (error instanceof TransientError && error.outage) recordFailure(error, source, wasShut)
        // Any other UpstreamError that carries a response shows that the upstream is up.
        else if (error instanceof UpstreamError && isAnswer(error)) recordAnswer(source)
        throw error
      } finally {
        endProbe()
      }
    },
    get state(): UpstreamHealth['state'] {
      if (isOpen()) return 'open'
      return failures() > 0 ? 'failing' : 'ok'
    },
  }
}

/** Names the failure for which a request is not sent, and when the next one is. */
function describePause({ message }: TransientError, what: string, seconds: number): string {
  return `${message.replace(/\.$/, '')}. ${what} again in ${seconds} s.`
}

const toWholeSeconds = (milliseconds: number) => Math.max(1, Math.ceil(milliseconds / 1000))

const isAnswer = ({ failure }: UpstreamError) => failure !== 'unavailable'
