import { beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { upstreamBodies } from '../../src/lib/body-memory.ts'
import { digestOf } from '../../src/oci/digest.ts'
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
    '%s: never a whole answer, nothing kept, right once the upstream is well',
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

test('a page in place of a blob does not say how long the blob is', async () => {
  const { upstream, mirror, layer } = await startScene()
  upstream.on(anyBlob, htmlPage('own'))
  const part = { headers: { range: 'bytes=1000-2000' } }
  expectError(await mirror.get(`${app}/blobs/${layer}`, part), 502)
  upstream.heal()
  expect((await mirror.get(`${app}/blobs/${layer}`, part)).status).toBe(206)
})

test('a small blob with wrong bytes is a 502, for nothing of it has left yet', async () => {
  const { upstream, mirror, layer } = await startScene({ image: makeImage({ layers: [noise(1000)] }) })
  upstream.on(anyBlob, corrupt)
  expectError(await mirror.get(`${app}/blobs/${layer}`), 502)
  expect((await mirror.status()).cache).toMatchObject({ digestMismatches: 1, errors: 1 })
})

test('what leaves of a wrong blob is no more than the bytes before the withheld tail', async () => {
  const { upstream, mirror, layer, layerBytes } = await startScene()
  upstream.on(anyBlob, corrupt)
  const answer = await mirror.get(`${app}/blobs/${layer}`)
  expect(answer).toMatchObject({ status: 200, complete: false })
  expect(answer.body.length).toBeLessThanOrEqual(layerBytes.length - 32 * 1024)
})

describe('a manifest', () => {
  test.each([
    ['of another digest', otherBody(() => makeImage({ seed: 7 }).bytes)],
    ['that is a page', htmlPage('own')],
    ['with a byte flipped', corrupt],
  ])('%s, asked for by digest, is a 502 and is not kept', async (_, fault) => {
    const { upstream, mirror, image } = await startScene()
    upstream.on(anyManifest, fault)
    expectError(await mirror.get(`${app}/manifests/${image.digest}`), 502)
    expect((await mirror.status()).storage).toMatchObject({ blobs: 0, manifests: 0 })

    upstream.heal()
    expectContent(await mirror.get(`${app}/manifests/${image.digest}`), image.digest)
  })

  test('asked for by tag, a page is a 502 and is not kept', async () => {
    const { upstream, mirror, image } = await startScene()
    upstream.on(anyManifest, htmlPage('own'))
    expectError(await mirror.get(`${app}/manifests/v1`), 502)
    upstream.heal()
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
  })

  test('is known by what its bytes hash to, not by what the upstream calls it', async () => {
    const { upstream, mirror, image } = await startScene()
    const lie = digestOf(Buffer.from('a lie'))
    upstream.on({ path: /\/manifests\// }, headers({ 'docker-content-digest': lie, etag: `"${lie}"` }))
    for (const _ of ['cold', 'asked again']) {
      const answer = await mirror.get(`${app}/manifests/v1`)
      expectContent(answer, image.digest)
      expect(answer.headers).toMatchObject({ 'docker-content-digest': image.digest, etag: `"${image.digest}"` })
    }
    const lied = await mirror.get(`${app}/manifests/${lie}`)
    expect(lied.status).not.toBe(200)
  })

  test('asked for by tag, with a byte flipped that leaves it a manifest, is never served', async () => {
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

  describe('of 4.1 MB, while there is memory for one of its size', () => {
    const image = largeImage(1)
    beforeEach(async () => {
      const others = await upstreamBodies.reserve(Math.max(0, upstreamBodies.bytes - 9_000_000))
      onTestFinished(() => others.release())
    })

    test('with a byte flipped, is asked for by digest', async () => {
      const { upstream, mirror } = await startScene({ image })
      const flipped = (body: Buffer) => Buffer.from(body.toString().replace('"size":2', '"size":9'))
      upstream.on(anyManifest, times(1, otherBody(flipped)))
      expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    })

    test('under a digest that the upstream does not hold, is known by its own', async () => {
      const { upstream, mirror } = await startScene({ image })
      upstream.on({ path: /\/manifests\// }, headers({ 'docker-content-digest': digestOf(Buffer.from('a lie')) }))
      expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    })
  })

  test('a captive portal does not displace a tag that is held', async () => {
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
  ])('%s: the content comes out as its digest says, with no encoding', async (_, fault) => {
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

  test('the upstream is asked for the plain bytes', async () => {
    const { upstream, mirror, layer } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    await mirror.get(`${app}/blobs/${layer}`)
    expect(upstream.requests.map((seen) => seen.headers['accept-encoding'])).toEqual(
      upstream.requests.map(() => 'identity'),
    )
  })
})
