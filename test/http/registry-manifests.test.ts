import { describe, expect, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { mediaType } from '../../src/oci/content.ts'
import { expectContent, expectError } from '../support/expect-content.ts'
import { makeImage, makeIndex, manifestOf } from '../support/images.ts'
import { jsonOf, startTestRegistry, type TestRegistry } from '../support/registry.ts'

const image = makeImage()
const limit = 4 * 1024 * 1024

const manifestWith = (fields: Record<string, unknown>, type: string = mediaType.ociManifest) =>
  manifestOf(Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: type, ...fields })), type)

async function withBlobs(): Promise<TestRegistry> {
  const registry = await startTestRegistry()
  for (const blob of image.blobs.values()) await registry.pushBlob('app', blob)
  return registry
}

const fields = JSON.parse(image.bytes.toString()) as { config: object; layers: object[] }

describe('Pushing manifests', () => {
  test('by tag is a 201 with Location and digest, and the manifest is pulled by tag and digest byte for byte with its type', async () => {
    const registry = await startTestRegistry()
    const pushed = await registry.push('team/app', 'v1', image)
    expect(pushed.headers).toMatchObject({
      location: `/v2/team/app/manifests/${image.digest}`,
      'docker-content-digest': image.digest,
    })
    for (const reference of ['v1', image.digest]) {
      const answer = await registry.get(`/v2/team/app/manifests/${reference}`)
      expectContent(answer, image.digest)
      expect(answer.headers['content-type']).toBe(image.mediaType)
      const head = await registry.ask('HEAD', `/v2/team/app/manifests/${reference}`)
      expect(head).toMatchObject({ status: 200, headers: { 'content-length': String(image.bytes.length) } })
      expect(head.body.length).toBe(0)
    }
  })

  test('by a sha512 digest stores and serves them under that digest, and the children too', async () => {
    const registry = await startTestRegistry()
    const [config, layer] = [Buffer.from('{}'), Buffer.from('layer')]
    const descriptors = [config, layer].map((blob) => ({
      mediaType: 'application/x',
      digest: computeDigest(blob, 'sha512'),
      size: blob.length,
    }))
    for (const blob of [config, layer]) await registry.pushBlob('app', blob, computeDigest(blob, 'sha512'))
    const made = manifestWith({ config: descriptors[0], layers: [descriptors[1]] })
    const digest = computeDigest(made.bytes, 'sha512')
    const answer = await registry.pushManifest('app', digest, made)
    expect(answer).toMatchObject({ status: 201, headers: { 'docker-content-digest': digest } })
    const got = await registry.get(`/v2/app/manifests/${digest}`)
    expect(got.headers['docker-content-digest']).toBe(digest)
    expect(got.body.equals(made.bytes)).toBe(true)
  })

  test('by a digest that does not match is a 400', async () => {
    const registry = await withBlobs()
    expectError(await registry.pushManifest('app', computeDigest(Buffer.from('x')), image), 400, 'DIGEST_INVALID')
  })

  test('by digest with additional tags names these in OCI-Tag, and all of them can be pulled', async () => {
    const registry = await withBlobs()
    const tags = Array.from({ length: 12 }, (_, at) => `t${at}`)
    const query = tags.map((tag) => `tag=${tag}`).join('&')
    const answer = await registry.pushManifest('app', `${image.digest}?${query}`, image)
    expect(answer).toMatchObject({ status: 201, headers: { 'oci-tag': tags.join(', ') } })
    expectContent(await registry.get('/v2/app/manifests/t11'), image.digest)
    expectError(await registry.pushManifest('app', `${image.digest}?tag=-bad`, image), 400)
  })

  test.each(['oci', 'docker'] as const)('accepts an index of images, %s', async (mediaTypes) => {
    const registry = await startTestRegistry()
    const index = makeIndex([makeImage({ mediaTypes }), makeImage({ mediaTypes, seed: 2 })], { mediaTypes })
    await registry.push('app', 'multi', index)
    const answer = await registry.get('/v2/app/manifests/multi', { accept: mediaType.dockerManifest })
    expectContent(answer, index.digest)
    expect(answer.headers['content-type']).toBe(index.mediaType)
  })

  test('accepts an index of indexes, an empty index, and one with unknown fields', async () => {
    const registry = await startTestRegistry()
    await registry.push('app', 'nested', makeIndex([makeIndex([image])]))
    await registry.push('app', 'empty', makeIndex([]))
    const odd = manifestWith({ manifests: [], 'org.example.custom': { a: [1] } }, mediaType.ociIndex)
    expect((await registry.pushManifest('app', 'odd', odd)).status).toBe(201)
  })

  test('accepts an artifact with any artifactType, and one of an unknown type', async () => {
    const registry = await withBlobs()
    const artifact = manifestWith({ ...fields, artifactType: 'application/x.anything' })
    expect((await registry.pushManifest('app', 'a', artifact)).status).toBe(201)
    const unknown = manifestWith({ artifactType: 'x', blobs: fields.layers }, 'application/vnd.example.thing.v1+json')
    expect((await registry.pushManifest('app', 'b', unknown)).status).toBe(201)
  })

  test('accepts a build cache, whose index lists layers', async () => {
    const registry = await withBlobs()
    const cache = manifestWith({ manifests: [...fields.layers, fields.config] }, mediaType.ociIndex)
    expect((await registry.pushManifest('app', 'cache', cache)).status).toBe(201)
  })

  test('requires the content that the manifests name in the same repository', async () => {
    const registry = await startTestRegistry()
    await registry.push('other', 'v1', image)
    expectError(await registry.pushManifest('app', 'v1', image), 400, 'MANIFEST_BLOB_UNKNOWN')
    expectError(await registry.pushManifest('app', 'v1', makeIndex([image])), 400, 'MANIFEST_BLOB_UNKNOWN')
    expect((await registry.get('/v2/app/manifests/v1')).status).toBe(404)
  })

  test.each([
    'application/vnd.oci.image.layer.nondistributable.v1.tar+gzip',
    'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip',
  ])('accepts an absent layer of type %s', async (type) => {
    const registry = await withBlobs()
    const foreign = {
      mediaType: type,
      digest: computeDigest(Buffer.from('far')),
      size: 3,
      urls: ['https://far.example/'],
    }
    const made = manifestWith({ ...fields, layers: [foreign] })
    expect((await registry.pushManifest('app', 'v1', made)).status).toBe(201)
  })

  test('accepts a Content-Type with parameters, or none, and serves it without parameters', async () => {
    const registry = await withBlobs()
    const path = '/v2/app/manifests/v1'
    const headers = { 'content-type': `${image.mediaType}; charset=utf-8` }
    expect((await registry.ask('PUT', path, { body: image.bytes, headers })).status).toBe(201)
    expect((await registry.ask('PUT', path, { body: image.bytes })).status).toBe(201)
    expect((await registry.get(path)).headers['content-type']).toBe(image.mediaType)
  })

  test.each([limit - 1, limit, 3_900_000])('accepts a manifest of %i bytes', async (size) => {
    const registry = await withBlobs()
    const made = padded(size)
    expect((await registry.pushManifest('app', 'big', made)).status).toBe(201)
    expectContent(await registry.get('/v2/app/manifests/big'), made.digest)
  })

  test.each(['content-length', 'chunked'])('refuses one of more than 4 MiB with 413 (%s)', async (framing) => {
    const registry = await withBlobs()
    const made = padded(limit + 1)
    const headers = framing === 'chunked' ? { 'transfer-encoding': 'chunked' } : {}
    const answer = await registry.ask('PUT', '/v2/app/manifests/big', {
      body: made.bytes,
      headers: { 'content-type': made.mediaType, ...headers },
    })
    expectError(answer, 413, 'SIZE_INVALID')
  })

  function padded(size: number) {
    const bare = manifestWith({ ...fields, annotations: { pad: '' } }).bytes.length
    return manifestWith({ ...fields, annotations: { pad: 'x'.repeat(size - bare) } })
  }
})

