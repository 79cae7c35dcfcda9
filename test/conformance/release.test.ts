import { expect, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { mediaType } from '../../src/oci/content.ts'
import { get, type Answer } from '../support/get.ts'
import { noise } from '../support/noise.ts'
import { jsonOf, startTestRegistry } from '../support/registry.ts'
import { Content, type ContentManifest, type ImageOptions } from './support/content.ts'
import { locationOf, pushBlob } from './support/push-blob.ts'

// Follows the suite released with version 1.1.1 of the specification, with its own titles, where it requires more than the
// newer one. https://github.com/opencontainers/distribution-spec/tree/v1.1.1/conformance

const name = 'app/x'
const unknown = computeDigest(Buffer.from('hello world'))
const octets = { 'content-type': 'application/octet-stream' }
const acceptImage = { accept: mediaType.ociManifest }

async function setUp() {
  const { url } = await startTestRegistry()
  const ask = (method: string, path: string, body?: Buffer, headers: Record<string, string> = {}) =>
    get(url, path.startsWith('/') ? path : `/v2/${name}/${path}`, { method, headers, ...(body && { body }) })
  const pushBlobs = async ({ blobs }: Content) => {
    for (const [digest, bytes] of blobs) await pushBlob('post+put', { url, repository: name, digest, bytes })
  }
  const pushManifest = (reference: string, { mediaType: type, bytes }: Pick<ContentManifest, 'mediaType' | 'bytes'>) =>
    ask('PUT', `manifests/${reference}`, bytes, { 'content-type': type })
  /** Pushes an image by digest, and by tag if one is given. */
  const pushImage = async (content: Content, tag?: string) => {
    await pushBlobs(content)
    const manifest = content.manifests[0]!
    for (const reference of [manifest.digest, ...(tag === undefined ? [] : [tag])])
      expect((await pushManifest(reference, manifest)).status).toBe(201)
    return manifest
  }
  return { url, ask, pushBlobs, pushManifest, pushImage }
}

function oneImage(seed = 0): Content {
  const content = new Content({ seed })
  content.image({ layers: [300] })
  return content
}

const codeOf = (answer: Answer) => jsonOf<{ errors: { code: string }[] }>(answer).errors[0]!.code
const tagsOf = (answer: Answer) => jsonOf<{ tags: string[] }>(answer).tags

test.each([
  ['HEAD request to nonexistent blob', 'HEAD', `blobs/${unknown}`],
  ['GET nonexistent blob', 'GET', `blobs/${unknown}`],
  ['HEAD request to nonexistent manifest', 'HEAD', 'manifests/.INVALID_MANIFEST_NAME'],
  ['GET nonexistent manifest', 'GET', 'manifests/.INVALID_MANIFEST_NAME'],
])('Pull: %s should return 404', async (_title, method, path) => {
  const { ask, pushImage } = await setUp()
  await pushImage(oneImage())
  expect((await ask(method, path)).status).toBe(404)
})

test('Pull: HEAD and GET request to manifest path (digest, tag) should yield 200 response', async () => {
  const { ask, pushImage } = await setUp()
  const { digest } = await pushImage(oneImage(), 'tagtest0')
  for (const method of ['HEAD', 'GET'])
    for (const reference of [digest, 'tagtest0']) {
      const answer = await ask(method, `manifests/${reference}`, undefined, acceptImage)
      expect(answer).toMatchObject({ status: 200, headers: { 'docker-content-digest': digest } })
    }
})

test('Pull: 400 response body should contain OCI-conforming JSON message', async () => {
  const { ask } = await setUp()
  const answer = await ask('GET', 'manifests/sha256:totallywrong')
  expect(answer.status).toBe(400)
  expect(codeOf(answer)).toBe('DIGEST_INVALID')
})

test('Push: Blob Upload Monolithic: POST with digest and blob, then GET of the blob', async () => {
  const { url, ask } = await setUp()
  const bytes = noise(300)
  const digest = computeDigest(bytes)
  expect((await ask('GET', `blobs/${digest}`)).status).toBe(404)
  const posted = await ask('POST', `blobs/uploads/?digest=${digest}`, bytes, octets)
  expect(posted.status).toBe(201)
  expect((await ask('GET', locationOf(posted, url))).status).toBe(200)
})

test('Push: Blob Upload Chunked: out of order, again, stale state, and on', async () => {
  const { url, ask } = await setUp()
  const bytes = noise(2 * 1024 * 1024 - 2)
  const middle = bytes.length / 2 + 1
  const [first, second] = [bytes.subarray(0, middle), bytes.subarray(middle)]
  const begin = () => ask('POST', 'blobs/uploads/', undefined, { 'content-length': '0' })
  const patch = (location: string, body: Buffer, start: number) =>
    ask('PATCH', location, body, { ...octets, 'content-range': `${start}-${start + body.length - 1}` })

  const other = locationOf(await begin(), url)
  expect((await patch(other, second, middle)).status, 'Out-of-order blob upload').toBe(416)

  const location = locationOf(await begin(), url)
  const held = `0-${middle - 1}`
  expect(await patch(location, first, 0)).toMatchObject({ status: 202, headers: { range: held } })
  expect((await patch(location, first, 0)).status, 'Retry previous blob chunk').toBe(416)
  const state = await ask('GET', location)
  expect(state, 'Get on stale blob upload').toMatchObject({ status: 204, headers: { range: held } })
  const last = await patch(locationOf(state, url), second, middle)
  expect(last.status).toBe(202)
  const target = locationOf(last, url, { digest: computeDigest(bytes) })
  const put = await ask('PUT', target, undefined, { ...octets, 'content-length': '0' })
  expect(put.status).toBe(201)
  expect((await ask('GET', locationOf(put, url))).body.equals(bytes)).toBe(true)
})

test('Push: Cross-Repository Blob Mount: with from, without, and of a missing blob', async () => {
  const { url, ask } = await setUp()
  const bytes = noise(42)
  const digest = computeDigest(bytes)
  await pushBlob('stream', { url, repository: name, digest, bytes })
  const none = await ask('POST', `/v2/app/y/blobs/uploads/?mount=${unknown}`)
  expect(none.status).toBe(202)
  expect(none.headers.location).toMatch(/^\/v2\/app\/y\/blobs\/uploads\//)
  for (const from of [`&from=${encodeURIComponent(name)}`, '']) {
    const mounted = await ask('POST', `/v2/app/y/blobs/uploads/?mount=${digest}${from}`)
    expect(mounted.status).toBe(201)
    expect(mounted.headers.location).toBe(`/v2/app/y/blobs/${digest}`)
    expect((await ask('GET', mounted.headers.location!)).status).toBe(200)
  }
})

test('Push: Manifest Upload: several tags of one, one without layers or mediaType, and GET by digest', async () => {
  const { ask, pushImage, pushManifest } = await setUp()
  const content = oneImage()
  const manifest = await pushImage(content)
  for (const at of [0, 1, 2, 3]) {
    const answer = await pushManifest(`test${at}`, manifest)
    expect(answer).toMatchObject({ status: 201, headers: { location: expect.stringMatching(/./) } })
  }
  const { config } = JSON.parse(manifest.bytes.toString()) as { config: object }
  // Indents the document, and adds an unknown field to a descriptor, as the suite does.
  const odd = { schemaVersion: 2, config: { ...config, newUnspecifiedField: 'aGVsbG8gd29ybGQ=' }, layers: [] }
  const bytes = Buffer.from(JSON.stringify(odd, undefined, '\t'))
  expect((await pushManifest('emptylayer', { mediaType: mediaType.ociManifest, bytes })).status).toBe(201)
  expect((await ask('GET', `manifests/${manifest.digest}`, undefined, acceptImage)).status).toBe(200)
})

test('Content Discovery: listing tags, limitable by `n`, started by `last`', async () => {
  const { ask, pushImage, pushManifest } = await setUp()
  const manifest = await pushImage(oneImage())
  for (const at of [0, 1, 2, 3]) await pushManifest(`test${at}`, manifest)
  const all = await ask('GET', 'tags/list')
  expect(all.status).toBe(200)
  expect(tagsOf(all)).toHaveLength(4)
  const some = tagsOf(await ask('GET', 'tags/list?n=2'))
  expect(some).toHaveLength(2)
  expect(tagsOf(await ask('GET', `tags/list?n=2&last=${some[1]}`))).toEqual(['test2', 'test3'])
})

test('Content Discovery: listing references, pushed before and after their subject, of an index, and of none', async () => {
  const { ask, pushBlobs, pushManifest } = await setUp()
  const content = new Content()
  const subject = content.image()
  const absent = { ...subject, digest: unknown }
  const [a, b] = ['application/vnd.nhl.peanut.butter.bagel', 'application/vnd.nba.strawberry.jam.croissant']
  const empty = { mediaType: 'application/vnd.oci.empty.v1+json', bytes: Buffer.from('{}') }
  const note = (text: string) => ({ annotations: { 'org.opencontainers.conformance.test': text }, subject })
  const byConfig = (type: string): ImageOptions => ({
    config: { mediaType: type, bytes: Buffer.from(type) },
    layers: [empty.bytes],
    layerType: empty.mediaType,
  })
  const byLayer = (type: string): ImageOptions => ({
    artifactType: type,
    config: empty,
    layers: [Buffer.from(type)],
    layerType: type,
  })
  const before = [
    content.image({ ...byConfig(a), ...note('config a') }),
    content.image({ ...byLayer(a), ...note('layer a') }),
  ]
  const index = content.index(before, { artifactType: 'application/vnd.food.stand', ...note('index') })
  const after = [
    content.image({ ...byConfig(b), ...note('config b') }),
    content.image({ ...byLayer(b), ...note('layer b') }),
  ]
  const ofNone = content.image({ ...byLayer(b), subject: absent })
  await pushBlobs(content)
  const order = [...before, index, subject, ...after, ofNone]
  for (const { digest } of order) {
    const manifest = content.manifests.find((one) => one.digest === digest)!
    const answer = await pushManifest(digest, manifest)
    expect(answer.status).toBe(201)
    expect(answer.headers['oci-subject']).toBe(manifest.subject)
  }

  const list = async (digest: string, query = '') => {
    const answer = await ask('GET', `referrers/${digest}${query}`)
    expect(answer).toMatchObject({ status: 200, headers: { 'content-type': mediaType.ociIndex } })
    expect(answer.headers['oci-filters-applied']).toBe(query === '' ? undefined : 'artifactType')
    const { manifests } = jsonOf<{ manifests: { digest: string; annotations?: object }[] }>(answer)
    return manifests
  }
  const digestsOf = (entries: readonly { digest: string }[]) => entries.map(({ digest }) => digest).toSorted()
  const all = await list(subject.digest)
  expect(digestsOf(all)).toEqual(digestsOf([...before, index, ...after]))
  for (const { annotations } of all) expect(Object.keys(annotations!)).toHaveLength(1)
  expect(digestsOf(await list(subject.digest, `?artifactType=${a}`))).toEqual(digestsOf(before))
  expect(digestsOf(await list(unknown))).toEqual([ofNone.digest])
  expect(await list(computeDigest(Buffer.from('nobody refers to this')))).toEqual([])
})

test('Content Management: a tag, its manifest and its blobs are deleted, also from the lists', async () => {
  const { ask, pushImage } = await setUp()
  const content = oneImage()
  const { digest } = await pushImage(content, 'tagtest0')
  expect((await ask('DELETE', 'manifests/tagtest0')).status).toBe(202)
  expect((await ask('DELETE', `manifests/${digest}`)).status).toBe(202)
  expect((await ask('GET', `manifests/${digest}`)).status).toBe(404)
  expect(tagsOf(await ask('GET', 'tags/list'))).toEqual([])
  for (const blob of content.blobs.keys()) {
    expect((await ask('DELETE', `blobs/${blob}`)).status).toBe(202)
    expect((await ask('GET', `blobs/${blob}`)).status).toBe(404)
  }
})
