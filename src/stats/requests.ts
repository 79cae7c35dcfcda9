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
  readonly outcome: RequestOutcome
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
  /** Explains why the upstream did not confirm the content: the text of the `Warning` header. */
  readonly warning?: string
}

/**
 * Names what became of a request, with the words of `mirror logs` and the dashboard. `absent`: a HEAD for what does not exist, which is how
 * clients find that out before a push; `check`: a request for a probe image; `left`: the client closed the connection.
 */
export type RequestOutcome =
  | 'hit'
  | 'stale'
  | 'miss'
  | 'joined'
  | 'passed'
  | 'local'
  | 'check'
  | 'absent'
  | 'left'
  | 'ok'
  | 'failed'

const outcomes: Readonly<Record<string, RequestOutcome>> = {
  hit: 'hit',
  revalidated: 'hit',
  stale: 'stale',
  miss: 'miss',
  collapsed: 'joined',
  passed: 'passed',
  own: 'local',
} satisfies Record<Provenance['outcome'], RequestOutcome>

/** Names the outcome of a request. `cache`: an outcome of `Provenance`, or anything that a line of the log has in its place. */
export function nameOutcome(request: {
  readonly method: string
  readonly status: number
  readonly cache?: unknown
  readonly probe?: unknown
}): RequestOutcome {
  const { method, status, cache, probe } = request
  if (status === 499) return 'left'
  if (status === 404 && method === 'HEAD') return 'absent'
  if (status >= 400) return 'failed'
  if (probe === true) return 'check'
  return (typeof cache === 'string' && Object.hasOwn(outcomes, cache) ? outcomes[cache] : undefined) ?? 'ok'
}

/** Describes a request that was answered; a member that is undefined is absent from the report. */
export interface AnsweredRequest {
  readonly id: string
  readonly listener: 'cache' | 'registry'
  readonly method: string
  readonly kind: string | undefined
  readonly repository: string | undefined
  readonly reference: string | undefined
  readonly status: number
  readonly cache: Provenance['outcome'] | undefined
  /** Is true for a request for a probe image. */
  readonly probe?: boolean | undefined
  readonly reason: MissReason | undefined
  readonly bytes: number
  readonly ms: number
  /** Holds a text that is short and the same object for many requests, like the agent. */
  readonly client: string
  readonly agent: string | undefined
  readonly error: string | undefined
  readonly warning: string | undefined
}

/** Holds what is remembered of a request, but for its texts, which are in a buffer. */
interface Entry {
  /** Gives the time of the answer, wall clock ms. */
  at: number
  /** Bytes of its texts in the buffer. */
  textBytes: number
  listener: 'cache' | 'registry'
  method: string
  kind: string | undefined
  status: number
  cache: Provenance['outcome'] | undefined
  probe: boolean
  reason: MissReason | undefined
  /** Wall clock ms. */
  evictedAt: number | undefined
  bytes: number
  ms: number
  client: string
  agent: string | undefined
  error: string | undefined
  warning: string | undefined
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

/** Gets a request, and the function that makes its report, which takes longer than the answer of a small request may. */
export type RequestListener = (
  request: Pick<AnsweredRequest, 'listener' | 'method' | 'cache'>,
  toReport: () => RequestReport,
) => void

/** Limits the remembered requests. */
export const maxRecentRequests = 2000
/** Limits the texts of a request in the buffer, bytes. A name has at most 255 characters, and so has its registry. */
const maxTextBytes = 1024
const maxErrorLength = 300

/**
 * Remembers the last requests. Its entries are reused, and the texts that are new in each request are copied into one buffer, because
 * objects that live for 2,000 requests are work for the garbage collector (decision 0010).
 */
export class RecentRequests {
  readonly #entries: Entry[] = []
  readonly #texts = Buffer.alloc(maxRecentRequests * maxTextBytes)
  readonly #clock: Pick<Clock, 'wall'>
  readonly #listeners = new Set<RequestListener>()
  /** Holds the place of the next request. */
  #next = 0

  constructor(clock: Pick<Clock, 'wall'>) {
    this.#clock = clock
  }

