import { beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { upstreamBodies } from '../../src/lib/body-memory.ts'
import { computeDigest } from '../../src/oci/reference.ts'
import { expectContent, expectError, expectNoContent } from '../support/expect-content.ts'
import { corrupt, gzipped, headers, htmlPage, mislabelledGzip, otherBody, times } from '../support/faults.ts'
import { makeImage } from '../support/images.ts'
import { largeImage } from '../support/large-manifest.ts'
import { noise } from '../support/noise.ts'
import { app, startScene } from '../support/scene.ts'
import { anyBlob, anyManifest, anyManifestHead } from '../support/upstream.ts'

const wrongBodies = [
  ['the right length with a byte flipped', corrupt],
  ['a page of the right length', htmlPage('same')],
  ['a page of its own length', htmlPage('own')],
  ['a body that lacks its last byte', otherBody((body) => body.subarray(0, -1))],
  ['a body with a byte more', otherBody((body) => Buffer.concat([body, Buffer.from('x')]))],
  ['no bytes', otherBody(() => Buffer.alloc(0))],
] as const

describe.each([
  ['that a manifest has described', true],
  ['that no manifest has described', false],
])('a blob %s', (_, described) => {
  test.each(wrongBodies)(
    '%s: is never sent completely, is not stored, and is correct once the upstream is',
    async (_, fault) => {
      const { upstream, mirror, layer } = await startScene()
      if (described) await mirror.get(`${app}/manifests/v1`)
      const held = (await mirror.status()).storage.blobs

      upstream.on(anyBlob, fault)
      expectNoContent(await mirror.get(`${app}/blobs/${layer}`))
      expect((await mirror.status()).storage.blobs).toBe(held)

      upstream.heal()
      expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    },
  )
})

test('a web page instead of a blob does not determine the size of the blob', async () => {
  const { upstream, mirror, layer } = await startScene()
  upstream.on(anyBlob, htmlPage('own'))
  const part = { headers: { range: 'bytes=1000-2000' } }
  expectError(await mirror.get(`${app}/blobs/${layer}`, part), 502)
  upstream.heal()
  expect((await mirror.get(`${app}/blobs/${layer}`, part)).status).toBe(206)
})

test('a small blob with wrong bytes is a 502, because no byte was sent before', async () => {
  const { upstream, mirror, layer } = await startScene({ image: makeImage({ layers: [noise(1000)] }) })
  upstream.on(anyBlob, corrupt)
  expectError(await mirror.get(`${app}/blobs/${layer}`), 502)
  expect((await mirror.status()).cache).toMatchObject({ digestMismatches: 1, errors: 1 })
})

test('a wrong blob is sent at most up to the withheld tail', async () => {
  const { upstream, mirror, layer, layerBytes } = await startScene()
  upstream.on(anyBlob, corrupt)
  const answer = await mirror.get(`${app}/blobs/${layer}`)
  expect(answer).toMatchObject({ status: 200, complete: false })
  expect(answer.body.length).toBeLessThanOrEqual(layerBytes.length - 32 * 1024)
})

describe('a manifest', () => {
  test.each([
    ['of another digest', otherBody(() => makeImage({ seed: 7 }).bytes)],
    ['that is a web page', htmlPage('own')],
    ['with a flipped byte', corrupt],
  ])('%s, requested by digest, is a 502 and is not stored', async (_, fault) => {
    const { upstream, mirror, image } = await startScene()
    upstream.on(anyManifest, fault)
    expectError(await mirror.get(`${app}/manifests/${image.digest}`), 502)
    expect((await mirror.status()).storage).toMatchObject({ blobs: 0, manifests: 0 })

    upstream.heal()
    expectContent(await mirror.get(`${app}/manifests/${image.digest}`), image.digest)
  })

  test('that is a web page, requested by tag, is a 502 and is not stored', async () => {
    const { upstream, mirror, image } = await startScene()
    upstream.on(anyManifest, htmlPage('own'))
    expectError(await mirror.get(`${app}/manifests/v1`), 502)
    upstream.heal()
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
  })

  test('has the digest of its bytes, not the one that the upstream announces', async () => {
    const { upstream, mirror, image } = await startScene()
    const lie = computeDigest(Buffer.from('a lie'))
    upstream.on({ path: /\/manifests\// }, headers({ 'docker-content-digest': lie, etag: `"${lie}"` }))
    for (const _ of ['cold', 'asked again']) {
      const answer = await mirror.get(`${app}/manifests/v1`)
      expectContent(answer, image.digest)
      expect(answer.headers).toMatchObject({ 'docker-content-digest': image.digest, etag: `"${image.digest}"` })
    }
    const lied = await mirror.get(`${app}/manifests/${lie}`)
    expect(lied.status).not.toBe(200)
  })

  test('with a flipped byte that leaves it valid, requested by tag, is never served', async () => {
    const { upstream, mirror, image } = await startScene()
    const flipped = (body: Buffer) => Buffer.from(body.toString().replace(/"size":\d/, '"size":9'))
    expect(flipped(image.bytes)).not.toEqual(image.bytes)
    upstream.on(anyManifest, times(1, otherBody(flipped)))
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)

    const { mirror: other, upstream: broken } = await startScene()
    broken.on(anyManifest, otherBody(flipped))
    expectError(await other.get(`${app}/manifests/v1`), 502)
    broken.heal()
    expectContent(await other.get(`${app}/manifests/v1`), image.digest)
  })

  describe('of 4.1 MB, with memory for one of this size', () => {
    const image = largeImage(1)
    beforeEach(async () => {
      const others = await upstreamBodies.reserve(Math.max(0, upstreamBodies.bytes - 9_000_000))
      onTestFinished(() => others.release())
    })

    test('with a flipped byte is requested by digest', async () => {
      const { upstream, mirror } = await startScene({ image })
      const flipped = (body: Buffer) => Buffer.from(body.toString().replace('"size":2', '"size":9'))
      upstream.on(anyManifest, times(1, otherBody(flipped)))
      expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    })

    test('under a digest that the upstream does not have gets its own digest', async () => {
      const { upstream, mirror } = await startScene({ image })
      upstream.on({ path: /\/manifests\// }, headers({ 'docker-content-digest': computeDigest(Buffer.from('a lie')) }))
      expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    })
  })

  test('from a captive portal does not replace a cached tag', async () => {
    const { upstream, mirror, image } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    upstream.on({}, htmlPage('own'))
    const meanwhile = await mirror.get(`${app}/manifests/v1`)
    if (meanwhile.status === 200) expectContent(meanwhile, image.digest)
    else expectError(meanwhile, 502)
    upstream.heal()
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
  })
})

describe('content encoding', () => {
  test.each([
    ['really gzipped', gzipped],
    ['only said to be gzipped', mislabelledGzip],
  ])('%s: the client gets the content of its digest, without an encoding', async (_, fault) => {
    const { upstream, mirror, image, layer } = await startScene()
    upstream.on(anyManifest, fault)
    upstream.on(anyManifestHead, fault)
    upstream.on(anyBlob, fault)
    const manifest = await mirror.get(`${app}/manifests/v1`, { headers: { 'accept-encoding': 'gzip' } })
    expectContent(manifest, image.digest)
    const blob = await mirror.get(`${app}/blobs/${layer}`, { headers: { 'accept-encoding': 'gzip' } })
    expectContent(blob, layer)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    for (const answer of [manifest, blob]) expect(answer.headers['content-encoding']).toBeUndefined()
  })

  test('the request to the upstream accepts only identity', async () => {
    const { upstream, mirror, layer } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    await mirror.get(`${app}/blobs/${layer}`)
    expect(upstream.requests.map((seen) => seen.headers['accept-encoding'])).toEqual(
      upstream.requests.map(() => 'identity'),
    )
  })
})
