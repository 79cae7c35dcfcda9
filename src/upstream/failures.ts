import { STATUS_CODES } from 'node:http'
import { stripVTControlCharacters } from 'node:util'
import { isObject, JsonError, readJsonNow } from '../lib/json.ts'
import { redact } from '../lib/logger.ts'
import { findProcessFaultCode, type WorkWatcher } from '../lib/system-errors.ts'
import type { Clock } from '../lib/time.ts'
import type { Identity } from '../oci/registry.ts'
import { decodeBytes, getContentEncoding } from './body.ts'
import { type Limit, parseLeadingNumber } from './rate-limit.ts'
import { TransientError } from './retry.ts'
import type { TransportResponse } from './transport.ts'
import { type Upstream, UpstreamError, type UpstreamFailure } from './upstream.ts'

/**
 * Maps a registry's 4xx status to its meaning for the requested content. A status that is not listed concerns the request (400, 405,
 * 406, 409, 411, 413 to 417, 421, 422, 424, 426, 428, 431 …): the registry said nothing about the content, so a cached tag stays.
 */
const statusMeanings: ReadonlyMap<number, 'absent' | 'denied' | 'later' | 'proxy'> = new Map([
  [401, 'denied'],
  /** Means that a subscription has ended. */
  [402, 'denied'],
  [403, 'denied'],
  [404, 'absent'],
  /** Comes from the network's proxy, not from the registry. */
  [407, 'proxy'],
  [408, 'later'],
  [410, 'absent'],
  /** Is Harbor's status for images that a policy blocks. */
  [412, 'denied'],
  [423, 'denied'],
  [425, 'later'],
  [451, 'denied'],
])

const recordedFailures: ReadonlySet<UpstreamFailure> = new Set(['unavailable', 'limited', 'invalid'])
/** Failures that prove a response of the upstream. */
const answeredFailures: ReadonlySet<UpstreamFailure> = new Set(['absent', 'denied'])
const defaultRetryAfterMs = 60_000
const maxRetryAfterMs = 3_600_000
/** Limits the end of a rate limit that is shown: a later one is a mistake of the upstream, and may be in no calendar. */
const maxAnnouncedMs = 366 * 24 * 3_600_000
const unitMs: Record<string, number> = { ns: 1e-6, us: 1e-3, ms: 1, s: 1000, m: 60_000, h: 3_600_000 }
/** Limits for reading an error body: far more than a sentence needs. */
const maxReasonBytes = 16 * 1024
const maxReasonMs = 1000
/** Characters. */
const maxReasonLength = 300
/** Lists the members in which registries and token servers put their message, the most informative first. */
const messageMembers = ['message', 'error_description', 'details', 'detail', 'reason', 'error', 'title']
const markupTags = /<\/?[a-z!][^<>]*>/gi
/** Matches control and format characters, line separators, and lone surrogates. */
const unprintable = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]+/gu
const startOfLine = new RegExp(`^.{${maxReasonLength}}`, 'u')

interface RefusalOptions {
  /** Lists statuses that mean the same as a 404 when the registry itself sends them. */
  readonly meansAbsent?: readonly number[] | undefined
  /** Secrets in the request, which no message may show. */
  readonly secrets?: readonly string[] | undefined
}

/** Converts an unwanted response to an error that includes the registry's own reason. Discards the body. */
export async function toUpstreamError(
  host: string,
  response: TransportResponse,
  clock: Clock,
  { meansAbsent = [], secrets = [] }: RefusalOptions = {},
): Promise<UpstreamError> {
  const { status, redirectHost, isStorage } = response
  const where = redirectHost === undefined ? host : `${host} (redirected to ${redirectHost})`
  if (status === 429 && !isStorage) return toLimitError(where, response, clock, (text) => parseReason(text, secrets))
  const reason = await readReason(response, secrets)
  const meaning = statusMeanings.get(status)
  if (meaning === 'absent' || (!isStorage && meansAbsent.includes(status))) {
    return new UpstreamError('absent', 404, withReason(`${where} does not have it`, reason))
  }
  if (meaning === 'proxy') {
    return new UpstreamError(
      'unavailable',
      502,
      withReason(`The proxy on the way to ${where} answered ${status}`, reason),
    )
  }
  // The registry does not answer for its storage: an expired link is one reason for a failure, and a new link may work.
  if (isStorage) {
    const message = withReason(`The storage that ${host} redirects to answered ${status}`, reason)
    return new TransientError('unavailable', 502, message)
  }
  if (meaning === 'denied') {
    const what = status === 401 && redirectHost === undefined && secrets.length > 0 ? 'the credential' : 'it'
    return new UpstreamError('denied', status, withReason(`${where} refused ${what} (${status})`, reason))
  }
  const message = withReason(`${where} answered ${status}`, reason)
  if (meaning === 'later') return new TransientError('unavailable', 502, message)
  // 501 and 505 do not indicate an outage.
  if (status >= 500 && status !== 501 && status !== 505) {
    return new TransientError('unavailable', 502, message, { breaksCircuit: redirectHost === undefined })
  }
  return new UpstreamError('invalid', 502, message)
}

