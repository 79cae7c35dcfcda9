import { readFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import type { ImageReport } from '../../src/admin/api.ts'
import { createAdminClient } from '../../src/admin/client.ts'
import type { ClientReport, HistoryReport } from '../../src/admin/activity.ts'
import { MirrorError } from '../../src/lib/errors.ts'
import { expectError } from '../support/expect-content.ts'
import { slow } from '../support/faults.ts'
import { get } from '../support/get.ts'
import { startTestMirror, type TestMirror } from '../support/mirror.ts'
import { app, startScene } from '../support/scene.ts'
import { anyBlob } from '../support/upstream.ts'

const headers = { 'user-agent': 'containerd/2.1.9' }
const clientOf = ({ adminUrl, paths: { tokenFile } }: TestMirror) =>
  createAdminClient({ url: adminUrl, tokenFile, timeoutMs: 5000 })

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
    expect(await clientOf(mirror).clients.list()).toEqual(await list())
  })

  test('has no client whose request was for a probe image', async () => {
    const { mirror } = await startScene()
    const { repository, tag } = JSON.parse((await mirror.post('/api/canary', {})).body.toString()) as Record<
      string,
      string
    >
    expect((await mirror.get(`/v2/${repository}/manifests/${tag}`, { headers })).status).toBe(200)
    await expect.poll(() => mirror.log.some((line) => line.includes('"probe":true'))).toBe(true)
    expect(await clientOf(mirror).clients.list()).toEqual([])
  })
})

describe('GET /api/clients/configured', () => {
  const since = '2026-11-30T12:00:00.000Z'
  const kind = { client: 'kind', title: 'the kind cluster dev', since }
  const read = async ({ adminUrl }: { adminUrl: string }) =>
    JSON.parse((await get(adminUrl, '/api/clients/configured')).body.toString()) as object
  const put = ({ adminUrl, paths }: TestMirror, body: unknown, token = readFileSync(paths.tokenFile, 'utf8').trim()) =>
    get(adminUrl, '/api/clients/configured', {
      method: 'PUT',
      headers: { 'content-type': 'application/json', authorization: `Bearer ${token}` },
      body: JSON.stringify(body),
    })

  test('has what this machine says, and when they were seen', async () => {
    const { mirror } = await startScene({ listConfigured: async () => [kind, { ...kind, client: 'docker' }] })
    expect(await read(mirror)).toEqual({ clients: [kind, { ...kind, client: 'docker' }] })
    await mirror.get(`${app}/manifests/v1`, { headers })
    await mirror.get(`${app}/manifests/v1`, { headers: { ...headers, 'user-agent': 'curl/8' } })
    const { clients } = clientOf(mirror)
    await expect.poll(async () => (await clients.list()).length).toBe(2)
    const seen = await clients.list()
    expect(seen.map(({ product, configured }) => [product, configured])).toEqual([
      ['curl', []],
      ['containerd', ['docker', 'kind']],
    ])
    expect((await clients.listConfigured())?.map(({ lastSeen }) => lastSeen)).toEqual([
      seen[1]!.lastSeen,
      seen[1]!.lastSeen,
    ])
    // Such a mirror looks itself.
    await clients.storeConfigured([])
    expect(await clients.listConfigured()).toHaveLength(2)
  })

  test('has what a command told a mirror that cannot look itself', async () => {
    const { mirror } = await startScene()
    expect(await read(mirror)).toEqual({})
    await mirror.get(`${app}/manifests/v1`, { headers })
    await expect
      .poll(async () => (await clientOf(mirror).clients.list()).map((one) => one.configured))
      .toEqual([undefined])
    await clientOf(mirror).clients.storeConfigured([kind])
    expect(await read(mirror)).toMatchObject({ clients: [{ ...kind, lastSeen: expect.any(String) }] })
    expect((await clientOf(mirror).clients.list())[0]?.configured).toEqual(['kind'])
  })

  test.each([
    {},
    { clients: 'kind' },
    { clients: [kind, null] },
    { clients: [{ ...kind, since: 'yesterday' }] },
    { clients: [{ ...kind, title: 'x'.repeat(301) }] },
    { clients: Array.from({ length: 201 }, () => kind) },
  ])('refuses a list of another shape', async (body) => {
    const mirror = await startTestMirror()
    expectError(await put(mirror, body), 400)
    expectError(await put(mirror, { clients: [kind] }, 'wrong'), 401)
    expect(await read(mirror)).toEqual({})
  })

  test('are unknown while a record of them is damaged, and the programs are listed all the same', async () => {
    const { mirror } = await startScene({
      async listConfigured() {
        throw new MirrorError('A record is damaged.')
      },
    })
    await mirror.get(`${app}/manifests/v1`, { headers })
    expect(await read(mirror)).toEqual({})
    await expect.poll(async () => (await clientOf(mirror).clients.list())[0]?.product).toBe('containerd')
  })
})

test('each image has the bytes that its pulls saved, also after a restart', async () => {
  const { mirror, upstream, image, layer, layerBytes } = await startScene({ cache: { tagFreshness: 60_000 } })
  const pull = async (one: TestMirror) => {
    await one.get(`${app}/manifests/v1`, { headers })
    await one.get(`${app}/blobs/${layer}`, { headers })
  }
  const readSaved = async ({ adminUrl }: { adminUrl: string }) => {
    const images = JSON.parse((await get(adminUrl, '/api/cache')).body.toString()) as ImageReport[]
    return images.map(({ name, bytesSaved }) => [name, bytesSaved])
  }
  await pull(mirror)
  await mirror.untilStored(2)
  await expect.poll(() => mirror.log.filter((line) => line.includes('bytesFromUpstream')).length).toBe(1)
  expect(await readSaved(mirror)).toEqual([['docker.io/library/app:v1', 0]])
  await pull(mirror)
  const saved = image.bytes.length + layerBytes.length
  await expect.poll(() => readSaved(mirror)).toEqual([['docker.io/library/app:v1', saved]])
  expect((await mirror.status()).cache.bytesSaved).toBe(saved)
  await mirror.close()
  const second = await startTestMirror({ home: mirror.home, upstreams: { 'docker.io': upstream.url } })
  expect(await readSaved(second)).toEqual([['docker.io/library/app:v1', saved]])
})

test('the history and the clients survive a restart, in files that only the user can read', async () => {
  const { mirror, upstream } = await startScene()
  await mirror.get(`${app}/manifests/v1`, { headers })
  await mirror.close()
  const state = mirror.paths.stateDir
  expect(await readFile(join(state, 'history.jsonl'), 'utf8')).toMatch(/^\["m",\d+,\[1,0,0,1,/)
  const second = await startTestMirror({ home: mirror.home, upstreams: { 'docker.io': upstream.url } })
  await second.get(`${app}/manifests/v1`, { headers })
  await expect.poll(async () => (await clientOf(second).clients.list())[0]?.requests).toBe(2)
  expect(sum(await readHistory(second, 'month'), 'misses')).toBe(1)
  expect(sum(await readHistory(second, 'month'), 'hits')).toBe(1)
})
