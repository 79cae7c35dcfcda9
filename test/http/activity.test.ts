import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { createAdminClient } from '../../src/admin/client.ts'
import type { ClientReport, HistoryReport } from '../../src/admin/activity.ts'
import { expectError } from '../support/expect-content.ts'
import { slow } from '../support/faults.ts'
import { get } from '../support/get.ts'
import { startTestMirror, type TestMirror } from '../support/mirror.ts'
import { app, startScene } from '../support/scene.ts'
import { anyBlob } from '../support/upstream.ts'

const headers = { 'user-agent': 'containerd/2.1.9' }
const clientOf = ({ adminUrl }: TestMirror) => createAdminClient({ url: adminUrl, tokenFile: '', timeoutMs: 5000 })

async function readHistory({ adminUrl }: TestMirror, range: string): Promise<HistoryReport> {
  return JSON.parse((await get(adminUrl, `/api/history?range=${range}`)).body.toString()) as HistoryReport
}

/** Adds up a counter of a history, because a test may run at the end of a minute. */
function sum({ buckets }: HistoryReport, counter: 'pulls' | 'hits' | 'misses' | 'bytesSaved' | 'bytesFromUpstream') {
  return buckets.reduce((total, bucket) => total + bucket[counter], 0)
}

describe('GET /api/history', () => {
  test.each(['hour', 'day', 'week', 'month'])('has the traffic of the last %s at once', async (range) => {
    const { mirror, image, layer, layerBytes } = await startScene({ cache: { tagFreshness: 60_000 } })
    for (const _ of ['cold', 'warm']) {
      await mirror.get(`${app}/manifests/v1`)
      await mirror.get(`${app}/blobs/${layer}`)
      await mirror.untilStored(2)
    }
    await expect.poll(async () => sum(await readHistory(mirror, range), 'hits')).toBe(2)
    const report = await readHistory(mirror, range)
    expect(report.range).toBe(range)
    const size = image.bytes.length + layerBytes.length
    expect([sum(report, 'pulls'), sum(report, 'misses')]).toEqual([1, 2])
    expect([sum(report, 'bytesSaved'), sum(report, 'bytesFromUpstream')]).toEqual([size, size])
    expect(await clientOf(mirror).getHistory('hour')).toMatchObject({ range: 'hour', step: 60_000 })
  })

  test('has the time until the headers of each upstream, not until the end of the body', async () => {
    const { upstream, mirror, layer } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    // Takes two seconds for the layer.
    upstream.on(anyBlob, slow(150_000))
    await mirror.get(`${app}/blobs/${layer}`)
    const { buckets } = await readHistory(mirror, 'month')
    const times = buckets.flatMap(({ upstreams }) => Object.entries(upstreams))
    expect(times.map(([host]) => host)).toEqual(['docker.io'])
    const [[, { requests, totalMs, maxMs }]] = times as [(typeof times)[0]]
    expect(requests).toBeGreaterThanOrEqual(2)
    expect(totalMs).toBeGreaterThanOrEqual(maxMs)
    expect(maxMs).toBeLessThan(1500)
  })

  test.each(['', '?range=', '?range=year', '?range=hour%20'])('refuses the query %j', async (query) => {
    const mirror = await startTestMirror()
    expectError(await get(mirror.adminUrl, `/api/history${query}`), 400)
  })
})

describe('GET /api/clients', () => {
  test('has the programs that used the cache, and of which registry they only send HEAD', async () => {
    const { mirror, layerBytes, layer } = await startScene()
    await mirror.get('/v2/', { headers: { 'user-agent': 'curl/8' } })
    await mirror.get(`${app}/manifests/v1`, { method: 'HEAD', headers })
    await mirror.get(`${app}/blobs/${layer}`, { headers: { 'user-agent': 'docker/28.0.1 go/go1.23' } })
    const list = async () => JSON.parse((await get(mirror.adminUrl, '/api/clients')).body.toString()) as ClientReport[]
    await expect.poll(async () => (await list()).length).toBe(2)
    expect(await list()).toMatchObject([
      { product: 'docker', version: '28.0.1', address: '127.0.0.1', requests: 1, misses: 1, bytes: layerBytes.length },
      { product: 'containerd', version: '2.1.9', listener: 'cache', requests: 1, hits: 0, misses: 0, headOnly: [] },
    ])
    expect(await clientOf(mirror).listClients()).toEqual(await list())
  })

  test('has no client whose request was for a probe image', async () => {
    const { mirror } = await startScene()
    const { repository, tag } = JSON.parse((await mirror.post('/api/canary', {})).body.toString()) as Record<
      string,
      string
    >
    expect((await mirror.get(`/v2/${repository}/manifests/${tag}`, { headers })).status).toBe(200)
    await expect.poll(() => mirror.log.some((line) => line.includes('"probe":true'))).toBe(true)
    expect(await clientOf(mirror).listClients()).toEqual([])
  })
})

test('the history and the clients survive a restart, in files that only the user can read', async () => {
  const { mirror, upstream } = await startScene()
  await mirror.get(`${app}/manifests/v1`, { headers })
  await mirror.close()
  const state = mirror.paths.stateDir
  expect(await readFile(join(state, 'history.jsonl'), 'utf8')).toMatch(/^\["m",\d+,\[1,0,0,1,/)
  const second = await startTestMirror({ home: mirror.home, upstreams: { 'docker.io': upstream.url } })
  await second.get(`${app}/manifests/v1`, { headers })
  await expect.poll(async () => (await clientOf(second).listClients())[0]?.requests).toBe(2)
  expect(sum(await readHistory(second, 'month'), 'misses')).toBe(1)
  expect(sum(await readHistory(second, 'month'), 'hits')).toBe(1)
})
