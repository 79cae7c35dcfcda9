import type { IncomingMessage } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, onTestFinished, test } from 'vitest'
import type { DownloadReport, LiveSummary, RequestReport } from '../../../src/admin/activity.ts'
import type { AdminApi } from '../../../src/admin/api.ts'
import { EventFeed } from '../../../src/admin/dashboard/events.ts'
import { createAdminHandler } from '../../../src/admin/handler.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { listen } from '../../../src/server/listen.ts'
import type { RequestListener } from '../../../src/stats/requests.ts'
import { createHostGuard } from '../../../src/server/request-guard.ts'
import { expectError } from '../../support/expect-content.ts'
import { get, open } from '../../support/get.ts'

interface SentEvent {
  readonly name: string
  readonly data: unknown
  readonly at: number
}

/** Serves the events of made-up sources, and counts how the sources are used. */
async function startFeed(batchMs?: number) {
  const listeners = new Set<RequestListener>()
  const downloads: DownloadReport[] = []
  const counts = { summaries: 0 }
  const feed = new EventFeed({
    sources: Promise.resolve({
      subscribe(listener) {
        listeners.add(listener)
        return () => void listeners.delete(listener)
      },
      listDownloads: () => downloads,
      summarize: async () => {
        counts.summaries += 1
        return { at: new Date().toISOString(), offline: false } as LiveSummary
      },
    }),
    logger: silentLogger,
    ...(batchMs !== undefined && { batchMs }),
  })
  const handle = createAdminHandler({
    api: {} as AdminApi,
    listTroubles: async () => [],
    guard: createHostGuard([], () => {}),
    token: 't',
    events: feed,
    logger: silentLogger,
  })
  const listener = await listen({ host: '127.0.0.1', port: 0 }, handle)
  onTestFinished(() => listener.close(0))
  onTestFinished(() => feed.close())
  const answer = (fields: Partial<RequestReport> = {}) => {
    const report = { ...request, ...fields }
    for (const one of listeners) one({ ...report, cache: report.cache }, () => report)
  }
  return { feed, listener, url: listener.url, listeners, downloads, counts, answer }
}

const request: RequestReport = {
  outcome: 'hit',
  id: 'a1',
  at: '2026-01-01T00:00:00.000Z',
  listener: 'cache',
  method: 'GET',
  status: 200,
  cache: 'hit',
  bytes: 1,
  ms: 1,
  client: '127.0.0.1',
}

/** Listens as a page does. */
async function listenTo(url: string) {
  const response = await open(url, '/api/events')
  const events: SentEvent[] = []
  let rest = ''
  response.setEncoding('utf8').on('data', (text: string) => {
    const blocks = (rest + text).split('\n\n')
    rest = blocks.pop()!
    for (const block of blocks) {
      const [, name, data] = /^event: (\w+)\ndata: (.*)$/.exec(block) ?? []
      if (name !== undefined) events.push({ name, data: JSON.parse(data!), at: performance.now() })
    }
  })
  response.on('error', () => {})
  onTestFinished(() => void response.destroy())
  return { response, events, find: (name: string) => events.filter((event) => event.name === name) }
}

function waitForEnd(response: IncomingMessage): Promise<unknown> {
  return new Promise((resolve) => response.once('close', resolve))
}

