import { LRUCache } from 'lru-cache'
import type { Logger } from '../lib/logger.ts'
import type { Clock } from '../lib/time.ts'
import { UpstreamError, type UpstreamFailure, type UpstreamHealth } from './upstream.ts'

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

/**
 * What a failure tells about the upstream (decision D6): `unreachable` = no connection; `silent` = a connection, but no answer in
 * time; `answered` = a 5xx answer. The last two may concern a single repository.
 */
export type Outage = 'unreachable' | 'silent' | 'answered'

/** A failure that another try may not meet: no answer, a 5xx answer, a body cut short, a limit that is over at once. */
export class TransientError extends UpstreamError {
  /** Undefined for a failure that does not count for the circuit breaker. */
  readonly outage: Outage | undefined
  /** Milliseconds that the upstream asked to wait; otherwise the usual pause. */
  readonly pauseMs: number | undefined

  /** `breaksCircuit`: the failure counts for the circuit breaker, as an `answered` outage unless `outage` says otherwise. */
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

  /** Whether an answer came, though not the wanted one. A failure of the network carries its cause. */
  get isAnswer(): boolean {
    return this.cause === undefined
  }
}

/**
 * Keeps an upstream, or the broken part of it, from being asked in vain (decision D6).
 *
 * A connection that fails concerns the whole upstream. A 5xx answer, or no answer in time, concerns the repository that was asked
 * about, because a repository can be broken alone: it counts once for each repository. Five in a row open the circuit for 30 s.
 * Then connections that failed close the upstream to everybody; repositories that failed are refused themselves, and any other
 * one is still asked. A single request that fails five times in a row is refused for 30 s by itself.
 */
interface Circuit {
  /** Runs one attempt and learns from its end. Throws an UpstreamError (503) at once for what is not to be asked now. */
  run<T>(source: RequestSource, attempt: () => Promise<T>): Promise<T>
  readonly state: UpstreamHealth['state']
}

interface RequestSource {
  readonly repository: string
  /** The same text for requests that have the same answer. */
  readonly request: string
}

/** What fails again and again, and is not asked for the moment. The rest of the upstream may be well. */
export class RepeatedFailure extends UpstreamError {
  override name = 'RepeatedFailure'
}

const failuresToOpen = 5
const openMs = 30_000
/** Repositories that may probe an upstream at the same time, so that one that hangs does not keep the others out. */
const maxProbes = 5
const maxEntries = 1000

interface RequestFailures {
  failures: number
  /** Monotonic ms. */
  until: number
  isProbed: boolean
  last: TransientError | undefined
}

export function createCircuit(host: string, clock: Clock, logger: Logger): Circuit {
  /** Connections that failed since the upstream last answered. */
  let connectionFailures = 0
  /** Nobody is asked before; monotonic ms. Undefined unless connections failed. */
  let closedUntil: number | undefined
  /** Repositories that failed since the upstream last answered, and until when an open circuit refuses each; monotonic ms. */
  const repositories = new LRUCache<string, number>({ max: maxEntries })
  const requests = new LRUCache<string, RequestFailures>({ max: maxEntries })
  const probing = new Set<string>()
  // A token request serves many waiters: its failure is one failure, however many of them report it.
  const counted = new WeakSet<TransientError>()

  /** The message of the last failure. */
  let reason = ''

  const failures = () => connectionFailures + repositories.size
  const isOpen = () => closedUntil !== undefined || failures() >= failuresToOpen

  /** Returns how to end the probe that the request is. Throws when it must not be asked now. */
  function admit({ repository, request }: RequestSource): () => void {
    const now = clock.monotonic()
    const own = requests.get(request)
    const isOwnProbe = own !== undefined && own.failures >= failuresToOpen
    if (isOwnProbe && (own.isProbed || own.until > now)) {
      const message = `${host} keeps failing for this request, which is not repeated for a while: ${own.last?.message}`
      throw new RepeatedFailure('unavailable', 503, message, { retryAfterSeconds: toWholeSeconds(own.until - now) })
    }
    const until = isOpen() ? Math.max(closedUntil ?? 0, repositories.get(repository) ?? 0) : 0
    const isProbe = isOpen() && (closedUntil !== undefined || repositories.has(repository))
    if (until > now || (isProbe && (probing.has(repository) || probing.size >= maxProbes))) {
      const message = `${host} is left alone for a while, because it does not answer: ${reason}`
      throw new UpstreamError('unavailable', 503, message, { retryAfterSeconds: toWholeSeconds(until - now) })
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
    if (wasOpen) logger.info({ upstream: host }, 'the upstream answers again')
  }

  function recordFailure(error: TransientError, { repository, request }: RequestSource, isProbe: boolean): void {
    const wasOpen = isOpen()
    const until = clock.monotonic() + openMs
    if (error.outage !== 'unreachable') recordRequestFailure(request, error, until)
    if (counted.has(error) && !isProbe) return
    counted.add(error)
    reason = error.message
    if (error.outage === 'unreachable') {
      connectionFailures += 1
      if (failures() >= failuresToOpen && (isProbe || closedUntil === undefined)) closedUntil = until
    } else {
      repositories.set(repository, until)
      // There was a connection: the others may try.
      if (isProbe) [connectionFailures, closedUntil] = [0, undefined]
    }
    if (isOpen() && (isProbe || !wasOpen))
      logger.warn({ upstream: host, reason: error.message }, 'the upstream does not answer and is left alone for 30 s')
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
    async run(source, attempt) {
      const wasShut = closedUntil !== undefined
      const endProbe = admit(source)
      try {
        const result = await attempt()
        recordAnswer(source)
        return result
      } catch (error) {
        if (error instanceof TransientError && error.outage) recordFailure(error, source, wasShut)
        // Any other UpstreamError that carries an answer shows that somebody is there.
        else if (error instanceof UpstreamError && isAnswer(error)) recordAnswer(source)
        throw error
      } finally {
        endProbe()
      }
    },
    get state() {
      if (isOpen()) return 'open'
      return failures() > 0 ? 'failing' : 'ok'
    },
  }
}

const toWholeSeconds = (milliseconds: number) => Math.max(1, Math.ceil(milliseconds / 1000))

const isAnswer = ({ failure }: UpstreamError) => failure !== 'unavailable'