describe('a manifest that two readers could read differently', () => {
  const schema1 = 'application/vnd.docker.distribution.manifest.v1+prettyjws'
  test.each([
    ['with layers and manifests', { ...fields, manifests: [] }, mediaType.ociManifest, undefined],
    ['with layers, called an index', fields, mediaType.ociIndex, undefined],
    ['with manifests, called an image', { manifests: [] }, mediaType.ociManifest, undefined],
    ['with a mediaType that is not its Content-Type', fields, mediaType.ociManifest, mediaType.dockerManifest],
    ['of schema 1', { schemaVersion: 1, fsLayers: [], mediaType: undefined }, schema1, undefined],
    ['without a config', { layers: [] }, mediaType.ociManifest, undefined],
    [
      'with a digest that is none',
      { ...fields, layers: [{ digest: 'md5:1', size: 1 }] },
      mediaType.ociManifest,
      undefined,
    ],
    ['with a negative size', { ...fields, config: { ...fields.config, size: -1 } }, mediaType.ociManifest, undefined],
    [
      'with a size that is not the blob’s',
      { ...fields, config: { ...fields.config, size: 1 } },
      mediaType.ociManifest,
      undefined,
    ],
    ['with layers that are no list', { ...fields, layers: {} }, mediaType.ociManifest, undefined],
    ['with annotations that are no texts', { ...fields, annotations: { a: 1 } }, mediaType.ociManifest, undefined],
  ])('is refused with 400, such as one %s', async (_what, content, type, contentType) => {
    const registry = await withBlobs()
    const { bytes } = manifestWith(content, type)
    expectError(
      await registry.pushManifest('app', 'v1', { bytes, mediaType: contentType ?? type }),
      400,
      'MANIFEST_INVALID',
    )
  })

  const text = image.bytes.toString()
  test.each([
    ['not JSON', 'nonsense'],
    ['a list', '[]'],
    ['null', 'null'],
    ['100,000 deep', '['.repeat(100_000) + ']'.repeat(100_000)],
    ['100,000 deep in one member', text.replace('{', `{"deep":${'['.repeat(100_000)}${']'.repeat(100_000)},`)],
    ['JSON with a key twice', text.replace('{', '{"layers":[],')],
    ['JSON with a key twice, once escaped', text.replace('{', '{"l\\u0061yers":[],')],
    ['not UTF-8', Buffer.concat([Buffer.from('{"a":"'), Buffer.from([0xff]), Buffer.from('"}')])],
    ['JSON with a size of 1e400', text.replace(/"size":\d+/, '"size":1e400')],
  ])('is refused with 400, such as a text that is %s', async (_what, body) => {
    const registry = await withBlobs()
    const bytes = Buffer.from(body)
    expectError(
      await registry.pushManifest('app', 'v1', { bytes, mediaType: image.mediaType }),
      400,
      'MANIFEST_INVALID',
    )
    expect(({} as Record<string, unknown>)['x']).toBeUndefined()
  })

  test('is refused with 400 also with tens of thousands of layers that do not exist', async () => {
    const registry = await withBlobs()
    const layers = Array.from({ length: 30_000 }, (_, at) => ({
      mediaType: 'application/x',
      digest: computeDigest(Buffer.from(String(at))),
      size: 1,
    }))
    expectError(await registry.pushManifest('app', 'v1', manifestWith({ ...fields, layers })), 400)
  })

  test('is not one with a __proto__ field, which is accepted like any other field', async () => {
    const registry = await withBlobs()
    const bytes = Buffer.from(text.replace('{', '{"__proto__":{"x":1},'))
    expect((await registry.pushManifest('app', 'v1', { bytes, mediaType: image.mediaType })).status).toBe(201)
    expect(({} as Record<string, unknown>)['x']).toBeUndefined()
  })
})

