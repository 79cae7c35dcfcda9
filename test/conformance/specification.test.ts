import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { hash } from 'bcryptjs'
import { describe, expect, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { mediaType } from '../../src/oci/content.ts'
import { toReferrersTag } from '../../src/oci/lists.ts'
import type { Answer } from '../support/get.ts'
import { makeImage, manifestOf } from '../support/images.ts'
import { temporaryHome } from '../support/mirror.ts'
import { noise } from '../support/noise.ts'
import { jsonOf, startTestRegistry, type TestRegistry } from '../support/registry.ts'

// Follows the headings of the specification; test/http/registry-*.test.ts tests the details.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md

const image = makeImage()
const blob = noise(1000)
const digest = computeDigest(blob)
const unknown = computeDigest(Buffer.from('unknown'))
const subject = { mediaType: image.mediaType, digest: image.digest, size: image.bytes.length }
const referrer = makeImage({ manifest: { artifactType: 'application/x.sbom', annotations: { a: 'b' }, subject } })

/** Sets up a registry with an image at app:v1, and a blob in app. */
async function setUp(): Promise<TestRegistry> {
  const registry = await startTestRegistry()
  await registry.push('app', 'v1', image)
  await registry.pushBlob('app', blob)
  return registry
}

const codeOf = (answer: Answer) => jsonOf<{ errors: { code: string }[] }>(answer).errors[0]!.code

test('Legacy Docker support HTTP headers', async () => {
  const registry = await setUp()
  for (const path of [
    '/v2/',
    '/v2/app/manifests/v1',
    `/v2/app/blobs/${digest}`,
    '/v2/app/tags/list',
    '/v2/none/tags/list',
  ])
    expect((await registry.get(path)).headers['docker-distribution-api-version']).toBe('registry/2.0')
})

describe('Pulling manifests', () => {
  test.each(['a', 'a1', 'a.b', 'a_b', 'a__b', 'a-b', 'a---b', 'a/b/c', '0/1', 'a'.repeat(255)])(
    'the <name> %s is valid',
    async (name) => {
      const registry = await startTestRegistry()
      expect((await registry.push(name, 'v1', image)).status).toBe(201)
      expect((await registry.get(`/v2/${name}/manifests/v1`)).status).toBe(200)
    },
  )

  test.each(['A', 'a..b', 'a._b', 'a___b', '-a', 'a-', 'a/', '/a', 'a//b', 'a/.b', 'a b', 'ä', 'a'.repeat(256)])(
    'the <name> %s is invalid',
    async (name) => {
      const registry = await startTestRegistry()
      const path = `/v2/${encodeURI(name)}/manifests/v1`
      expect([400, 404]).toContain((await registry.get(path)).status)
      const push = { headers: { 'content-type': image.mediaType }, body: image.bytes }
      expect([400, 404]).toContain((await registry.ask('PUT', path, push)).status)
    },
  )

  test.each(['v1', '_', '1.0', 'A-b_c.D', 't'.repeat(128)])('the tag %s is valid', async (tag) => {
    const registry = await startTestRegistry()
    await registry.push('app', tag, image)
    expect((await registry.get(`/v2/app/manifests/${tag}`)).status).toBe(200)
  })

  test.each(['.a', '-a', 'a+b', 't'.repeat(129), '%20'])('the tag %s is invalid', async (tag) => {
    const registry = await setUp()
    expect((await registry.get(`/v2/app/manifests/${tag}`)).status).toBe(404)
    expect((await registry.pushManifest('app', tag, image)).status).toBe(400)
  })

  test('Content-Type is that of the push without parameters, the bytes are the same, and Docker-Content-Digest is theirs', async () => {
    const registry = await startTestRegistry()
    const config = { mediaType: mediaType.octetStream, digest, size: blob.length }
    const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, config, layers: [] }))
    const custom = manifestOf(bytes, 'application/vnd.example.thing+json')
    await registry.pushBlob('app', blob)
    const headers = { 'content-type': `${custom.mediaType}; charset=utf-8` }
    const pushed = await registry.ask('PUT', '/v2/app/manifests/v1', { headers, body: custom.bytes })
    expect(pushed).toMatchObject({ status: 201, headers: { 'docker-content-digest': custom.digest } })
    const answer = await registry.get('/v2/app/manifests/v1', { accept: mediaType.ociManifest })
    expect(answer.headers).toMatchObject({ 'content-type': custom.mediaType, 'docker-content-digest': custom.digest })
    expect(answer.body.equals(custom.bytes)).toBe(true)
  })
})

