import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { describe, expect, test } from 'vitest'
import { type AnsweredRequest, maxRecentRequests, RecentRequests } from '../../../src/stats/requests.ts'

const digest = `sha256:${'0'.repeat(64)}`
setFlagsFromString('--expose-gc')
const collectGarbage = runInNewContext('gc') as () => void

let now = Date.UTC(2026, 10, 30, 12)
const clock = { wall: () => now }

function answered(changes: Partial<AnsweredRequest> = {}): AnsweredRequest {
  return {
    id: 'a',
    listener: 'cache',
    method: 'GET',
    kind: 'manifest',
    repository: 'docker.io/library/app',
    reference: 'v1',
    status: 200,
    cache: 'hit',
    reason: undefined,
    bytes: 7,
    ms: 3,
    client: '127.0.0.1',
    agent: 'docker/28.0.1',
    error: undefined,
    warning: undefined,
    ...changes,
  }
}

describe('the last requests', () => {
  test('are listed with the newest first, and with what is known of each', () => {
    const recent = new RecentRequests(clock)
    recent.record(answered())
    now += 1000
    const failed = { id: 'b', kind: undefined, repository: undefined, reference: undefined, cache: undefined }
    recent.record(answered({ ...failed, agent: undefined, status: 404, error: 'There is none.' }))
    const at = (milliseconds: number) => new Date(milliseconds).toISOString()
    const common = { listener: 'cache', method: 'GET', bytes: 7, ms: 3, client: '127.0.0.1' }
    expect(recent.list({ limit: 10 })).toEqual([
      { ...common, id: 'b', at: at(now), status: 404, outcome: 'failed', error: 'There is none.' },
      {
        ...common,
        id: 'a',
        at: at(now - 1000),
        kind: 'manifest',
        repository: 'docker.io/library/app',
        reference: 'v1',
        status: 200,
        cache: 'hit',
        outcome: 'hit',
        agent: 'docker/28.0.1',
      },
    ])
  })

  test('name their outcome: a check is one also when it is a hit', () => {
    const recent = new RecentRequests(clock)
    recent.record(answered({ probe: true }))
    recent.record(answered({ method: 'HEAD', status: 404 }))
    recent.record(answered({ cache: 'revalidated' }))
    expect(recent.list({ limit: 3 }).map(({ outcome }) => outcome)).toEqual(['hit', 'absent', 'check'])
  })

  test('say why content was missing, and when it was evicted', () => {
    const recent = new RecentRequests(clock)
    recent.record(answered({ cache: 'miss', reason: 'evicted' }), Date.UTC(2026, 10, 29))
    expect(recent.list({ limit: 1 })).toMatchObject([
      { cache: 'miss', reason: 'evicted', evictedAt: '2026-11-29T00:00:00.000Z' },
    ])
  })

  test('are forgotten beyond the limit, the oldest first', () => {
    const recent = new RecentRequests(clock)
    for (let at = 0; at < maxRecentRequests + 500; at++) recent.record(answered({ id: String(at) }))
    const ids = recent.list({ limit: Infinity }).map(({ id }) => Number(id))
    expect(ids).toHaveLength(maxRecentRequests)
    expect([ids[0], ids.at(-1)]).toEqual([maxRecentRequests + 499, 500])
    expect(ids).toEqual(ids.toSorted((a, b) => b - a))
  })

  test('are selected by repository, tag and digest', () => {
    const recent = new RecentRequests(clock)
    recent.record(answered({ id: 'tag' }))
    recent.record(answered({ id: 'other tag', reference: 'v2' }))
    recent.record(answered({ id: 'blob', kind: 'blob', reference: digest }))
    recent.record(answered({ id: 'other repository', repository: 'ghcr.io/app', reference: digest }))
    recent.record(answered({ id: 'no repository', repository: undefined, reference: undefined }))
    const select = (selection: { repositories?: string[]; reference?: string }) =>
      recent.list({ ...selection, limit: 10 }).map(({ id }) => id)
    const repositories = ['docker.io/library/app', 'app']
    expect(select({ repositories })).toEqual(['blob', 'other tag', 'tag'])
    expect(select({ repositories, reference: 'v1' })).toEqual(['blob', 'tag'])
    expect(select({ repositories, reference: digest })).toEqual(['blob'])
    expect(select({ reference: digest })).toEqual(['other repository', 'blob'])
  })

  test('show no secret and no control character of a client or upstream', () => {
    const recent = new RecentRequests(clock)
    recent.record(answered({ agent: 'evil\u001B[2J', error: 'refused: Bearer abcdefghijkl\n\u0007' }))
    const [report] = recent.list({ limit: 1 })
    expect(report!.agent).toBe('evil?[2J')
    expect(report!.error).not.toMatch(/abcdefghijkl|\p{Cc}/u)
  })

  test('take little memory, also when every text is as long as it can be', () => {
    const recent = new RecentRequests(clock)
    const longest = (length: number, at: number) => String(at).padStart(length, 'x')
    const fill = (round: number) => {
      for (let at = 0; at < maxRecentRequests; at++)
        recent.record(
          answered({
            id: longest(16, at),
            repository: longest(255 + 253, at + round),
            reference: `sha512:${longest(128, at + round)}`,
            agent: longest(200, at + round),
            error: longest(100_000, at + round),
          }),
        )
    }
    fill(1)
    collectGarbage()
    const before = process.memoryUsage().heapUsed
    for (let round = 2; round < 6; round++) fill(round)
    collectGarbage()
    // A text that kept the one alive from which it was cut would need 200 MB.
    expect(process.memoryUsage().heapUsed).toBeLessThan(before + 20 * 1024 * 1024)
    expect(JSON.stringify(recent.list({ limit: Infinity })).length).toBeLessThan(4 * 1024 * 1024)
  })

  test('reach each subscriber when they are answered, until it unsubscribes', () => {
    const recent = new RecentRequests(clock)
    const seen: string[] = []
    const unsubscribe = recent.subscribe((_, toReport) => void seen.push(toReport().id))
    recent.record(answered({ id: 'one' }))
    recent.record(answered({ id: 'two' }))
    unsubscribe()
    recent.record(answered({ id: 'three' }))
    expect(seen).toEqual(['one', 'two'])
  })
})
