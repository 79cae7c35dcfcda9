import { setTimeout as sleep } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { expectContent, expectError } from '../support/expect-content.ts'
import { headers, status, times } from '../support/faults.ts'
import { get } from '../support/get.ts'
import { makeImage, makeIndex } from '../support/images.ts'
import { app, startScene } from '../support/scene.ts'
import { anyManifest, anyManifestHead } from '../support/upstream.ts'

const quotaBody = JSON.stringify({
  errors: [{ code: 'TOOMANYREQUESTS', message: 'You have reached your unauthenticated pull rate limit.' }],
})

test('a rate-limited upstream is a 429 with its Retry-After for uncached content, never a 404', async () => {
  const { upstream, mirror } = await startScene()
  upstream.on({}, status(429, { 'retry-after': '60' }))
  const answer = await mirror.get(`${app}/manifests/v1`)
  expectError(answer, 429, 'TOOMANYREQUESTS')
  expect(Number(answer.headers['retry-after'])).toBeGreaterThan(50)
})

test('until Retry-After no request is sent to a rate-limited upstream', async () => {
  const { upstream, mirror, layer } = await startScene()
  upstream.on({}, status(429, { 'retry-after': '60' }))
  await mirror.get(`${app}/manifests/v1`)
  const before = upstream.requests.length
  expectError(await mirror.get(`${app}/manifests/v1`), 429)
  expectError(await mirror.get('/v2/library/other/manifests/v1'), 429)
  expectError(await mirror.get(`${app}/blobs/${layer}`), 429)
  expect(upstream.requests.length).toBe(before)
})

test('after Retry-After the upstream gets requests again', async () => {
  const { upstream, mirror, image } = await startScene()
  upstream.on({}, status(429, { 'retry-after': '1' }))
  expectError(await mirror.get(`${app}/manifests/v1`), 429)
  upstream.heal()
  await sleep(1100)
  expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
})

test('a cached tag is served while the upstream is rate-limited', async () => {
  const { upstream, mirror, image } = await startScene()
  await mirror.get(`${app}/manifests/v1`)
  upstream.on({}, status(429, { 'retry-after': '60' }))
  const answer = await mirror.get(`${app}/manifests/v1`)
  expectContent(answer, image.digest)
  expect(answer.headers['cache-status']).toBe('mirror; hit; detail=stale-on-error')
})

test('a used-up pull quota stops only manifests: tags are still revalidated, and blobs fetched', async () => {
  const { upstream, mirror, image, layer } = await startScene()
  await mirror.get(`${app}/manifests/v1`)
  upstream.push('library/app', 'v2', makeImage({ seed: 2 }))
  upstream.on(anyManifest, status(429, { 'retry-after': '60', 'ratelimit-remaining': '0;w=21600' }, quotaBody))
  expectError(await mirror.get(`${app}/manifests/v2`), 429)

  const heads = upstream.count(anyManifestHead)
  const confirmed = await mirror.get(`${app}/manifests/v1`)
  expectContent(confirmed, image.digest)
  expect(confirmed.headers['cache-status']).toBe('mirror; hit; fwd=stale; fwd-status=200')
  expect(upstream.count(anyManifestHead)).toBe(heads + 1)
  expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
})

test('a Retry-After of less than a second is waited for', async () => {
  const { upstream, mirror, image } = await startScene()
  upstream.on(anyManifest, times(2, status(429, { 'retry-after': '880\u00b5s' })))
  expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
})

test("Docker Hub's quota is read from its responses and shown in the status", async () => {
  const { upstream, mirror } = await startScene()
  upstream.on(
    { path: /\/manifests\// },
    headers({
      'ratelimit-limit': '100;w=21600',
      'ratelimit-remaining': '76;w=21600',
      'docker-ratelimit-source': '192.0.2.1',
    }),
  )
  await mirror.get(`${app}/manifests/v1`)
  expect((await mirror.status()).upstreams['docker.io']?.rateLimit).toEqual({
    limit: 100,
    remaining: 76,
    windowSeconds: 21600,
    source: '192.0.2.1',
    at: expect.stringMatching(/^\d{4}-\d\d-\d\dT/),
  })
})

test('no pulls of Docker Hub are counted where another server stands in for it', async () => {
  const { mirror } = await startScene()
  for (let pulls = 0; pulls < 3; pulls++) await mirror.get(`${app}/manifests/v1`)
  expect((await mirror.status()).upstreams['docker.io']).toMatchObject({ hits: 2, misses: 1 })
  expect((await mirror.status()).upstreams['docker.io']).not.toHaveProperty('pullsAvoided')
  expect((await get(mirror.adminUrl, '/metrics')).body.toString()).not.toMatch(
    /^mirror_upstream_pulls_avoided_total\{/m,
  )
})

test('the pulls that Docker Hub would have counted are counted once for each manifest: no index, no HEAD, no miss', async () => {
  const { upstream, mirror, image } = await startScene({ isDockerHub: true })
  const avoided = async () => (await mirror.status()).upstreams['docker.io']?.pullsAvoided
  await mirror.get(`${app}/manifests/v1`)
  expect(await avoided()).toBe(0)
  await mirror.get(`${app}/manifests/v1`)
  await mirror.get(`${app}/manifests/${image.digest}`)
  await mirror.get(`${app}/manifests/v1`, { method: 'HEAD' })
  expect(await avoided()).toBe(2)
  upstream.push('library/app', 'many', makeIndex([image]))
  await mirror.get(`${app}/manifests/many`)
  await mirror.get(`${app}/manifests/many`)
  expect(await avoided()).toBe(2)
  expect((await get(mirror.adminUrl, '/metrics')).body.toString()).toContain(
    'mirror_upstream_pulls_avoided_total{upstream="docker.io"} 2',
  )
})
