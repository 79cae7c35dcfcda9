import { describe, expect, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { mediaType } from '../../src/oci/content.ts'
import { expectContent, expectError } from '../support/expect-content.ts'
import { endless, late } from '../support/faults.ts'
import { send } from '../support/faulty-server.ts'
import { makeImage, makeIndex, manifestOf } from '../support/images.ts'
import { app, startScene } from '../support/scene.ts'
import { anyManifest } from '../support/upstream.ts'

const accepts = [
  ['no Accept', {}],
  ['Accept: */*', { accept: '*/*' }],
  ['an Accept of Docker types only', { accept: mediaType.dockerManifest }],
  ['an Accept of OCI types only', { accept: `${mediaType.ociManifest};q=0.9` }],
] as const

const images = [
  ['an OCI index', makeIndex([makeImage({ seed: 1 }), makeImage({ seed: 2 })])],
  ['a Docker list', makeIndex([makeImage({ mediaTypes: 'docker' })], { mediaTypes: 'docker' })],
  ['an OCI image', makeImage()],
  ['a Docker image', makeImage({ mediaTypes: 'docker' })],
] as const

describe.each(images)('%s', (_, image) => {
  test.each(accepts)('requested with %s is served as the same bytes with its own media type', async (_, headers) => {
    const { mirror } = await startScene({ image })
    for (const _ of ['cold', 'warm']) {
      const answer = await mirror.get(`${app}/manifests/v1`, { headers })
      expectContent(answer, image.digest)
      expect(answer.headers).toMatchObject({ 'content-type': image.mediaType, 'docker-content-digest': image.digest })
    }
  })
})

test("the upstream's Accept header has every current manifest type and never schema 1", async () => {
  const { upstream, mirror } = await startScene()
  await mirror.get(`${app}/manifests/v1`, {
    headers: { accept: 'application/vnd.docker.distribution.manifest.v1+json' },
  })
  const { accept } = upstream.requests[0]!.headers
  for (const type of [mediaType.ociIndex, mediaType.ociManifest, mediaType.dockerList, mediaType.dockerManifest]) {
    expect(accept).toContain(type)
  }
  expect(accept).not.toContain('docker.distribution.manifest.v1')
})

test('the image of an index is pulled through the index', async () => {
  const child = makeImage({ seed: 1 })
  const index = makeIndex([child, makeImage({ seed: 2 })])
  const { mirror } = await startScene({ image: index })
  expectContent(await mirror.get(`${app}/manifests/v1`), index.digest)
  expectContent(await mirror.get(`${app}/manifests/${child.digest}`), child.digest)
  for (const digest of child.blobs.keys()) expectContent(await mirror.get(`${app}/blobs/${digest}`), digest)
})

test('a manifest with null members is served as the same bytes, and so is its content', async () => {
  const nothing = { subject: null, manifests: null, fsLayers: null, mediaType: null, annotations: { a: null } }
  const image = makeImage({ manifest: nothing })
  const { mirror, upstream, layer } = await startScene({ image })
  for (const _ of ['cold', 'warm']) {
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
  }
  expect(upstream.count({ path: `/blobs/${layer}` })).toBeLessThanOrEqual(1)
})

test('a schema 1 manifest is refused with a clear message', async () => {
  const type = 'application/vnd.docker.distribution.manifest.v1+prettyjws'
  const bytes = Buffer.from(
    JSON.stringify({ schemaVersion: 1, name: 'library/app', tag: 'v1', fsLayers: [], history: [] }),
  )
  const { mirror } = await startScene({ image: manifestOf(bytes, type) })
  expectError(await mirror.get(`${app}/manifests/v1`), 415, 'MANIFEST_INVALID')
  expect((await mirror.status()).storage.manifests).toBe(0)
})

describe('a manifest that is too large', () => {
  test('of 5.5 MB is refused, by tag and by digest', async () => {
    const image = makeImage({ manifest: { annotations: { padding: 'x'.repeat(5_500_000) } } })
    const { mirror } = await startScene({ image })
    expectError(await mirror.get(`${app}/manifests/v1`), 502)
    expectError(await mirror.get(`${app}/manifests/${image.digest}`), 502)
    expect((await mirror.status()).storage.blobs).toBe(0)
  })

  test('is one of 4 MiB; a slightly smaller one is served', async () => {
    const image = makeImage({ manifest: { annotations: { padding: 'x'.repeat(4 * 1024 * 1024 - 1000) } } })
    const { mirror } = await startScene({ image })
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
  })

  test('that never ends is refused, and its connection closed', async () => {
    const { upstream, mirror } = await startScene()
    upstream.on(anyManifest, endless)
    const before = process.memoryUsage().arrayBuffers
    expectError(await mirror.get(`${app}/manifests/v1`), 502)
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(20 * 1024 * 1024)
    await expect.poll(() => upstream.connections.open).toBe(0)
  })
})

test('a manifest that does not parse is refused', async () => {
  const deep = `{"schemaVersion":2,"mediaType":"${mediaType.ociManifest}","config":${'['.repeat(100_000)}${']'.repeat(100_000)}}`
  for (const text of ['[]', '"text"', 'null', '{', deep, '{"schemaVersion":2,"layers":1e400,"config":null}']) {
    const { mirror } = await startScene({ image: manifestOf(Buffer.from(text), mediaType.ociManifest) })
    const answer = await mirror.get(`${app}/manifests/v1`)
    if (answer.status !== 200) expectError(answer, 502)
    expect(({} as Record<string, unknown>)['polluted']).toBeUndefined()
  }
})

test('a manifest with hostile members is stored and served byte for byte', async () => {
  const text = makeImage()
    .bytes.toString()
    .replace('{', '{"__proto__":{"polluted":true},"constructor":{"prototype":1},')
  const image = manifestOf(Buffer.from(text), mediaType.ociManifest)
  const { mirror } = await startScene({ image })
  expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
  expect(({} as Record<string, unknown>)['polluted']).toBeUndefined()
})

describe('a sha512 digest', () => {
  test('of a blob and of a manifest is verified, and both are served', async () => {
    const { upstream, mirror, image, layerBytes } = await startScene()
    const [blob, manifest] = [computeDigest(layerBytes, 'sha512'), computeDigest(image.bytes, 'sha512')]
    upstream.on({ path: `${app}/blobs/${blob}` }, ({ response }) => send(response, { status: 200, body: layerBytes }))
    upstream.on({ path: `${app}/manifests/${manifest}` }, ({ response }) =>
      send(response, { status: 200, headers: { 'content-type': image.mediaType }, body: image.bytes }),
    )
    for (const [path, body] of [
      [`blobs/${blob}`, layerBytes],
      [`manifests/${manifest}`, image.bytes],
    ] as const) {
      for (const _ of ['cold', 'warm']) {
        const answer = await mirror.get(`${app}/${path}`)
        expect(answer.status).toBe(200)
        expect(answer.body.equals(body)).toBe(true)
      }
    }
  })
})

const json = (body: Buffer) => JSON.parse(body.toString()) as unknown

describe('lists', () => {
  test("of tags come from the upstream, page by page, with links below the client's path", async () => {
    const { upstream, mirror, image } = await startScene()
    for (const tag of ['a', 'b', 'c']) upstream.push('library/app', tag, image)
    const first = await mirror.get(`${app}/tags/list?n=2`)
    expect(json(first.body)).toEqual({ name: 'library/app', tags: ['a', 'b'] })
    const link = /^<([^>]+)>; ?rel="?next"?$/.exec(first.headers['link'] as string)?.[1]
    expect(link).toMatch(/^\/v2\/library\/app\/tags\/list\?/)
    expect(json((await mirror.get(link!)).body)).toEqual({ name: 'library/app', tags: ['c', 'v1'] })

    const prefixed = await mirror.get('/v2/docker.io/library/app/tags/list?n=2')
    expect(prefixed.headers['link']).toMatch(/^<\/v2\/docker\.io\/library\/app\/tags\/list\?/)
    const named = await mirror.get(`${app}/tags/list?n=2&ns=docker.io`)
    expect(named.headers['link']).toContain('ns=docker.io')
  })

  test('of tags have the cached tags while the upstream is down', async () => {
    const { upstream, mirror } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    await upstream.stop()
    expect(json((await mirror.get(`${app}/tags/list`)).body)).toEqual({ name: 'library/app', tags: ['v1'] })
  })

  test('of referrers are requested from the upstream, with the filter', async () => {
    const { upstream, mirror, image } = await startScene()
    const index = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: mediaType.ociIndex, manifests: [] }))
    upstream.on({ path: /\/referrers\// }, ({ response }) =>
      send(response, {
        status: 200,
        headers: { 'content-type': mediaType.ociIndex, 'oci-filters-applied': 'artifactType' },
        body: index,
      }),
    )
    const answer = await mirror.get(`${app}/referrers/${image.digest}?artifactType=application/sbom`)
    expectContent(answer, computeDigest(index))
    expect(answer.headers).toMatchObject({
      'content-type': mediaType.ociIndex,
      'oci-filters-applied': 'artifactType',
    })
    expect(upstream.requests.at(-1)!.path).toMatch(/artifactType=application(\/|%2F)sbom/)
  })

  test('of referrers come from the referrers tag where the upstream has no API, and are empty without it', async () => {
    const { upstream, mirror, image } = await startScene()
    const none = await mirror.get(`${app}/referrers/${image.digest}`)
    expect(none).toMatchObject({ status: 200, headers: { 'content-type': mediaType.ociIndex } })
    expect(json(none.body)).toMatchObject({ schemaVersion: 2, manifests: [] })

    const sbom = { mediaType: mediaType.ociManifest, digest: image.digest, size: 1, artifactType: 'application/sbom' }
    const other = { ...sbom, artifactType: 'application/other' }
    const tag = image.digest.replace(':', '-')
    const list = { schemaVersion: 2, mediaType: mediaType.ociIndex, manifests: [sbom, other] }
    upstream.push('library/app', tag, manifestOf(Buffer.from(JSON.stringify(list)), mediaType.ociIndex))
    const second = await mirror.get(`${app}/referrers/${image.digest}?artifactType=application/sbom`, {
      headers: { 'cache-control': 'no-cache' },
    })
    expect(second.headers['oci-filters-applied']).toBe('artifactType')
    expect(json(second.body)).toMatchObject({ manifests: [sbom] })
  })
})

test('a slow upstream manifest does not delay other images', async () => {
  const { upstream, mirror, image } = await startScene()
  upstream.push('library/app', 'v2', makeImage({ seed: 2 }))
  upstream.on({ path: `${app}/manifests/v1` }, late(500))
  const order: string[] = []
  const ask = async (tag: string) => {
    await mirror.get(`${app}/manifests/${tag}`)
    order.push(tag)
  }
  await Promise.all([ask('v1'), ask('v2')])
  expect(order).toEqual(['v2', 'v1'])
  expectContent(await mirror.get(`${app}/manifests/${image.digest}`), image.digest)
})
