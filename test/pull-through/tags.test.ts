import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { expectContent, expectError } from '../support/expect-content.ts'
import { headers, status } from '../support/faults.ts'
import { makeImage } from '../support/images.ts'
import { startTestMirror } from '../support/mirror.ts'
import { app, startScene, type Scene } from '../support/scene.ts'
import { anyManifest, anyManifestHead } from '../support/upstream.ts'

const times = (count: number) => Array.from({ length: count })

/** Pulls `app:v1` as a client does. */
async function pull({ mirror, image }: Scene): Promise<void> {
  expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
  expectContent(await mirror.get(`${app}/manifests/${image.digest}`), image.digest)
  for (const digest of image.blobs.keys()) expectContent(await mirror.get(`${app}/blobs/${digest}`), digest)
}

describe('a cached image', () => {
  test('is pulled inside tagFreshness without a connection to the upstream', async () => {
    const scene = await startScene({ cache: { tagFreshness: 60_000 } })
    await pull(scene)
    // Closes all connections, because a kept-alive one would hide a request; no new connection may come.
    await scene.upstream.stop()
    await scene.upstream.start()
    const { accepted } = scene.upstream.connections
    await pull(scene)
    for (const _ of times(4)) {
      const answers = await Promise.all(times(50).map(() => scene.mirror.get(`${app}/manifests/v1`)))
      for (const answer of answers) expect(answer.headers['cache-status']).toBe('mirror; hit')
    }
    expect(scene.upstream.connections.accepted).toBe(accepted)
  })

  test('is pulled after tagFreshness with exactly one HEAD and nothing else', async () => {
    const scene = await startScene({ cache: { tagFreshness: 300 } })
    await pull(scene)
    await sleep(350)
    const { length } = scene.upstream.requests
    await pull(scene)
    const asked = scene.upstream.requests.slice(length).map(({ method, path }) => `${method} ${path}`)
    expect(asked).toEqual([`HEAD ${app}/manifests/v1`])
  })

  test('with a sha512 digest from its upstream is confirmed by HEAD', async () => {
    const image = makeImage()
    const digest = computeDigest(image.bytes, 'sha512')
    const { upstream, mirror } = await startScene({ image: { ...image, digest } })
    for (const asked of ['GET', 'HEAD']) {
      expect((await mirror.get(`${app}/manifests/v1`)).headers['docker-content-digest']).toBe(digest)
      expect(upstream.requests.map(({ method }) => method)).toContain(asked)
    }
    expect(upstream.count(anyManifest)).toBe(1)
  })

  test('answers a HEAD with its digest and size, even if the upstream does not send them', async () => {
    const { upstream, mirror, image } = await startScene()
    upstream.on(anyManifestHead, headers({ 'docker-content-digest': undefined, etag: undefined }))
    const answer = await mirror.get(`${app}/manifests/v1`, { method: 'HEAD' })
    expect(answer).toMatchObject({
      status: 200,
      headers: { 'docker-content-digest': image.digest, 'content-length': String(image.bytes.length) },
    })
    expect(answer.body.length).toBe(0)
  })

  test('requested by a hundred clients at once after tagFreshness costs one HEAD', async () => {
    const { upstream, mirror, image } = await startScene({ cache: { tagFreshness: 3000 } })
    await mirror.get(`${app}/manifests/v1`)
    await sleep(3050)
    const { length } = upstream.requests
    const answers = await Promise.all(times(100).map(() => mirror.get(`${app}/manifests/v1`)))
    for (const answer of answers) {
      expectContent(answer, image.digest)
      expect(['mirror; hit; fwd=stale; fwd-status=200', 'mirror; hit']).toContain(answer.headers['cache-status'])
    }
    expect(upstream.requests.slice(length).map(({ method }) => method)).toEqual(['HEAD'])
  })

  test('is pulled by digest without a request to the upstream', async () => {
    const { upstream, mirror, image, layer } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    await mirror.get(`${app}/blobs/${layer}`)
    const { length } = upstream.requests
    for (const _ of times(3)) {
      expectContent(await mirror.get(`${app}/manifests/${image.digest}`), image.digest)
      expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    }
    expect(upstream.requests.length).toBe(length)
  })

  test('is revalidated at once for a client that sends no-cache', async () => {
    const { upstream, mirror } = await startScene({ cache: { tagFreshness: 60_000 } })
    await mirror.get(`${app}/manifests/v1`)
    const changed = makeImage({ seed: 2 })
    upstream.push('library/app', 'v1', changed)
    const init = { headers: { 'cache-control': 'no-cache' } }
    expectContent(await mirror.get(`${app}/manifests/v1`, init), changed.digest)
  })

  test('is fresh for the tagFreshness of its own upstream', async () => {
    const { upstream, mirror } = await startScene({ upstream: { tagFreshness: 60_000 } })
    await mirror.get(`${app}/manifests/v1`)
    const { length } = upstream.requests
    await mirror.get(`${app}/manifests/v1`)
    expect(upstream.requests.length).toBe(length)
  })

  test('is confirmed by one HEAD after a restart, because the length of the pause is unknown', async () => {
    const { upstream, mirror, image } = await startScene({ cache: { tagFreshness: 60_000 } })
    await mirror.get(`${app}/manifests/v1`)
    await mirror.close()
    const { length } = upstream.requests
    const second = await startTestMirror({
      home: mirror.home,
      cache: { tagFreshness: 60_000 },
      upstreams: { 'docker.io': upstream.url },
    })
    expectContent(await second.get(`${app}/manifests/v1`), image.digest)
    expectContent(await second.get(`${app}/manifests/v1`), image.digest)
    expect(upstream.requests.slice(length).map(({ method }) => method)).toEqual(['HEAD'])
  })
})

