import { describe, expect, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { mediaType } from '../../src/oci/content.ts'
import { expectContent, expectError } from '../support/expect-content.ts'
import { makeImage, manifestOf, type TestImage } from '../support/images.ts'
import { startTestMirror } from '../support/mirror.ts'
import { noise } from '../support/noise.ts'
import { jsonOf, startTestRegistry } from '../support/registry.ts'

const bytes = noise(3000)
const digest = computeDigest(bytes)
const image = makeImage()
const describesImage = { mediaType: image.mediaType, digest: image.digest, size: image.bytes.length }

/** Creates a manifest with other fields, on the blobs of the image. */
const like = (fields: Record<string, unknown>): TestImage => {
  const made = Buffer.from(JSON.stringify({ ...(JSON.parse(image.bytes.toString()) as object), ...fields }))
  return { ...manifestOf(made, image.mediaType), blobs: image.blobs }
}

describe('a mistake of other registries is avoided:', () => {
  test('Docker-Content-Digest has the requested algorithm', async () => {
    const registry = await startTestRegistry()
    for (const algorithm of ['sha256', 'sha512'] as const) {
      const blob = await registry.pushBlob('app', bytes, computeDigest(bytes, algorithm))
      for (const [name, body] of image.blobs) await registry.pushBlob('app', body, name)
      const manifest = computeDigest(image.bytes, algorithm)
      const pushed = await registry.pushManifest('app', manifest, image)
      expect(pushed.headers['docker-content-digest']).toBe(manifest)
      for (const method of ['HEAD', 'GET'])
        for (const [path, wanted] of [
          [`blobs/${blob}`, blob],
          [`manifests/${manifest}`, manifest],
        ] as const)
          expect((await registry.ask(method, `/v2/app/${path}`)).headers['docker-content-digest']).toBe(wanted)
    }
  })

  test('there is a referrers API, and OCI-Subject says so', async () => {
    const registry = await startTestRegistry()
    const signature = like({ artifactType: 'application/x.sig', subject: describesImage })
    const answer = await registry.push('app', signature.digest, signature)
    expect(answer.headers['oci-subject']).toBe(image.digest)
    const { manifests } = jsonOf<{ manifests: { digest: string }[] }>(
      await registry.get(`/v2/app/referrers/${image.digest}`),
    )
    expect(manifests.map((entry) => entry.digest)).toEqual([signature.digest])
  })

  test.each(['PATCH', 'PUT'])('an out-of-order chunk by %s is refused', async (method) => {
    const registry = await startTestRegistry()
    const location = await registry.begin('app')
    await registry.ask('PATCH', location, { body: bytes.subarray(0, 1000), headers: { 'content-range': '0-999' } })
    for (const start of [0, 999, 1001, 2000]) {
      const headers = { 'content-range': `${start}-${start + 999}` }
      const body = bytes.subarray(start, start + 1000)
      const refused = await registry.ask(method, `${location}?digest=${digest}`, { body, headers })
      expectError(refused, 416, 'BLOB_UPLOAD_INVALID')
      expect(refused.headers.range).toBe('0-999')
    }
  })

  test.each(['bytes=5000-10000', 'bytes=500-0'])('a 416 for %s has the length of its own body', async (range) => {
    const registry = await startTestRegistry()
    await registry.pushBlob('app', bytes)
    const answer = await registry.get(`/v2/app/blobs/${digest}`, { range })
    expectError(answer, 416)
    expect(answer.headers['content-length']).toBe(String(answer.body.length))
    expect(answer.headers['content-range']).toBe('bytes */3000')
  })

  test('sha256:baddigeststring is a bad request wherever a digest may stand', async () => {
    const registry = await startTestRegistry()
    await registry.push('app', 'v1', image)
    const bad = 'sha256:baddigeststring'
    const location = await registry.begin('app')
    const asked: [string, string][] = [
      ['GET', `/v2/app/blobs/${bad}`],
      ['DELETE', `/v2/app/blobs/${bad}`],
      ['GET', `/v2/app/manifests/${bad}`],
      ['PUT', `/v2/app/manifests/${bad}`],
      ['DELETE', `/v2/app/manifests/${bad}`],
      ['GET', `/v2/app/referrers/${bad}`],
      ['POST', `/v2/app/blobs/uploads/?digest=${bad}`],
      ['POST', `/v2/app/blobs/uploads/?mount=${bad}&from=app`],
      ['PUT', `${location}?digest=${bad}`],
    ]
    for (const [method, path] of asked) expectError(await registry.ask(method, path), 400, 'DIGEST_INVALID')
  })

  test('a manifest with absent non-distributable layers is accepted', async () => {
    const registry = await startTestRegistry()
    const layers = [
      'application/vnd.oci.image.layer.nondistributable.v1.tar+gzip',
      'application/vnd.oci.image.layer.nondistributable.v1.tar+zstd',
      'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip',
    ].map((type) => ({ mediaType: type, digest, size: 3000, urls: ['https://store.example/x'] }))
    expect((await registry.push('app', 'v1', like({ layers }))).status).toBe(201)
  })

  test('a list of tags begins after the tag in last', async () => {
    const registry = await startTestRegistry()
    for (const tag of ['a', 'b', 'c']) await registry.push('app', tag, image)
    expect(jsonOf(await registry.get('/v2/app/tags/list?last=a'))).toEqual({ name: 'app', tags: ['b', 'c'] })
  })

  test('a manifest of 3.9 MB is accepted', async () => {
    const registry = await startTestRegistry()
    const large = like({ annotations: { padding: 'x'.repeat(3_900_000) } })
    await registry.push('app', 'large', large)
    expectContent(await registry.get('/v2/app/manifests/large'), large.digest)
  })

  test('a delete is immediate', async () => {
    const registry = await startTestRegistry()
    await registry.push('app', 'v1', image)
    for (const path of ['manifests/v1', `manifests/${image.digest}`, `blobs/${image.layers[0]}`]) {
      expect((await registry.ask('DELETE', `/v2/app/${path}`)).status).toBe(202)
      for (const method of ['HEAD', 'GET'])
        expect((await registry.ask(method, `/v2/app/${path}`)).status, path).toBe(404)
    }
    expect(jsonOf(await registry.get('/v2/app/tags/list'))).toEqual({ name: 'app', tags: [] })
  })

  test('a manifest that is missing by digest is a 404, through the cache too', async () => {
    const registry = await startTestRegistry()
    await registry.push('app', 'v1', image)
    const mirror = await startTestMirror({ upstreams: { 'docker.io': registry.url } })
    const missing = computeDigest(Buffer.from('missing'))
    for (const method of ['GET', 'HEAD']) {
      expect((await registry.ask(method, `/v2/app/manifests/${missing}`)).status).toBe(404)
      expect((await mirror.get(`/v2/library/app/manifests/${missing}`, { method })).status).toBe(404)
    }
  })

  test('a blob of 0 bytes is accepted', async () => {
    const registry = await startTestRegistry()
    const none = Buffer.alloc(0)
    for (const algorithm of ['sha256', 'sha512'] as const) {
      const pushed = await registry.pushBlob('app', none, computeDigest(none, algorithm))
      for (const method of ['HEAD', 'GET'])
        expect(await registry.ask(method, `/v2/app/blobs/${pushed}`)).toMatchObject({
          status: 200,
          headers: { 'content-length': '0' },
        })
    }
  })

  test('a chunked PATCH without Content-Length, and a PUT with a body after PATCHes, are accepted', async () => {
    const registry = await startTestRegistry()
    const location = await registry.begin('app')
    const headers = { 'transfer-encoding': 'chunked' }
    for (const start of [0, 1000]) {
      const body = bytes.subarray(start, start + 1000)
      expect((await registry.ask('PATCH', location, { body, headers })).status).toBe(202)
    }
    const put = await registry.ask('PUT', `${location}?digest=${digest}`, { body: bytes.subarray(2000) })
    expect(put.status).toBe(201)
    expectContent(await registry.get(`/v2/app/blobs/${digest}`), digest)
  })

  test('a HEAD has the Content-Length of the GET, and no body', async () => {
    const registry = await startTestRegistry()
    await registry.push('app', 'v1', image)
    for (const path of ['manifests/v1', `manifests/${image.digest}`, `blobs/${image.layers[0]}`, 'tags/list']) {
      const [head, get] = [await registry.ask('HEAD', `/v2/app/${path}`), await registry.get(`/v2/app/${path}`)]
      expect(head.headers['content-length']).toBe(String(get.body.length))
      expect(head.headers['content-type']).toBe(get.headers['content-type'])
      expect(head.body.length).toBe(0)
    }
  })

  test('a mount that names no repository finds the blob', async () => {
    const registry = await startTestRegistry()
    await registry.pushBlob('a', bytes)
    const answer = await registry.ask('POST', `/v2/b/blobs/uploads/?mount=${digest}`)
    expect(answer.status).toBe(201)
    expectContent(await registry.get(answer.headers.location!), digest)
  })

  test('an error response to a HEAD has no body, and the connection stays open', async () => {
    const registry = await startTestRegistry()
    const answer = await registry.ask('HEAD', `/v2/app/blobs/${digest}`)
    expect(answer).toMatchObject({ status: 404, complete: true })
    expect(answer.body.length).toBe(0)
  })
})

test('the index that lists no referrers has its own media type', async () => {
  const registry = await startTestRegistry()
  const answer = await registry.get(`/v2/app/referrers/${digest}`)
  expect(answer.headers['content-type']).toBe(mediaType.ociIndex)
})
