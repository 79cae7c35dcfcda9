import { STATUS_CODES } from 'node:http'
import { stripVTControlCharacters } from 'node:util'
import { isObject, JsonError, readJsonNow } from '../lib/json.ts'
import { redact } from '../lib/logger.ts'
import type { WorkWatcher } from '../lib/system-errors.ts'
import type { Clock } from '../lib/time.ts'
import type { Identity } from '../oci/registry.ts'
import { decodeBytes, getContentEncoding } from './body.ts'
import { TransientError } from './retry.ts'
import type { TransportResponse } from './transport.ts'
import { type RateLimit, type Upstream, UpstreamError, type UpstreamFailure } from './upstream.ts'

/**
 * What a registry's 4xx answer says about the content that was asked for. A status that is not listed here is about the request
 * (400, 405, 406, 409, 411, 413 to 417, 421, 422, 424, 426, 428, 431 …): the registry did not understand it, and said nothing
 * about the content, so a cached tag stays.
 */
const statusMeanings: ReadonlyMap<number, 'absent' | 'denied' | 'later' | 'proxy'> = new Map([
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
  return statusMeanings.get(status) === 'denied'
}

interface RefusalOptions {
  /** Statuses of the registry's own that mean the same as a 404 here. */
  readonly meansAbsent?: readonly number[] | undefined
  /** What was sent to the upstream and must not be shown. */
  readonly secrets?: readonly string[] | undefined
}

/** The failure that an answer other than the wanted one is, with the registry's own reason. Lets go of its body. */
export async function toUpstreamError(
  host: string,
  answer: TransportResponse,
  clock: Clock,
  { meansAbsent = [], secrets = [] }: RefusalOptions = {},
): Promise<UpstreamError> {
  const { status, redirectHost: foreign, isStorage: storage } = answer
  const where = foreign === undefined ? host : `${host} (redirected to ${foreign})`
  if (status === 429 && !storage) return toLimitError(where, answer, clock, (text) => parseReason(text, secrets))
  const reason = await readReason(answer, secrets)
  const meaning = statusMeanings.get(status)
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

const recordedFailures: ReadonlySet<UpstreamFailure> = new Set(['unavailable', 'limited', 'invalid'])
/** Only an upstream that was asked refuses, or says that there is nothing. */
const answeredFailures: ReadonlySet<UpstreamFailure> = new Set(['absent', 'denied'])

/**
 * The same upstream, whose health tells the last failure too: why it is left alone, or until when it wants no more requests.
 * `wall`: wall clock ms. `watcher` hears whether each request got through to the upstream.
 */
export function noteFailures(upstream: Upstream, wall: () => number, watcher?: WorkWatcher): Upstream {
  let last: { readonly message: string; readonly at: number } | undefined
  let retryAt = 0

  async function record<T>(ask: Promise<T>): Promise<T> {
    try {
      const answer = await ask
      watcher?.worked()
      return answer
    } catch (error) {
      if (error instanceof UpstreamError && answeredFailures.has(error.failure)) watcher?.worked()
      else watcher?.failed(error)
      if (error instanceof UpstreamError && recordedFailures.has(error.failure)) {
        const now = wall()
        retryAt = error.retryAfterSeconds === undefined ? 0 : now + error.retryAfterSeconds * 1000
        last = { message: error.message, at: now }
      }
      throw error
    }
  }

  return {
    host: upstream.host,
    identity: (access) => upstream.identity(access),
    resolve: (...args) => record(upstream.resolve(...args)),
    manifest: (...args) => record(upstream.manifest(...args)),
    statBlob: (...args) => record(upstream.statBlob(...args)),
    blob: (...args) => record(upstream.blob(...args)),
    tags: (...args) => record(upstream.tags(...args)),
    referrers: (...args) => record(upstream.referrers(...args)),
    health() {
      const health = upstream.health()
      const left = retryAt - wall()
      if (last === undefined || (health.state === 'ok' && left <= 0)) return health
      return { ...health, lastError: { ...last, ...(left > 0 && { retryAfterSeconds: Math.ceil(left / 1000) }) } }
    },
  }
}

/** A 429 that has to be remembered. */
export class LimitedError extends UpstreamError {
  readonly limit: Limit

  constructor(where: string, limit: Limit) {
    const retryAfterSeconds = Math.max(1, Math.ceil(limit.retryAfterMs / 1000))
    const message = `${where} wants no more requests from here for ${retryAfterSeconds} s`
    super('limited', 429, withReason(message, limit.reason), { retryAfterSeconds })
    this.limit = limit
  }
}

/** The failure that a 429 answer is. A limit of less than a second, ghcr.io's habit, is worth waiting for. */
export async function toLimitError(
  where: string,
  answer: TransportResponse,
  clock: Clock,
  read: (text: string) => string | undefined = parseReason,
): Promise<UpstreamError> {
  const text = await readText(answer)
  const limit = { ...readLimit(answer.header, text, clock.wall()), reason: read(text) }
  if (limit.retryAfterMs >= 1000) return new LimitedError(where, limit)
  return new TransientError('limited', 429, `${where} wants fewer requests at once.`, { pauseMs: limit.retryAfterMs })
}

/** What a 429 answer limits: `manifests` = Docker Hub's pull quota, spent by GETs of manifests only; `all` = every request. */
interface Limit {
  readonly scope: 'manifests' | 'all'
  readonly retryAfterMs: number
  /** The upstream's own words. */
  readonly reason?: string | undefined
}

type Header = (name: string) => string | undefined

const defaultRetryAfterMs = 60_000
const maxRetryAfterMs = 3_600_000
const unitMs: Record<string, number> = { ns: 1e-6, us: 1e-3, ms: 1, s: 1000, m: 60_000, h: 3_600_000 }

/** Reads a 429 answer. `wall`: the time now, ms since the epoch, for a Retry-After that is a date. */
export function readLimit(header: Header, body: string, wall: number): Limit {
  const told = header('retry-after') ?? /retry-after:\s*([^\s,"]+)/i.exec(body)?.[1]
  const retryAfterMs = (told === undefined ? undefined : parseRetryAfter(told, wall)) ?? defaultRetryAfterMs
  const isQuota = parseLeadingNumber(header('ratelimit-remaining')) === 0 || /pull rate limit/i.test(body)
  return { scope: isQuota ? 'manifests' : 'all', retryAfterMs: Math.min(retryAfterMs, maxRetryAfterMs) }
}

/**
 * Milliseconds from a Retry-After value: seconds, an HTTP date, or a Go duration as ghcr.io sends it (`880.1µs`).
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

/** Docker Hub's `ratelimit-limit: 100;w=21600` and its companions; undefined when they are not there. */
export function readRateLimit(header: Header, wall: number): RateLimit | undefined {
  const limit = parseLeadingNumber(header('ratelimit-limit'))
  const remaining = parseLeadingNumber(header('ratelimit-remaining'))
  const window = /;\s*w=(\d+)/.exec(header('ratelimit-limit') ?? '')?.[1]
  if (limit === undefined || remaining === undefined || window === undefined) return undefined
  return {
    limit,
    remaining,
    windowSeconds: Number(window),
    source: header('docker-ratelimit-source'),
    at: wall,
  }
}

function parseLeadingNumber(text: string | undefined): number | undefined {
  const digits = /^\s*(\d+)/.exec(text ?? '')?.[1]
  return digits === undefined ? undefined : Number(digits)
}

/** Remembers who was told to wait, so that the upstream is not asked before the time is over. */
interface Cooldown {
  /** Throws a LimitedError while a request by this identity would be in vain; `spendsQuota`: it is a GET of a manifest. */
  check(identity: Identity, spendsQuota: boolean): void
  record(identity: Identity, limit: Limit): void
}

export function createCooldown(host: string, clock: Clock): Cooldown {
  const limits = new Map<string, { readonly until: number; readonly reason: string | undefined }>()

  function check(identity: Identity, scope: Limit['scope']): void {
    const key = `${scope} ${identity}`
    const limit = limits.get(key)
    if (!limit) return
    const retryAfterMs = limit.until - clock.monotonic()
    if (retryAfterMs > 0) throw new LimitedError(host, { scope, retryAfterMs, reason: limit.reason })
    limits.delete(key)
  }

  return {
    check(identity, spendsQuota) {
      check(identity, 'all')
      if (spendsQuota) check(identity, 'manifests')
    },
    record(identity, { scope, retryAfterMs, reason }) {
      const key = `${scope} ${identity}`
      limits.set(key, { until: Math.max(limits.get(key)?.until ?? 0, clock.monotonic() + retryAfterMs), reason })
    },
  }
}

/** An error body is read up to here, and for so long; both are far more than a sentence needs. */
const maxReasonBytes = 16 * 1024
const maxReasonMs = 1000
/** Characters of a reason. */
const maxReasonLength = 300

/**
 * The registry's own words in an error answer, as one clean line: the first error message of its JSON body, a short plain text,
 * or an HTML page's title. Undefined when it says nothing. `secrets`: what was sent to it and must not come back out.
 * Reads the body's start and lets go of the rest.
 */
export async function readReason(
  answer: TransportResponse,
  secrets: readonly string[] = [],
): Promise<string | undefined> {
  const reason = parseReason(await readText(answer), secrets)
  return isStatusOnly(reason, answer.status) ? undefined : reason
}

/** The same for a body that was read already. */
export function parseReason(text: string, secrets: readonly string[] = []): string | undefined {
  return toReasonLine(findMessage(text) ?? '', secrets)
}

/** A statement with the reason for it, as one sentence. */
export function withReason(statement: string, reason: string | undefined): string {
  return reason === undefined ? `${statement}.` : `${statement}: ${reason}`
}

/** The start of a short body as text; empty when it cannot be read. */
async function readText(answer: TransportResponse): Promise<string> {
  const late = setTimeout(() => answer.discard(), maxReasonMs)
  const chunks: Uint8Array[] = []
  let length = 0
  try {
    for await (const chunk of answer.body) {
      chunks.push(chunk)
      length += chunk.length
      if (length >= maxReasonBytes) break
    }
  } catch (error) {
    // The status alone says enough.
    if (!(error instanceof UpstreamError)) throw error
  } finally {
    clearTimeout(late)
  }
  const bytes = Buffer.concat(chunks)
  const encoding = getContentEncoding(answer)
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

/** Where registries and token servers put their sentence, the most telling member first. */
const messageMembers = ['message', 'error_description', 'details', 'detail', 'reason', 'error', 'title']

function findMessage(text: string): string | undefined {
  const trimmed = text.trim()
  if (/^[[{]/.test(trimmed)) return findJsonMessage(parseJsonOrNothing(trimmed))
  if (/^<(?:!doctype|html|head|body|\?xml)/i.test(trimmed)) return findMarkupMessage(trimmed)
  // What is no text is no sentence.
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

/** https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#error-codes, and what others send instead. */
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

/** The title of a page, or the message of a storage's XML. */
function findMarkupMessage(markup: string): string | undefined {
  return /<(title|message)>([^<]{1,1000})<\/\1>/i.exec(markup)?.[2]
}

/** `404 page not found`, `Forbidden`: nothing that the status does not say. */
function isStatusOnly(reason: string | undefined, status: number): boolean {
  return (
    reason !== undefined && (/^(?:error\s*)?[1-5]\d\d\b/i.test(reason) || hasSameWords(reason, STATUS_CODES[status]))
  )
}

const hasSameWords = (a: string, b = '') =>
  a.replaceAll(/\W/g, '').toLowerCase() === b.replaceAll(/\W/g, '').toLowerCase()

const markupTags = /<\/?[a-z!][^<>]*>/gi
/** Control and format characters, line separators, and halves of characters. */
const unprintable = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]+/gu
const startOfLine = new RegExp(`^.{${maxReasonLength}}`, 'u')

function toReasonLine(text: string, secrets: readonly string[]): string | undefined {
  let line = stripVTControlCharacters(text.slice(0, 10 * maxReasonLength))
    .replace(markupTags, ' ')
    .replace(unprintable, ' ')
  for (const secret of secrets.toSorted((a, b) => b.length - a.length)) {
    // A secret of a letter or two is in every sentence: then there is none that can be shown.
    if (secret.length < 4 && line.includes(secret)) return undefined
    for (const form of [secret, encodeURIComponent(secret), Buffer.from(secret).toString('base64')])
      line = line.replaceAll(form, '…')
  }
  line = redact(line).replace(/\s+/g, ' ').trim()
  if (!/[\p{L}\p{N}]/u.test(line)) return undefined
  const [start = line] = startOfLine.exec(line) ?? []
  return start.length < line.length ? `${start}…` : line
}