describe('Deleting tags and manifests', () => {
  test('removes a tag without its manifest', async () => {
    const registry = await startTestRegistry()
    await registry.push('app', 'v1', image)
    await registry.pushManifest('app', 'v2', image)
    expect((await registry.ask('DELETE', '/v2/app/manifests/v1')).status).toBe(202)
    expect((await registry.get('/v2/app/manifests/v1')).status).toBe(404)
    expectError(await registry.ask('DELETE', '/v2/app/manifests/v1'), 404, 'MANIFEST_UNKNOWN')
    expectContent(await registry.get('/v2/app/manifests/v2'), image.digest)
    expectContent(await registry.get(`/v2/app/manifests/${image.digest}`), image.digest)
  })

  test('removes a manifest with its tags, at once, and only in this repository', async () => {
    const registry = await startTestRegistry()
    await registry.push('app', 'v1', image)
    await registry.push('other', 'v1', image)
    expect((await registry.ask('DELETE', `/v2/app/manifests/${image.digest}`)).status).toBe(202)
    for (const reference of ['v1', image.digest])
      expect((await registry.get(`/v2/app/manifests/${reference}`)).status).toBe(404)
    expect((await registry.ask('DELETE', `/v2/app/manifests/${image.digest}`)).status).toBe(404)
    expectContent(await registry.get('/v2/other/manifests/v1'), image.digest)
    expect(jsonOf(await registry.get('/v2/app/tags/list'))).toEqual({ name: 'app', tags: [] })
  })

  test('is a 404 in a repository that does not exist', async () => {
    const registry = await startTestRegistry()
    expectError(await registry.ask('DELETE', `/v2/none/manifests/${image.digest}`), 404, 'NAME_UNKNOWN')
    expectError(await registry.get('/v2/none/manifests/v1'), 404, 'NAME_UNKNOWN')
  })

  test('is a 405 for tags, manifests and blobs with deletes disabled, and an upload can be cancelled', async () => {
    const registry = await startTestRegistry({ registry: { deletes: false } })
    await registry.push('app', 'v1', image)
    for (const path of ['manifests/v1', `manifests/${image.digest}`, `blobs/${image.layers[0]}`])
      expectError(await registry.ask('DELETE', `/v2/app/${path}`), 405, 'UNSUPPORTED')
    expectContent(await registry.get('/v2/app/manifests/v1'), image.digest)
    expect((await registry.ask('DELETE', await registry.begin('app'))).status).toBe(204)
  })
})

