import type { RateLimit } from './upstream.ts'

/** What a 429 answer limits: `manifests` = Docker Hub's pull quota, spent by GETs of manifests only; `all` = every request. */
export interface Limit {
  readonly scope: 'manifests' | 'all'
  readonly retryAfterMs: number
  /** The upstream's own words. */
  readonly reason?: string | undefined
}

type Header = (name: string) => string | undefined

const defaultMs = 60_000
const longestMs = 3_600_000
const unitMs: Record<string, number> = { ns: 1e-6, us: 1e-3, ms: 1, s: 1000, m: 60_000, h: 3_600_000 }

/** Reads a 429 answer. `wall`: the time now, ms since the epoch, for a Retry-After that is a date. */
export function readLimit(header: Header, body: string, wall: number): Limit {
  const told = header('retry-after') ?? /retry-after:\s*([^\s,"]+)/i.exec(body)?.[1]
  const retryAfterMs = (told === undefined ? undefined : parseRetryAfter(told, wall)) ?? defaultMs
  const isQuota = leadingNumber(header('ratelimit-remaining')) === 0 || /pull rate limit/i.test(body)
  return { scope: isQuota ? 'manifests' : 'all', retryAfterMs: Math.min(retryAfterMs, longestMs) }
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
  const limit = leadingNumber(header('ratelimit-limit'))
  const remaining = leadingNumber(header('ratelimit-remaining'))
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

function leadingNumber(text: string | undefined): number | undefined {
  const digits = /^\s*(\d+)/.exec(text ?? '')?.[1]
  return digits === undefined ? undefined : Number(digits)
}