describe('a moved tag', () => {
  test('is fetched after one HEAD, and the old image stays available by its digest', async () => {
    const { upstream, mirror, image } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    const changed = makeImage({ seed: 2 })
    upstream.push('library/app', 'v1', changed)
    const { length } = upstream.requests
    const answer = await mirror.get(`${app}/manifests/v1`)
    expectContent(answer, changed.digest)
    expect(answer.headers['cache-status']).toBe('mirror; fwd=miss; stored')
    expect(upstream.requests.slice(length).map(({ method }) => method)).toEqual(['HEAD', 'GET'])
    expectContent(await mirror.get(`${app}/manifests/${image.digest}`), image.digest)
  })

  test('that points to a cached image again costs one HEAD', async () => {
    const { upstream, mirror, image } = await startScene()
    const changed = makeImage({ seed: 2 })
    await mirror.get(`${app}/manifests/v1`)
    upstream.push('library/app', 'v1', changed)
    await mirror.get(`${app}/manifests/v1`)
    upstream.push('library/app', 'v1', image)
    const { length } = upstream.requests
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expect(upstream.requests.slice(length).map(({ method }) => method)).toEqual(['HEAD'])
  })

  test('requested by a hundred clients at once is fetched once', async () => {
    const { upstream, mirror } = await startScene({ cache: { tagFreshness: 1000 } })
    await mirror.get(`${app}/manifests/v1`)
    const changed = makeImage({ seed: 2 })
    upstream.push('library/app', 'v1', changed)
    await sleep(1050)
    const answers = await Promise.all(times(100).map(() => mirror.get(`${app}/manifests/v1`)))
    for (const answer of answers) expectContent(answer, changed.digest)
    expect([upstream.count(anyManifestHead), upstream.count(anyManifest)]).toEqual([1, 2])
  })

  test('that was deleted is a 404, until it is pushed again', async () => {
    const { upstream, mirror, image } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    upstream.remove('library/app', 'v1')
    expectError(await mirror.get(`${app}/manifests/v1`), 404, 'MANIFEST_UNKNOWN')
    upstream.push('library/app', 'v1', image)
    const init = { headers: { 'cache-control': 'no-cache' } }
    expectContent(await mirror.get(`${app}/manifests/v1`, init), image.digest)
  })
})

describe('an upstream with useless HEADs', () => {
  test.each([
    ['does not support HEAD', status(405)],
    ['does not send the digest', headers({ 'docker-content-digest': undefined, etag: undefined })],
  ])('that %s gets a GET', async (_, fault) => {
    const { upstream, mirror, image } = await startScene()
    upstream.on(anyManifestHead, fault)
    await mirror.get(`${app}/manifests/v1`)
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    const changed = makeImage({ seed: 2 })
    upstream.push('library/app', 'v1', changed)
    expectContent(await mirror.get(`${app}/manifests/v1`), changed.digest)
  })
})

test('the HEAD of a cached tag is answered from the store', async () => {
  const { mirror, image } = await startScene({ cache: { tagFreshness: 60_000 } })
  await mirror.get(`${app}/manifests/v1`)
  const answer = await mirror.get(`${app}/manifests/v1`, { method: 'HEAD' })
  expect(answer).toMatchObject({
    status: 200,
    headers: {
      'content-length': String(image.bytes.length),
      'content-type': image.mediaType,
      'docker-content-digest': image.digest,
      'cache-status': 'mirror; hit',
    },
  })
  expect(answer.body).toHaveLength(0)
})