test('Checking if content exists in the registry', async () => {
  const registry = await setUp()
  for (const [path, size] of [
    ['manifests/v1', image.bytes.length],
    [`manifests/${image.digest}`, image.bytes.length],
    [`blobs/${digest}`, blob.length],
  ] as const) {
    const answer = await registry.ask('HEAD', `/v2/app/${path}`)
    expect(answer).toMatchObject({ status: 200, headers: { 'content-length': String(size) } })
    expect(answer.headers['docker-content-digest']).toBe(path.startsWith('blobs') ? digest : image.digest)
    expect(answer.body.length).toBe(0)
  }
  for (const path of ['manifests/v2', `manifests/${unknown}`, `blobs/${unknown}`])
    expect((await registry.ask('HEAD', `/v2/app/${path}`)).status).toBe(404)
})

test('Push: a manifest may precede its subject, but nothing else that it names', async () => {
  const registry = await startTestRegistry()
  expect((await registry.push('app', referrer.digest, referrer)).headers['oci-subject']).toBe(image.digest)
  const refused = await registry.pushManifest('other', 'v1', image)
  expect(refused.status).toBe(400)
  expect(codeOf(refused)).toBe('MANIFEST_BLOB_UNKNOWN')
})

test('Referrers Tag Schema', () => {
  expect(toReferrersTag(image.digest)).toBe(image.digest.replace(':', '-'))
  const long = computeDigest(blob, 'sha512')
  expect(toReferrersTag(long)).toBe(long.replace(':', '-').slice(0, 'sha512-'.length + 64))
})

test('Determining Support: 200, or 401 where a password is required', async () => {
  expect((await (await startTestRegistry()).get('/v2/')).status).toBe(200)
  const home = await temporaryHome()
  const htpasswd = join(home, 'htpasswd')
  await writeFile(htpasswd, `dev:${await hash('x', 4)}\n`)
  const registry = await startTestRegistry({ home, registry: { auth: { htpasswd } } })
  expect((await registry.get('/v2/')).status).toBe(401)
})

describe('Endpoints', () => {
  const octets = { 'content-type': 'application/octet-stream' }
  const json = { 'content-type': image.mediaType }
  type Request = [id: string, method: string, path: string, status: number | number[], body?: Buffer, headers?: object]
  // Replaces {upload} by the path of an upload that has the blob's first 100 bytes.
  const table: Request[] = [
    ['end-1', 'GET', '/v2/', 200],
    ['end-2', 'GET', `/v2/app/blobs/${digest}`, 200],
    ['end-2', 'HEAD', `/v2/app/blobs/${digest}`, 200],
    ['end-2', 'GET', `/v2/app/blobs/${unknown}`, 404],
    ['end-3', 'GET', '/v2/app/manifests/v1', 200],
    ['end-3', 'HEAD', `/v2/app/manifests/${image.digest}`, 200],
    ['end-3', 'GET', '/v2/none/manifests/v1', 404],
    ['end-4a', 'POST', '/v2/app/blobs/uploads/', 202],
    ['end-4b', 'POST', `/v2/new/blobs/uploads/?digest=${digest}`, 201, blob, octets],
    ['end-4b', 'POST', `/v2/new/blobs/uploads/?digest=${unknown}`, 400, blob, octets],
    ['end-4c', 'POST', '/v2/app/blobs/uploads/?digest-algorithm=sha512', 202],
    ['end-4c', 'POST', '/v2/app/blobs/uploads/?digest-algorithm=md5', 400],
    ['end-5', 'PATCH', '{upload}', 202, blob.subarray(100), { ...octets, 'content-range': '100-999' }],
    ['end-5', 'PATCH', '{upload}', 416, blob, { ...octets, 'content-range': '0-999' }],
    ['end-5', 'PATCH', '/v2/app/blobs/uploads/none', 404, blob, octets],
    ['end-6', 'PUT', `{upload}?digest=${digest}`, 201, blob.subarray(100), octets],
    ['end-6', 'PUT', `{upload}?digest=${unknown}`, 400, blob.subarray(100), octets],
    ['end-6', 'PUT', `/v2/app/blobs/uploads/none?digest=${digest}`, 404, blob, octets],
    ['end-7a', 'PUT', '/v2/app/manifests/v2', 201, image.bytes, json],
    ['end-7a', 'PUT', `/v2/app/manifests/${image.digest}`, 201, image.bytes, json],
    ['end-7a', 'PUT', `/v2/app/manifests/${unknown}`, 400, image.bytes, json],
    ['end-7a', 'PUT', '/v2/app/manifests/large', 413, Buffer.alloc(4 * 1024 * 1024 + 1), json],
    ['end-7b', 'PUT', `/v2/app/manifests/${image.digest}?tag=a&tag=b`, 201, image.bytes, json],
    ['end-8a', 'GET', '/v2/app/tags/list', 200],
    ['end-8a', 'GET', '/v2/none/tags/list', 404],
    ['end-8b', 'GET', '/v2/app/tags/list?n=1&last=a', 200],
    ['end-9', 'DELETE', '/v2/app/manifests/v1', 202],
    ['end-9', 'DELETE', `/v2/app/manifests/${image.digest}`, 202],
    ['end-9', 'DELETE', '/v2/none/manifests/v1', 404],
    ['end-10', 'DELETE', `/v2/app/blobs/${digest}`, 202],
    ['end-10', 'DELETE', `/v2/app/blobs/${unknown}`, 404],
    ['end-11', 'POST', `/v2/new/blobs/uploads/?mount=${digest}&from=app`, 201],
    ['end-11', 'POST', `/v2/new/blobs/uploads/?mount=${unknown}&from=app`, 202],
    ['end-12a', 'GET', `/v2/app/referrers/${unknown}`, 200],
    ['end-12a', 'GET', '/v2/app/referrers/sha256:bad', 400],
    ['end-12b', 'GET', `/v2/app/referrers/${unknown}?artifactType=application%2Fx`, 200],
    ['end-13', 'GET', '{upload}', 204],
    ['end-13', 'GET', '/v2/app/blobs/uploads/none', 404],
    ['end-14', 'DELETE', '{upload}', 204],
    ['end-14', 'DELETE', '/v2/app/blobs/uploads/none', 404],
  ]
  test.each(table)('%s: %s %s is answered %i', async (_id, method, path, status, body, headers = {}) => {
    const registry = await setUp()
    const upload = await registry.begin('app')
    await registry.ask('PATCH', upload, { body: blob.subarray(0, 100) })
    const answer = await registry.ask(method, path.replace('{upload}', upload), {
      headers: headers as Record<string, string>,
      ...(body && { body }),
    })
    expect(answer.status).toBe(status)
    // Follows the Location of each step.
    if (status !== 201 && status !== 204 && status !== 202) return
    if (method === 'DELETE') return
    const { location } = answer.headers
    expect((await registry.get(location!)).status).toBe(status === 201 ? 200 : 204)
  })
})