/** Checks whether a registry's status denies access to the content. */
export function isDenial(status: number): boolean {
  return statusMeanings.get(status) === 'denied'
}

/**
 * Wraps an upstream so that its health includes the last failure, also one that the circuit does not count, such as a credential
 * that cannot be read. `wall`: wall clock ms. `watcher` receives for each request whether it reached the upstream.
 */
export function recordFailures(upstream: Upstream, wall: () => number, watcher?: WorkWatcher): Upstream {
  let last: (Pick<UpstreamError, 'failure' | 'message'> & { readonly at: number; readonly retryAt: number }) | undefined
  /** Is true if the last request got no usable response, and neither a pause nor a fault of this process explains it. */
  let isFailing = false

  function recordFailure(error: unknown): void {
    if (!(error instanceof UpstreamError && recordedFailures.has(error.failure))) return
    const pauseMs = (error.retryAfterSeconds ?? 0) * 1000
    // A request that the circuit refuses has failed for an earlier reason.
    const { failure, message } = error.cause instanceof UpstreamError ? error.cause : error
    last = { failure, message, at: wall(), retryAt: wall() + pauseMs }
    isFailing = error.failure === 'unavailable' && pauseMs === 0 && findProcessFaultCode(error) === undefined
  }

  function recordAnswer(): void {
    watcher?.worked()
    isFailing = false
  }

  async function record<T>(ask: Promise<T>): Promise<T> {
    try {
      const response = await ask
      recordAnswer()
      return response
    } catch (error) {
      if (error instanceof UpstreamError && answeredFailures.has(error.failure)) recordAnswer()
      else watcher?.failed(error)
      recordFailure(error)
      throw error
    }
  }

  return {
    host: upstream.host,
    // Only a failure counts: an identity proves no response of the upstream.
    identity: (access) =>
      upstream.identity(access).catch((error: unknown) => {
        recordFailure(error)
        throw error
      }),
    resolve: (...args) => record(upstream.resolve(...args)),
    manifest: (...args) => record(upstream.manifest(...args)),
    statBlob: (...args) => record(upstream.statBlob(...args)),
    blob: (...args) => record(upstream.blob(...args)),
    tags: (...args) => record(upstream.tags(...args)),
    referrers: (...args) => record(upstream.referrers(...args)),
    health() {
      const health = upstream.health()
      const state = health.state === 'ok' && isFailing ? 'failing' : health.state
      if (last === undefined || (state === 'ok' && last.retryAt <= wall())) return health
      const { retryAt, ...lastError } = last
      const retryAfterSeconds = Math.ceil((retryAt - wall()) / 1000)
      return { ...health, state, lastError: { ...lastError, ...(retryAfterSeconds > 0 && { retryAfterSeconds }) } }
    },
  }
}

/** Reports a rate limit that applies to later requests too. */
export class LimitedError extends UpstreamError {
  readonly limit: Limit

  constructor(where: string, limit: Limit) {
    const retryAfterSeconds = Math.max(1, Math.ceil(limit.retryAfterMs / 1000))
    const message = `${where} is rate limiting this mirror for ${retryAfterSeconds} s`
    super('limited', 429, withReason(message, limit.reason), { retryAfterSeconds })
    this.limit = limit
  }
}

/** Converts a 429 response to an error. A limit of less than a second, as ghcr.io sends it, is transient: the request waits for it. */
export async function toLimitError(
  where: string,
  response: TransportResponse,
  clock: Clock,
  read: (text: string) => string | undefined = parseReason,
): Promise<UpstreamError> {
  const text = await readText(response)
  const limit = { ...readLimit(response.header, text, clock.wall()), reason: read(text) }
  if (limit.retryAfterMs >= 1000) return new LimitedError(where, limit)
  return new TransientError('limited', 429, `${where} is rate limiting concurrent requests.`, {
    pauseMs: limit.retryAfterMs,
  })
}

