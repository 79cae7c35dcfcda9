import { redact } from '../lib/logger.ts'
import type { Clock } from '../lib/time.ts'
import type { MissReason, Provenance } from '../oci/registry.ts'

/** Describes one answered request, as it is in the log and in the live log of the dashboard. */
export interface RequestReport {
  /** Holds the value of `X-Request-Id` in the response. */
  readonly id: string
  /** Gives the time of the answer (ISO 8601). */
  readonly at: string
  readonly listener: 'cache' | 'registry'
  readonly method: string
  readonly kind?: string
  /** Names the repository with its registry where it belongs to an upstream: `docker.io/library/redis`. */
  readonly repository?: string
  /** Holds the tag or digest. */
  readonly reference?: string
  readonly status: number
  readonly cache?: Provenance['outcome']
  /** Explains a miss, and a hit that needed a grant first (`identity`, `not granted`); absent for any other hit. */
  readonly reason?: MissReason
  /** Gives the time of the eviction when `reason` is `evicted` (ISO 8601). */
  readonly evictedAt?: string
  readonly bytes: number
  readonly ms: number
  /** Holds the client's address. */
  readonly client: string
  readonly agent?: string
  readonly error?: string
}

/** Holds what the ring remembers of a request. Its texts are short: see `cutText`. */
export interface AnsweredRequest {
  id: string
  listener: 'cache' | 'registry'
  method: string
  kind: string | undefined
  repository: string | undefined
  reference: string | undefined
  status: number
  cache: Provenance['outcome'] | undefined
  reason: MissReason | undefined
  /** Wall clock ms. */
  evictedAt: number | undefined
  bytes: number
  ms: number
  client: string
  agent: string | undefined
  error: string | undefined
}

interface Entry extends AnsweredRequest {
  /** Gives the time of the answer, wall clock ms. */
  at: number
}

/** Selects requests; a member that is absent selects all. */
export interface RequestSelection {
  /** Lists the names of one repository. */
  readonly repositories?: readonly string[] | undefined
  /**
   * Holds a tag or digest. Of a repository, requests by any digest are selected too, because they may belong to the same pull: only
   * those for another tag are left out.
   */
  readonly reference?: string | undefined
  /** Limits the requests, the newest ones first. */
  readonly limit: number
}

/** Limits the remembered requests. */
export const maxRecentRequests = 2000
const maxErrorLength = 300

/**
 * Remembers the last requests. Its entries are reused, because an object per request that lives for 2,000 requests is work for the
 * garbage collector (decision 0010).
 */
export class RecentRequests {
  readonly #entries: Entry[] = []
  readonly #clock: Pick<Clock, 'wall'>
  readonly #listeners = new Set<(report: RequestReport) => void>()
  /** Holds the place of the next request. */
  #next = 0

  constructor(clock: Pick<Clock, 'wall'>) {
    this.#clock = clock
  }

  record(request: AnsweredRequest): void {
    const at = this.#clock.wall()
    const error = request.error === undefined ? undefined : cutText(request.error, maxErrorLength)
    let entry = this.#entries[this.#next]
    if (entry) {
      entry.id = request.id
      entry.at = at
      entry.listener = request.listener
      entry.method = request.method
      entry.kind = request.kind
      entry.repository = request.repository
      entry.reference = request.reference
      entry.status = request.status
      entry.cache = request.cache
      entry.reason = request.reason
      entry.evictedAt = request.evictedAt
      entry.bytes = request.bytes
      entry.ms = request.ms
      entry.client = request.client
      entry.agent = request.agent
      entry.error = error
    } else this.#entries.push((entry = { ...request, at, error }))
    this.#next = (this.#next + 1) % maxRecentRequests
    if (this.#listeners.size === 0) return
    const report = toReport(entry)
    for (const listener of this.#listeners) listener(report)
  }

  /** Lists the selected requests, the newest first. */
  list({ repositories, reference, limit }: RequestSelection): RequestReport[] {
    const found: RequestReport[] = []
    const count = this.#entries.length
    for (let back = 1; back <= count && found.length < limit; back++) {
      const entry = this.#entries[(this.#next - back + count) % count]!
      if (repositories && !repositories.includes(entry.repository ?? '')) continue
      const mayBelong = repositories && entry.reference?.includes(':')
      if (reference === undefined || entry.reference === reference || mayBelong) found.push(toReport(entry))
    }
    return found
  }

  /**
   * Calls `listener` with each request from now on, in the turn of the event loop that answers it. It must return soon and not throw.
   * Returns the function that ends the subscription.
   */
  subscribe(listener: (report: RequestReport) => void): () => void {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }
}

/** Returns at most `length` characters, in a text of their own: V8 keeps the whole of a text alive while a part of it is in use. */
export function cutText(text: string, length: number): string {
  return Buffer.from(text.slice(0, length)).toString()
}

function toReport(entry: Entry): RequestReport {
  const { id, at, listener, method, kind, repository, reference, status, cache, reason, evictedAt } = entry
  const { bytes, ms, client, agent, error } = entry
  return {
    id,
    at: new Date(at).toISOString(),
    listener,
    method,
    ...(kind !== undefined && { kind }),
    ...(repository !== undefined && { repository }),
    ...(reference !== undefined && { reference }),
    status,
    ...(cache !== undefined && { cache }),
    ...(reason !== undefined && { reason }),
    ...(evictedAt !== undefined && { evictedAt: new Date(evictedAt).toISOString() }),
    bytes,
    ms,
    client,
    ...(agent !== undefined && { agent: cleanText(agent) }),
    ...(error !== undefined && { error: cleanText(redact(error)) }),
  }
}

/** Replaces control characters in a text of a client or upstream. */
function cleanText(text: string): string {
  return text.replaceAll(/\p{Cc}/gu, '?')
}