  /** Records a request. `evictedAt`: the time of the eviction when its reason is `evicted`, wall clock ms. */
  record(request: AnsweredRequest, evictedAt?: number): void {
    const place = this.#next
    const texts = `${request.id}\n${request.repository ?? ''}\n${request.reference ?? ''}`
    const entry = (this.#entries[place] ??= createEntry())
    entry.at = this.#clock.wall()
    entry.textBytes = this.#texts.write(texts, place * maxTextBytes, maxTextBytes)
    entry.listener = request.listener
    entry.method = request.method
    entry.kind = request.kind
    entry.status = request.status
    entry.cache = request.cache
    entry.probe = request.probe === true
    entry.reason = request.reason
    entry.evictedAt = evictedAt
    entry.bytes = request.bytes
    entry.ms = request.ms
    entry.client = request.client
    entry.agent = request.agent
    entry.error = request.error === undefined ? undefined : cutText(request.error, maxErrorLength)
    entry.warning = request.warning === undefined ? undefined : cutText(request.warning, maxErrorLength)
    this.#next = (place + 1) % maxRecentRequests
    if (this.#listeners.size === 0) return
    const toRequestReport = () => toReport(entry, this.#readTexts(place))
    for (const listener of this.#listeners) listener(request, toRequestReport)
  }

  /** Lists the selected requests, the newest first. */
  list({ repositories, reference: wanted, limit }: RequestSelection): RequestReport[] {
    const found: RequestReport[] = []
    const count = this.#entries.length
    for (let back = 1; back <= count && found.length < limit; back++) {
      const place = (this.#next - back + count) % count
      const texts = this.#readTexts(place)
      if (repositories && !repositories.includes(texts.repository)) continue
      const mayBelong = repositories && texts.reference.includes(':')
      if (wanted === undefined || texts.reference === wanted || mayBelong)
        found.push(toReport(this.#entries[place]!, texts))
    }
    return found
  }

  #readTexts(place: number): { id: string; repository: string; reference: string } {
    const start = place * maxTextBytes
    const text = this.#texts.toString('utf8', start, start + this.#entries[place]!.textBytes)
    const [id = '', repository = '', reference = ''] = text.split('\n')
    return { id, repository, reference }
  }

  /**
   * Calls `listener` with each request from now on, in the turn of the event loop that answers it. It must return soon and not throw.
   * Returns the function that ends the subscription.
   */
  subscribe(listener: RequestListener): () => void {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }
}

/** Returns at most `length` characters, in a text of their own: V8 keeps the whole of a text alive while a part of it is in use. */
export function cutText(text: string, length: number): string {
  return Buffer.from(text.slice(0, length)).toString()
}

function createEntry(): Entry {
  const absent = { kind: undefined, cache: undefined, probe: false, reason: undefined, evictedAt: undefined }
  const rest = { bytes: 0, ms: 0, client: '', agent: undefined, error: undefined, warning: undefined }
  return { at: 0, textBytes: 0, listener: 'cache', method: '', status: 0, ...absent, ...rest }
}

function toReport(entry: Entry, texts: { id: string; repository: string; reference: string }): RequestReport {
  const { at, listener, method, kind, status, cache, reason, evictedAt, bytes, ms, client, agent, error, warning } =
    entry
  const { id, repository, reference } = texts
  return {
    id,
    at: new Date(at).toISOString(),
    listener,
    method,
    ...(kind !== undefined && { kind }),
    ...(repository !== '' && { repository: cleanText(repository) }),
    ...(reference !== '' && { reference: cleanText(reference) }),
    status,
    ...(cache !== undefined && { cache }),
    outcome: nameOutcome(entry),
    ...(reason !== undefined && { reason }),
    ...(evictedAt !== undefined && { evictedAt: new Date(evictedAt).toISOString() }),
    bytes,
    ms,
    client,
    ...(agent !== undefined && { agent: cleanText(agent) }),
    ...(error !== undefined && { error: cleanText(redact(error)) }),
    ...(warning !== undefined && { warning: cleanText(redact(warning)) }),
  }
}

/** Replaces control characters in a text of a client or upstream. */
function cleanText(text: string): string {
  return text.replaceAll(/\p{Cc}/gu, '?')
}
