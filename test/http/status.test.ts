import { readFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { expectError } from '../support/expect-content.ts'
import { status } from '../support/faults.ts'
import { get } from '../support/get.ts'
import { app, startScene } from '../support/scene.ts'

describe('the statistics', () => {
  test('count a cold pull as misses, a warm one as hits, and the bytes of hits as saved', async () => {
    const { mirror, image, layer, layerBytes } = await startScene({ cache: { tagFreshness: 60_000 } })
    for (const _ of ['cold', 'warm']) {
      await mirror.get(`${app}/manifests/v1`)
      await mirror.get(`${app}/blobs/${layer}`)
      await mirror.untilStored(2)
    }
    const size = image.bytes.length + layerBytes.length
    // Polls, because a client has the last byte before the mirror counts it.
    const counted = async () => (await mirror.status()).cache
    await expect.poll(counted).toMatchObject({
      requests: 4,
      hits: 2,
      misses: 2,
      collapsed: 0,
      revalidated: 0,
      staleServed: 0,
      errors: 0,
      digestMismatches: 0,
      hitRatio: 0.5,
      bytesServed: 2 * size,
      bytesFromUpstream: size,
      bytesSaved: size,
    })
    const { upstreams, storage } = await mirror.status()
    expect(upstreams).toEqual({
      'docker.io': { hits: 2, misses: 2, bytesFromUpstream: size, state: 'ok' },
    })
    expect(storage).toMatchObject({ bytes: size, blobs: 2, manifests: 1, pushedBytes: 0 })
  })

  test('count a revalidated tag as a hit', async () => {
    const { mirror } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    await mirror.get(`${app}/manifests/v1`)
    expect((await mirror.status()).cache).toMatchObject({ hits: 1, misses: 1, revalidated: 1 })
  })

  test('count an absence as neither hit nor miss nor error, and an outage as an error', async () => {
    const { upstream, mirror } = await startScene()
    await mirror.get(`${app}/manifests/absent`)
    expect((await mirror.status()).cache).toMatchObject({ hits: 0, misses: 0, errors: 0 })
    upstream.on({}, status(503))
    await mirror.get(`${app}/manifests/v1`)
    expect((await mirror.status()).cache).toMatchObject({ hits: 0, misses: 0, errors: 1 })
    expect((await mirror.status()).upstreams['docker.io']?.state).toBe('failing')
  })

  test('do not count a ping for the hit ratio', async () => {
    const { mirror } = await startScene()
    for (const path of ['/v2/', '/v2/_catalog', `${app}/tags/list`]) await mirror.get(path)
    expect((await mirror.status()).cache).toMatchObject({ hits: 0, misses: 0, hitRatio: 0 })
  })

  test('count a pull by tag and then by digest as one pull of one image', async () => {
    const { mirror, image } = await startScene()
    await mirror.get(`${app}/manifests/v1`, { method: 'HEAD' })
    await mirror.get(`${app}/manifests/v1`)
    await mirror.get(`${app}/manifests/${image.digest}`)
    const { images, cache } = await mirror.status()
    expect(cache.pulls).toBe(1)
    expect(images).toEqual([
      {
        name: 'docker.io/library/app:v1',
        digest: image.digest,
        bytes: image.bytes.length,
        pulls: 1,
        lastPulled: expect.any(String),
        checkedAt: expect.any(String),
      },
    ])
  })
})

describe('an upstream that fails', () => {
  test('is shown with its last failure and its retry time, until it recovers', async () => {
    const { upstream, mirror } = await startScene()
    upstream.on({}, status(503))
    await mirror.get(`${app}/manifests/v1`)
    const docker = async () => (await mirror.status()).upstreams['docker.io']
    const failing = await docker()
    expect(failing?.state).not.toBe('ok')
    expect(failing?.lastError).toMatchObject({ message: expect.stringContaining('503'), at: expect.any(String) })
    // Checks that the reason stays when the circuit of the upstream is open.
    for (let at = 0; at < 8; at++) await mirror.get(`/v2/library/app${at}/manifests/v${at}`)
    const open = await docker()
    expect(open?.state).toBe('open')
    // Tells the pause after an outage from a rate limit.
    expect(open?.lastError?.failure).toBe('unavailable')
    // The reason is the failure itself, without the sentence about the pause.
    expect(open?.lastError?.message).toMatch(/503/)
    expect(open?.lastError?.message).not.toContain('again in')
    const refused = await mirror.get('/v2/library/app0/manifests/v0')
    expect(refused.body.toString()).toMatch(/docker\.io .*503.*\. docker\.io is asked again in \d+ s\./)
  })

  test('with a rate limit is shown with its retry time', async () => {
    const { upstream, mirror } = await startScene()
    upstream.on({}, status(429, { 'retry-after': '30' }))
    await mirror.get(`${app}/manifests/v1`)
    const { state, lastError } = (await mirror.status()).upstreams['docker.io']!
    expect(state).toBe('ok')
    expect(lastError?.failure).toBe('limited')
    expect(lastError?.retryAfterSeconds).toBeGreaterThan(20)
  })
})

describe('a registry that is not mirrored', () => {
  test.each([
    ['by namespace', (host: string) => `/v2/team/app/manifests/1?ns=${host}`],
    ['by path', (host: string) => `/v2/${host}/team/app/manifests/1`],
    ['for kaniko', (host: string) => `/v2/upstream/${host}/team/app/manifests/1`],
    ['by prefix', (host: string) => `/${host}/v2/team/app/manifests/1`],
  ])('is listed with the number of its requests, %s, and the error names the setting to add', async (_, pathOf) => {
    const { mirror } = await startScene()
    for (const host of ['registry.corp.example', 'registry.corp.example', 'registry.corp.example:5000']) {
      const answer = await mirror.get(pathOf(host))
      expect(answer.status).toBe(404)
      expect(answer.body.toString()).toContain(host.includes(':') ? `{'${host}': {}}` : `{${host}: {}}`)
    }
    const { refusedRegistries, upstreams } = await mirror.status()
    expect(refusedRegistries).toEqual({ 'registry.corp.example': 2, 'registry.corp.example:5000': 1 })
    expect(upstreams).toEqual({})
  })

  test('is one of at most a hundred in the list', async () => {
    const { mirror } = await startScene()
    for (let at = 0; at < 120; at++) await mirror.get(`/v2/app/manifests/1?ns=h${at}.example`)
    expect(Object.keys((await mirror.status()).refusedRegistries)).toHaveLength(100)
  })
})

describe('the admin listener', () => {
  test('serves health, status and metrics on loopback without a token', async () => {
    const { mirror } = await startScene()
    expect(JSON.parse((await get(mirror.adminUrl, '/healthz')).body.toString())).toEqual({ status: 'ok' })
    const metrics = await get(mirror.adminUrl, '/metrics')
    expect(metrics.headers['content-type']).toMatch(/^text\/plain/)
    expect(metrics.body.toString()).toMatch(/^# TYPE \w+ counter$/m)
  })

  test('shows its version, addresses and start time', async () => {
    const { mirror } = await startScene()
    await sleep(5)
    const report = await mirror.status()
    expect(report).toMatchObject({ running: true, version: '0.0.0-test', runtime: 'process', pid: process.pid })
    expect(report.endpoints).toMatchObject({ cache: [mirror.url], admin: [mirror.adminUrl] })
    expect(Date.parse(report.startedAt)).toBeLessThanOrEqual(Date.now())
  })

  test.each(['/api/cache/rm', '/api/cache/prune', '/api/cache/verify', '/api/stop'])(
    'changes nothing without the token: %s',
    async (path) => {
      const { mirror } = await startScene()
      const token = 'f'.repeat(64)
      for (const headers of [{}, { authorization: `Bearer ${token}` }, { authorization: 'Basic x' }]) {
        expectError(await get(mirror.adminUrl, path, { method: 'POST', headers, body: '{}' }), 401)
      }
      expect((await get(mirror.adminUrl, '/healthz')).status).toBe(200)
    },
  )

  test('refuses changes by a page in a browser, with or without a token', async () => {
    const { mirror } = await startScene()
    const token = (await readFile(mirror.paths.tokenFile, 'utf8')).trim()
    const headers = { authorization: `Bearer ${token}`, origin: 'http://evil.example' }
    expectError(await get(mirror.adminUrl, '/api/cache/prune', { method: 'POST', headers, body: '{}' }), 403)
  })

  test('names the mistake in a malformed body', async () => {
    const { mirror } = await startScene()
    expectError(await mirror.post('/api/cache/rm', { names: 'all' }), 400)
    expectError(await mirror.post('/api/cache/rm', []), 400)
    expectError(await mirror.post('/api/nothing', {}), 404)
  })
})