test('pushes survive a restart, with type, tags and links', async () => {
  const registry = await startTestRegistry()
  await registry.push('app', 'v1', makeIndex([image]))
  await registry.close()
  const again = await startTestRegistry({ home: registry.home })
  expectContent(await again.get('/v2/app/manifests/v1'), makeIndex([image]).digest)
  expectContent(await again.get(`/v2/app/blobs/${image.layers[0]}`), image.layers[0]!)
  expect((await again.status()).registry).toMatchObject({ repositories: 1, tags: 1, manifests: 2 })
})

test.each(['OPTIONS', 'TRACE', 'POST'])('%s of a manifest is a 405', async (method) => {
  const registry = await startTestRegistry()
  expectError(await registry.ask(method, '/v2/app/manifests/v1'), 405, 'UNSUPPORTED')
})

describe('a member that is null counts as absent', () => {
  const index = makeIndex([image])
  const children = (JSON.parse(index.bytes.toString()) as { manifests: object[] }).manifests
  const type = { index: mediaType.ociIndex, list: mediaType.dockerList, artifact: 'application/vnd.example.thing+json' }
  const absent = { subject: null, annotations: null, artifactType: null, fsLayers: null, signatures: null }
  const platform = { architecture: 'amd64', os: 'linux', 'os.features': null, 'os.version': null }
  const odd = { urls: null, annotations: null, data: null, artifactType: null, platform: null }

  test.each<[string, Record<string, unknown>, string?]>([
    ['an image without layers', { ...fields, layers: null }],
    ['an image with every other member', { ...fields, ...absent, manifests: null, blobs: null, mediaType: null }],
    [
      'an image whose descriptors have them',
      { config: { ...fields.config, ...odd }, layers: [{ ...fields.layers[0], ...odd }] },
    ],
    ['an image with an annotation without a value', { ...fields, annotations: { a: 'b', c: null } }],
    ['an index without children', { manifests: null }, type.index],
    ['an index with the members of an image', { manifests: [], config: null, layers: null, blobs: null }, type.index],
    ['an index with every other member', { ...absent, manifests: children, mediaType: null }, type.index],
    [
      'an index whose platforms have them',
      {
        manifests: [
          { ...children[0], ...odd },
          { ...children[0], platform },
        ],
      },
      type.index,
    ],
    ["Docker's list", { manifests: null, config: null, layers: null }, type.list],
    ['something else', { schemaVersion: null, blobs: null, manifests: null, subject: null }, type.artifact],
  ])('in %s, which is accepted, and stored byte for byte', async (_, members, contentType = mediaType.ociManifest) => {
    const registry = await startTestRegistry()
    await registry.push('app', 'image', image)
    const made = manifestWith(members, contentType)
    expect(await registry.pushManifest('app', 'v1', made)).toMatchObject({ status: 201 })
    await registry.post('/api/registry/gc', { untagged: false, grace: 0, dryRun: false })
    for (const reference of ['v1', computeDigest(made.bytes)]) {
      const answer = await registry.get(`/v2/app/manifests/${reference}`)
      expectContent(answer, computeDigest(made.bytes))
      expect(answer.body.equals(made.bytes)).toBe(true)
      expect(answer.headers['content-type']).toBe(contentType)
    }
  })

  test.each<[string, Record<string, unknown>, string?]>([
    ['the config of an image', { ...fields, config: null }],
    ['the version', { ...fields, schemaVersion: null }],
    ['a descriptor', { ...fields, layers: [null] }],
    ['the digest of a descriptor', { ...fields, layers: [{ ...fields.layers[0], digest: null }] }],
    ['the size of a descriptor', { ...fields, layers: [{ ...fields.layers[0], size: null }] }],
  ])('and %s is required', async (_, members, contentType = mediaType.ociManifest) => {
    const registry = await withBlobs()
    expectError(await registry.pushManifest('app', 'v1', manifestWith(members, contentType)), 400, 'MANIFEST_INVALID')
  })
})
