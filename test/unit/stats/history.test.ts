import { appendFile, readdir, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { getLocalMidnight, type HistoryRange, TrafficHistory } from '../../../src/stats/history.ts'
import { Stats } from '../../../src/stats/stats.ts'
import { temporaryFolder } from '../../support/store/store.ts'

const minute = 60_000
const hour = 60 * minute
const day = 24 * hour
const noon = Date.UTC(2026, 10, 30, 12)

/** Starts histories of one folder, on a clock that the test sets. */
async function createLab(start = noon) {
  const folder = await temporaryFolder()
  const path = join(folder, 'history.jsonl')
  const clock = { now: start, wall: () => clock.now }
  const stats = new Stats(start)
  const begin = async () => {
    const history = new TrafficHistory({ path, totals: stats.totals, clock })
    await history.load()
    return history
  }
  return { folder, path, clock, stats, begin }
}

function sum(history: TrafficHistory, range: HistoryRange): number {
  return history.report(range).buckets.reduce((total, { hits }) => total + hits, 0)
}

/** Returns the bytes of all files of a folder. */
async function measure(folder: string): Promise<number> {
  const sizes = (await readdir(folder)).map(async (name) => (await stat(join(folder, name))).size)
  return (await Promise.all(sizes)).reduce((total, size) => total + size, 0)
}

describe('the history of the traffic', () => {
  test('has a bucket for each minute with traffic, also for the open one', async () => {
    const { clock, stats, begin } = await createLab()
    const history = await begin()
    Object.assign(stats.totals, { pulls: 1, hits: 2, staleServed: 1, misses: 3, errors: 1 })
    Object.assign(stats.totals, { bytesServed: 10, bytesFromUpstream: 7, bytesSaved: 3 })
    history.recordResponse('docker.io', 20.4)
    history.recordResponse('docker.io', 40)
    clock.now += 5 * minute + 10_000
    stats.totals.hits += 4
    expect(history.report('hour')).toEqual({
      range: 'hour',
      step: minute,
      from: noon - 54 * minute,
      to: noon + 6 * minute,
      buckets: [
        {
          at: noon,
          pulls: 1,
          hits: 6,
          stale: 1,
          misses: 3,
          errors: 1,
          bytesServed: 10,
          bytesFromUpstream: 7,
          bytesSaved: 3,
          upstreams: { 'docker.io': { requests: 2, totalMs: 60, maxMs: 40 } },
        },
      ],
    })
    stats.totals.hits += 1
    const [, open] = history.report('hour').buckets
    expect(open).toMatchObject({ at: noon + 5 * minute, hits: 1, misses: 0, upstreams: {} })
  })

  test.each([
    ['hour', minute, 60],
    ['day', minute, 24 * 60],
    ['week', hour, 7 * 24],
    ['month', day, 31],
  ] as const)('covers a %s in steps of %d ms, and nothing before it', async (range, step, count) => {
    const { clock, stats, begin } = await createLab(noon - 40 * day)
    const history = await begin()
    for (; clock.now < noon; clock.now += 30 * minute) {
      stats.totals.hits += 1
      history.roll()
    }
    clock.now = noon
    const report = history.report(range)
    expect(report).toMatchObject({ range, step, to: Math.floor(noon / step) * step + step })
    expect((report.to - report.from) / step).toBe(count)
    const times = report.buckets.map(({ at }) => at)
    expect(times.every((at) => at % step === 0 && at >= report.from && at < report.to)).toBe(true)
    expect(times).toEqual(times.toSorted((a, b) => a - b))
    const expected = Math.floor((noon - report.from) / (30 * minute))
    expect(Math.abs(sum(history, range) - expected)).toBeLessThanOrEqual(1)
  })

  test('adds up what has happened since a time, such as midnight', async () => {
    const { clock, stats, begin } = await createLab()
    const history = await begin()
    stats.totals.hits = 5
    clock.now += minute
    history.roll()
    const since = clock.now
    stats.totals.hits += 2
    stats.totals.pulls += 1
    stats.totals.bytesSaved += 100
    clock.now += minute
    history.roll()
    stats.totals.misses += 1
    expect(history.since(since)).toEqual({
      pulls: 1,
      hits: 2,
      stale: 0,
      misses: 1,
      errors: 0,
      bytesServed: 0,
      bytesFromUpstream: 0,
      bytesSaved: 100,
    })
    const midnight = new Date(getLocalMidnight(noon))
    expect([midnight.getHours(), midnight.getMinutes(), midnight.getDate()]).toEqual([0, 0, new Date(noon).getDate()])
  })

  test('names at most 20 upstreams in a bucket, and the others together', async () => {
    const { begin } = await createLab()
    const history = await begin()
    for (let at = 0; at < 50; at++) history.recordResponse(`registry-${at}.example`, 10)
    history.recordResponse('\u001B[2J', 10)
    history.recordResponse('x'.repeat(300), 10)
    const { upstreams } = history.report('hour').buckets[0]!
    expect(Object.keys(upstreams)).toHaveLength(21)
    expect(upstreams['other']).toEqual({ requests: 32, totalMs: 320, maxMs: 10 })
  })
})

describe('the file of the history', () => {
  test('has the traffic after a restart, also that of the minute in which it came', async () => {
    const { clock, stats, begin } = await createLab()
    const first = await begin()
    stats.totals.hits = 1
    clock.now += minute
    stats.totals.hits += 2
    first.recordResponse('docker.io', 30)
    first.end()
    await first.save()
    const second = await begin()
    expect(second.report('hour')).toEqual(first.report('hour'))
    stats.totals.hits += 4
    second.end()
    await second.save()
    const third = await begin()
    expect(third.report('hour').buckets.map(({ at, hits }) => [at, hits])).toEqual([
      [noon, 3],
      [noon + minute, 4],
    ])
    for (const range of ['day', 'week', 'month'] as const) expect(sum(third, range)).toBe(7)
  })

  test('has all minutes but the last one after a crash', async () => {
    const { clock, stats, begin } = await createLab()
    const crashed = await begin()
    for (let at = 0; at < 10; at++) {
      stats.totals.hits += 1
      clock.now += minute
      await crashed.save()
    }
    stats.totals.hits += 100
    expect(sum(await begin(), 'hour')).toBe(10)
  })

  test.each([
    ['a line that is cut', (path: string) => appendFile(path, '["m",17644')],
    ['a line that is cut in its number', (path: string) => truncateBy(path, 40)],
    ['lines that are none', (path: string) => appendFile(path, 'x\n\n[]\n{}\n["m"]\n["m",1,[],{}]\nnull\n')],
    [
      'a line with a wrong number',
      (path: string) => appendFile(path, `["m",${noon},[0,-1,0,0,0,0,0,0],{}]\n["d",${noon},[0,1,0,0,0,0,0,0],{}]\n`),
    ],
    ['bytes that are no text', (path: string) => appendFile(path, Buffer.from([0xff, 0xfe, 0, 10]))],
  ])('loses nothing else to %s, and is whole after the next minute', async (_, damage) => {
    const { path, clock, stats, begin } = await createLab()
    const first = await begin()
    for (const _minute of [1, 2, 3]) {
      stats.totals.hits += 1
      clock.now += minute
      await first.save()
    }
    await damage(path)
    const second = await begin()
    const kept = sum(second, 'hour')
    expect(kept).toBeGreaterThanOrEqual(2)
    stats.totals.hits += 1
    clock.now += minute
    await second.save()
    expect((await readFile(path, 'utf8')).split('\n').every((line) => line === '' || JSON.parse(line))).toBe(true)
    const third = await begin()
    for (const range of ['hour', 'day', 'week', 'month'] as const) expect(sum(third, range)).toBe(kept + 1)
  })

  test.each([
    ['removed', (path: string) => rm(path)],
    ['emptied', (path: string) => writeFile(path, '')],
    ['made longer', (path: string) => appendFile(path, 'x'.repeat(100))],
  ])('is written again when somebody has %s it', async (_, change) => {
    const { path, clock, stats, begin } = await createLab()
    const history = await begin()
    for (let at = 0; at < 3; at++) {
      stats.totals.hits += 1
      clock.now += minute
      await history.save()
      if (at === 1) await change(path)
    }
    expect(sum(await begin(), 'hour')).toBe(3)
  })

  test('is started again when it is too large to be one', async () => {
    const { path, clock, stats, begin } = await createLab()
    await writeFile(path, '["m"]\n'.repeat(1_000_000))
    const history = await begin()
    stats.totals.hits += 1
    clock.now += minute
    await history.save()
    expect((await stat(path)).size).toBeLessThan(1000)
    expect(sum(await begin(), 'hour')).toBe(1)
  })

  test('has everything after a write that failed', async () => {
    const { folder, path, clock, stats, begin } = await createLab()
    const history = await begin()
    stats.totals.hits += 1
    clock.now += minute
    await rm(folder, { recursive: true })
    await writeFile(folder, 'a file in its place')
    await expect(history.save()).rejects.toThrow(/ENOTDIR|EEXIST/)
    await rm(folder)
    await history.save()
    expect((await stat(path)).mode & 0o777).toBe(0o600)
    expect(sum(await begin(), 'hour')).toBe(1)
  })

  test('is not written while there is no traffic', async () => {
    const { path, clock, begin } = await createLab()
    const history = await begin()
    for (let at = 0; at < 100; at++) {
      clock.now += minute
      await history.save()
    }
    await expect(stat(path)).rejects.toThrow('ENOENT')
  })
})

describe('a clock that jumps', () => {
  test('back adds to the minutes that were', async () => {
    const { clock, stats, begin } = await createLab()
    const history = await begin()
    stats.totals.hits += 1
    clock.now += minute
    stats.totals.hits += 1
    history.roll()
    clock.now -= minute
    history.roll()
    stats.totals.hits += 1
    history.end()
    await history.save()
    clock.now += minute
    for (const known of [history, await begin()]) expect(sum(known, 'hour')).toBe(3)
  })

  test.each([
    ['forward by a century', 100 * 365 * day],
    ['back by a century', -50 * 365 * day],
    ['to the end of time', 8.64e15 - noon],
    ['to before 1970', -noon - day],
  ])('%s and back loses nothing', async (_, jump) => {
    const { clock, stats, begin } = await createLab(noon - day)
    let history = await begin()
    for (; clock.now < noon; clock.now += minute) {
      stats.totals.hits += 1
      history.roll()
    }
    await history.save()
    const before = [sum(history, 'day'), sum(history, 'week'), sum(history, 'month')]
    for (let round = 0; round < 3; round++) {
      clock.now += jump
      history.roll()
      stats.totals.hits += 1
      history.end()
      await history.save()
      history = await begin()
      expect(() => history.report('month')).not.toThrow()
      clock.now -= jump
      history = await begin()
    }
    expect([sum(history, 'day'), sum(history, 'week'), sum(history, 'month')]).toEqual(before)
  })

  test('again and again does not make it grow', async () => {
    const { folder, clock, stats, begin } = await createLab()
    const history = await begin()
    let seed = 1
    for (let at = 0; at < 4000; at++) {
      seed = (seed * 1_103_515_245 + 12_345) % 2_147_483_648
      clock.now = seed * 100_000
      stats.totals.hits += 1
      history.recordResponse('docker.io', 5)
      if (at % 500 === 0) await history.save()
    }
    await history.save()
    expect(await measure(folder)).toBeLessThan(3_000_000)
    const loaded = await begin()
    for (const range of ['day', 'week', 'month'] as const)
      expect(loaded.report(range).buckets.length).toBeLessThanOrEqual(24 * 60)
  })
})

test('400 days with 50 upstreams take less than 5 MB, and little work', async () => {
  const { folder, path, clock, stats, begin } = await createLab(noon - 400 * day)
  let history = await begin()
  let largest = 0
  const begun = performance.now()
  for (let minutes = 0; clock.now < noon; minutes++, clock.now += clock.now < noon - 2 * day ? hour : minute) {
    for (let at = 0; at < 50; at++)
      history.recordResponse(`registry-${(minutes * 7 + at) % 50}.example.internal:5000`, 1234.5)
    stats.totals.hits += 7
    stats.totals.bytesServed += 123_456_789
    await history.save()
    if (minutes % 100 === 0) largest = Math.max(largest, await measure(folder))
    if (minutes % 1000 === 999) history = await begin()
  }
  history.end()
  await history.save()
  largest = Math.max(largest, await measure(folder))
  const took = performance.now() - begun
  console.log(`the folder had at most ${largest} bytes; 400 days took ${Math.round(took)} ms`)
  // The temporary file of a rewrite comes on top of it, at most 2 MB.
  expect(largest).toBeLessThanOrEqual(3_000_000)
  const loaded = await begin()
  expect(loaded.report('month').buckets).toHaveLength(31)
  expect(loaded.report('week').buckets.length).toBeGreaterThanOrEqual(7 * 24 - 1)
  expect(loaded.report('month')).toEqual(history.report('month'))
  expect((await readFile(path, 'utf8')).split('\n').filter((line) => line.startsWith('["d"')).length).toBeGreaterThan(
    390,
  )
}, 120_000)

async function truncateBy(path: string, bytes: number): Promise<void> {
  await truncate(path, (await stat(path)).size - bytes)
}