describe('the events of the dashboard', () => {
  test('tells a page that connects during a download when that has ended before the next batch', async () => {
    const { url, downloads } = await startFeed()
    downloads.push({
      digest: 'sha256:1',
      repository: 'docker.io/library/app',
      arrived: 1,
      followers: 1,
      bytesPerSecond: 1,
      startedAt: request.at,
    })
    const { find } = await listenTo(url)
    downloads.pop()
    await expect.poll(() => find('downloads').at(-1)?.data, { timeout: 5000 }).toEqual([])
  })

  test('begin with the downloads and a summary, which is repeated every two seconds', async () => {
    const { url } = await startFeed()
    const { response, events, find } = await listenTo(url)
    expect(response.headers).toMatchObject({ 'content-type': 'text/event-stream', 'cache-control': 'no-store' })
    await expect.poll(() => events.map(({ name }) => name)).toEqual(['downloads', 'summary'])
    await expect.poll(() => find('summary').length, { timeout: 6000 }).toBe(3)
    const [first, second, third] = find('summary')
    expect(third!.at - second!.at).toBeGreaterThan(1500)
    expect(first!.data).toMatchObject({ offline: false })
  })

  test('carry requests at most four times a second, a hundred at a time, and count the others', async () => {
    const { url, answer } = await startFeed()
    const { find } = await listenTo(url)
    await expect.poll(() => find('summary').length).toBe(1)
    for (let count = 0; count < 250; count++) answer({ id: `r${count}` })
    await expect.poll(() => find('requests').length).toBe(1)
    const { requests, omitted } = find('requests')[0]!.data as { requests: RequestReport[]; omitted: number }
    expect([requests.length, omitted, requests[0]!.id]).toEqual([100, 150, 'r0'])

    const from = performance.now()
    while (performance.now() - from < 1200) {
      answer()
      await sleep(10)
    }
    const batches = find('requests').filter(({ at }) => at >= from)
    expect(batches.length).toBeGreaterThan(1)
    expect(batches.length).toBeLessThanOrEqual(6)
  })

  test('carry the list of downloads whenever it has changed', async () => {
    const { url, downloads } = await startFeed()
    const { find } = await listenTo(url)
    await expect.poll(() => find('downloads').map(({ data }) => data)).toEqual([[]])
    const download = { digest: 'sha256:1', repository: 'docker.io/library/app', arrived: 5 } as DownloadReport
    downloads.push(download)
    await expect.poll(() => find('downloads').map(({ data }) => data)).toEqual([[], [download]])
    await sleep(600)
    downloads.length = 0
    await expect.poll(() => find('downloads').map(({ data }) => data)).toEqual([[], [download], []])
  })

  test('tell what has changed: by a command, by a push, and by a miss', async () => {
    const { url, feed, answer } = await startFeed()
    const { find } = await listenTo(url)
    await expect.poll(() => find('summary').length).toBe(1)
    answer({ cache: 'miss' })
    answer({ listener: 'registry', method: 'PUT', cache: 'own' })
    feed.announce('offline')
    feed.announce('offline')
    await expect
      .poll(() => find('changed').map(({ data }) => data), { timeout: 4000 })
      .toEqual([{ what: ['images', 'registry', 'offline'] }])
  })

  test('cost nothing while nobody listens', async () => {
    const { url, counts, listeners, feed } = await startFeed()
    feed.announce('images')
    expect([counts.summaries, listeners.size]).toEqual([0, 0])
    const { response } = await listenTo(url)
    await expect.poll(() => counts.summaries).toBe(1)
    expect(listeners.size).toBe(1)
    response.destroy()
    await expect.poll(() => listeners.size).toBe(0)
    await sleep(2300)
    expect(counts.summaries).toBe(1)
  })

  test('are sent to twenty pages; one more gets a 503', async () => {
    const { url } = await startFeed()
    const pages = await Promise.all(Array.from({ length: 20 }, () => listenTo(url)))
    const refused = await get(url, '/api/events')
    expectError(refused, 503)
    expect(refused.headers['retry-after']).toBe('5')
    pages[0]!.response.destroy()
    await expect.poll(async () => (await get(url, '/api/events', { method: 'HEAD' })).status).toBe(200)
  })

  test('end for a page that does not read, and go on for the others', async () => {
    const { url, answer } = await startFeed(10)
    const [slow, other] = [await listenTo(url), await listenTo(url)]
    slow.response.socket.pause()
    const error = 'x'.repeat(2000)
    // Sends 16 MB, more than the buffers of a connection hold.
    for (let round = 1; round <= 80; round++) {
      for (let count = 0; count < 100; count++) answer({ error })
      await expect.poll(() => other.find('requests').length, { timeout: 5000 }).toBe(round)
    }
    slow.response.socket.resume()
    await expect.poll(() => slow.response.closed || slow.response.destroyed).toBe(true)
    const before = other.find('requests').length
    answer()
    await expect.poll(() => other.find('requests').length).toBeGreaterThan(before)
  })

  test('end at once when the mirror ends, also for a page that does not read', async () => {
    const { url, feed, listener, answer } = await startFeed()
    const { response } = await listenTo(url)
    const slow = await listenTo(url)
    slow.response.socket.pause()
    answer()
    const ended = waitForEnd(response)
    const from = performance.now()
    feed.close()
    await ended
    expectError(await get(url, '/api/events'), 503)
    await listener.close(10_000)
    expect(performance.now() - from).toBeLessThan(2000)
  })

  test('answer a HEAD with the head', async () => {
    const { url, listeners } = await startFeed()
    const answer = await get(url, '/api/events', { method: 'HEAD' })
    expect([answer.status, answer.headers['content-type']]).toEqual([200, 'text/event-stream'])
    expect(listeners.size).toBe(0)
  })
})
