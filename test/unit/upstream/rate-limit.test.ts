import { describe, expect, test } from 'vitest'
import { parseRetryAfter, readLimit } from '../../../src/upstream/failures.ts'
import { readRateLimit } from '../../../src/upstream/rate-limit.ts'

const now = Date.parse('2026-11-01T12:00:00Z')
const headers = (values: Record<string, string>) => (name: string) => values[name]

describe('Retry-After', () => {
  test.each([
    ['30', 30_000],
    ['0.25', 250],
    ['Sun, 01 Nov 2026 12:00:10 GMT', 10_000],
    ['Sun, 01 Nov 2026 11:00:00 GMT', 0],
    ['880µs', 0.88],
    ['880.5\u00c2\u00b5s', 0.8805],
    ['880\ufffds', 0.88],
    ['1m30.5s', 90_500],
    ['soon', undefined],
  ])('is read in every form that servers send: %s', (text, ms) => {
    const parsed = parseRetryAfter(text, now)
    if (ms === undefined) expect(parsed).toBeUndefined()
    else expect(parsed).toBeCloseTo(ms, 6)
  })
})

describe('a 429', () => {
  test('of the pull quota limits GETs of manifests, recognized by its text or by the quota headers', () => {
    const text = '{"errors":[{"message":"You have reached your unauthenticated pull rate limit."}]}'
    expect(readLimit(headers({}), text, now)).toEqual({ scope: 'manifests', retryAfterMs: 60_000 })
    const spent = headers({ 'ratelimit-remaining': '0;w=21600', 'retry-after': '120' })
    expect(readLimit(spent, '', now)).toEqual({ scope: 'manifests', retryAfterMs: 120_000, announcedMs: 120_000 })
  })

  test('of the abuse limit limits everything', () => {
    expect(readLimit(headers({}), 'Too Many Requests (HAP429)', now).scope).toBe('all')
    expect(readLimit(headers({ 'ratelimit-remaining': '12;w=21600' }), '', now).scope).toBe('all')
  })

  test('is never remembered for longer than an hour', () => {
    const scope = 'all'
    const read = (seconds: string) => readLimit(headers({ 'retry-after': seconds }), '', now)
    expect(read('9999999')).toEqual({ scope, retryAfterMs: 3_600_000, announcedMs: 9_999_999_000 })
    // No calendar has this time.
    expect(read('9'.repeat(30))).toEqual({ scope, retryAfterMs: 3_600_000 })
  })

  test('may have its time in the body', () => {
    const body = '{"errors":[{"message":"retry-after: 880.123µs, allowed: 44000/minute"}]}'
    expect(readLimit(headers({}), body, now).retryAfterMs).toBeCloseTo(0.880123, 6)
  })
})

describe('quota headers', () => {
  test('are read with their window and source', () => {
    const sent = headers({
      'ratelimit-limit': '100;w=21600',
      'ratelimit-remaining': '76;w=21600',
      'docker-ratelimit-source': '192.0.2.7',
    })
    expect(readRateLimit(sent, now)).toEqual({
      limit: 100,
      remaining: 76,
      windowSeconds: 21600,
      source: '192.0.2.7',
      at: now,
    })
  })

  test('are ignored when their numbers are too large to be meant, because no date can have them', () => {
    const sent = { 'ratelimit-remaining': '1', 'ratelimit-reset': '9999999999999' }
    expect(readRateLimit(headers({ ...sent, 'ratelimit-limit': '100;w=99999999999999' }), now)).toBeUndefined()
    const read = readRateLimit(headers({ ...sent, 'ratelimit-limit': '100;w=9999999' }), now)
    expect(read).toMatchObject({ remaining: 1, resetsAt: undefined })
  })

  test('are ignored when they have no window', () => {
    expect(readRateLimit(headers({ 'ratelimit-limit': '2000', 'ratelimit-remaining': '1999' }), now)).toBeUndefined()
    expect(readRateLimit(headers({}), now)).toBeUndefined()
  })
})