describe('Error Codes', () => {
  test('every 4xx has a body of the specified form, with a specified code', async () => {
    const registry = await setUp()
    const limited = await startTestRegistry({ registry: { deletes: false } })
    const upload = await registry.begin('app')
    const schema1 = Buffer.from(JSON.stringify({ schemaVersion: 1 }))
    const expected: [string, Answer][] = [
      ['BLOB_UNKNOWN', await registry.get(`/v2/app/blobs/${unknown}`)],
      [
        'BLOB_UPLOAD_INVALID',
        await registry.ask('PATCH', upload, { body: blob, headers: { 'content-range': '1-1000' } }),
      ],
      ['BLOB_UPLOAD_UNKNOWN', await registry.get('/v2/app/blobs/uploads/none')],
      ['DIGEST_INVALID', await registry.ask('POST', `/v2/app/blobs/uploads/?digest=${unknown}`, { body: blob })],
      ['MANIFEST_BLOB_UNKNOWN', await registry.pushManifest('other', 'v1', image)],
      ['MANIFEST_INVALID', await registry.ask('PUT', '/v2/app/manifests/v2', { body: schema1 })],
      ['MANIFEST_UNKNOWN', await registry.get('/v2/app/manifests/v2')],
      ['NAME_INVALID', await registry.get('/v2/App/manifests/v1')],
      ['NAME_UNKNOWN', await registry.get('/v2/none/manifests/v1')],
      ['SIZE_INVALID', await registry.ask('PATCH', upload, { body: blob, headers: { 'content-range': '0-9' } })],
      ['DENIED', await registry.ask('POST', '/v2/app/blobs/uploads/', { headers: { origin: 'https://x.example' } })],
      ['UNSUPPORTED', await limited.ask('DELETE', '/v2/app/manifests/v1')],
      ['UNSUPPORTED', await registry.get('/nothing/here')],
    ]
    for (const [code, answer] of expected) {
      expect(answer.status).toBeGreaterThanOrEqual(400)
      expect(answer.status).toBeLessThan(500)
      expect(answer.headers['content-type']).toBe('application/json')
      expect(jsonOf(answer)).toEqual({ errors: [{ code, message: expect.stringMatching(/\.$/) }] })
    }
  })
})