type Header = (name: string) => string | undefined

/** Parses a 429 response. `wall`: the current time, ms since the epoch, for a Retry-After that is a date. */
export function readLimit(header: Header, body: string, wall: number): Limit {
  const text = header('retry-after') ?? /retry-after:\s*([^\s,"]+)/i.exec(body)?.[1]
  const known = text === undefined ? undefined : parseRetryAfter(text, wall)
  const isQuota = parseLeadingNumber(header('ratelimit-remaining')) === 0 || /pull rate limit/i.test(body)
  return {
    scope: isQuota ? 'manifests' : 'all',
    retryAfterMs: Math.min(known ?? defaultRetryAfterMs, maxRetryAfterMs),
    ...(known !== undefined && known <= maxAnnouncedMs && { announcedMs: known }),
  }
}

/**
 * Parses a Retry-After value to milliseconds: seconds, an HTTP date, or a Go duration as ghcr.io sends it (`880.1µs`).
 * https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3
 */
export function parseRetryAfter(text: string, wall: number): number | undefined {
  const trimmed = text.trim()
  if (/^\d+(\.\d+)?$/.test(trimmed)) return Number(trimmed) * 1000
  // The µ may arrive as two bytes of UTF-8, one of Latin-1, or a replacement character.
  const duration = trimmed.replaceAll(/[^\x20-\x7e]+s/g, 'us')
  if (/^(?:\d+(?:\.\d+)?(?:ns|us|ms|s|m|h))+$/.test(duration)) {
    let total = 0
    for (const [, amount, unit] of duration.matchAll(/(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)/g))
      total += Number(amount) * unitMs[unit!]!
    return total
  }
  const date = Date.parse(trimmed)
  return Number.isNaN(date) ? undefined : Math.max(0, date - wall)
}

/** Creates the memory of an upstream's rate limits, by identity, so that no request is sent before a limit ends. */
export function createCooldown(host: string, clock: Clock) {
  /** `until`, `announcedEnd`: monotonic ms. */
  const limits = new Map<string, { until: number; announcedEnd: number | undefined; reason: string | undefined }>()

  function check(identity: Identity, scope: Limit['scope']): void {
    const key = `${scope} ${identity}`
    const limit = limits.get(key)
    if (!limit) return
    const now = clock.monotonic()
    const retryAfterMs = limit.until - now
    const { announcedEnd, reason } = limit
    const announcedMs = announcedEnd !== undefined && announcedEnd > now ? announcedEnd - now : undefined
    if (retryAfterMs > 0) throw new LimitedError(host, { scope, retryAfterMs, announcedMs, reason })
    limits.delete(key)
  }

  return {
    /** Throws a LimitedError while a limit applies to this identity. `spendsQuota`: the request is a GET of a manifest. */
    check(identity: Identity, spendsQuota: boolean): void {
      check(identity, 'all')
      if (spendsQuota) check(identity, 'manifests')
    },
    record(identity: Identity, { scope, retryAfterMs, announcedMs, reason }: Limit): void {
      const key = `${scope} ${identity}`
      const now = clock.monotonic()
      const known = limits.get(key)
      const until = Math.max(known?.until ?? 0, now + retryAfterMs)
      limits.set(key, {
        until,
        announcedEnd: announcedMs === undefined ? known?.announcedEnd : now + announcedMs,
        reason,
      })
    },
  }
}

/**
 * Reads the registry's own message from an error response, as one clean line: the first error message of a JSON body, a short plain
 * text, or an HTML page's title. Undefined when there is none. `secrets`: parts of the request that the line must not repeat.
 * Reads the start of the body and discards the rest.
 */
export async function readReason(
  response: TransportResponse,
  secrets: readonly string[] = [],
): Promise<string | undefined> {
  const reason = parseReason(await readText(response), secrets)
  return isStatusOnly(reason, response.status) ? undefined : reason
}

/** Does the same for a body that was read already. */
export function parseReason(text: string, secrets: readonly string[] = []): string | undefined {
  return toReasonLine(findMessage(text) ?? '', secrets)
}

/** Joins a statement and its reason to one sentence. */
export function withReason(statement: string, reason: string | undefined): string {
  return reason === undefined ? `${statement}.` : `${statement}: ${reason}`
}

/** Reads the start of a body as text; empty when it cannot be read. */
async function readText(response: TransportResponse): Promise<string> {
  const late = setTimeout(() => response.discard(), maxReasonMs)
  const chunks: Uint8Array[] = []
  let length = 0
  try {
    for await (const chunk of response.body) {
      chunks.push(chunk)
      length += chunk.length
      if (length >= maxReasonBytes) break
    }
  } catch (error) {
    // The status alone is enough for a message.
    if (!(error instanceof UpstreamError)) throw error
  } finally {
    clearTimeout(late)
  }
  const bytes = Buffer.concat(chunks)
  const encoding = getContentEncoding(response)
  const plain = encoding === undefined ? bytes : await decodeOrNothing(bytes, encoding)
  return new TextDecoder().decode(plain.subarray(0, maxReasonBytes))
}

async function decodeOrNothing(bytes: Uint8Array, encoding: string): Promise<Uint8Array> {
  try {
    return (await decodeBytes(bytes, encoding, maxReasonBytes, '')) ?? new Uint8Array()
  } catch (error) {
    if (!(error instanceof UpstreamError)) throw error
    return new Uint8Array()
  }
}

function findMessage(text: string): string | undefined {
  const trimmed = text.trim()
  if (/^[[{]/.test(trimmed)) return findJsonMessage(parseJsonOrNothing(trimmed))
  if (/^<(?:!doctype|html|head|body|\?xml)/i.test(trimmed)) return findMarkupMessage(trimmed)
  // The replacement character marks binary content.
  return trimmed.includes('\uFFFD') ? undefined : trimmed
}

function parseJsonOrNothing(text: string): unknown {
  try {
    return readJsonNow(Buffer.from(text))
  } catch (error) {
    if (error instanceof JsonError) return undefined
    throw error
  }
}

/** Finds the message in https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#error-codes and in other shapes. */
function findJsonMessage(value: unknown, depth = 0): string | undefined {
  if (typeof value === 'string') return value.trim() === '' ? undefined : value
  if (depth > 3) return undefined
  if (Array.isArray(value)) return findFirst(value.slice(0, 20), (item) => findJsonMessage(item, depth + 1))
  if (!isObject(value)) return undefined
  const listed = Array.isArray(value['errors']) ? findJsonMessage(value['errors'], depth + 1) : undefined
  return listed ?? findFirst(messageMembers, (name) => findJsonMessage(value[name], depth + 1))
}

function findFirst<T>(items: readonly T[], find: (item: T) => string | undefined): string | undefined {
  for (const item of items) {
    const found = find(item)
    if (found !== undefined) return found
  }
  return undefined
}

/** Finds the title of a page, or the message in a storage's XML. */
function findMarkupMessage(markup: string): string | undefined {
  return /<(title|message)>([^<]{1,1000})<\/\1>/i.exec(markup)?.[2]
}

/** Checks whether a reason only repeats the status: `404 page not found`, `Forbidden`. */
function isStatusOnly(reason: string | undefined, status: number): boolean {
  return (
    reason !== undefined && (/^(?:error\s*)?[1-5]\d\d\b/i.test(reason) || hasSameWords(reason, STATUS_CODES[status]))
  )
}

const hasSameWords = (a: string, b = '') =>
  a.replaceAll(/\W/g, '').toLowerCase() === b.replaceAll(/\W/g, '').toLowerCase()

function toReasonLine(text: string, secrets: readonly string[]): string | undefined {
  let line = stripVTControlCharacters(text.slice(0, 10 * maxReasonLength))
    .replace(markupTags, ' ')
    .replace(unprintable, ' ')
  for (const secret of secrets.toSorted((a, b) => b.length - a.length)) {
    // A secret of a few letters occurs in ordinary words, so a line that contains it is not shown at all.
    if (secret.length < 4 && line.includes(secret)) return undefined
    for (const form of [secret, encodeURIComponent(secret), Buffer.from(secret).toString('base64')])
      line = line.replaceAll(form, '…')
  }
  line = redact(line).replace(/\s+/g, ' ').trim()
  if (!/[\p{L}\p{N}]/u.test(line)) return undefined
  const [start = line] = startOfLine.exec(line) ?? []
  return start.length < line.length ? `${start}…` : line
}
