import { describe, expect, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { expectContent, expectError } from '../support/expect-content.ts'
import { headers, redirect, status, times } from '../support/faults.ts'
import { send, type Fault } from '../support/faulty-server.ts'
import { makeImage, makeIndex } from '../support/images.ts'
import { app, layerSize, startScene } from '../support/scene.ts'
import { anyBlob, anyManifest, anyManifestHead, startUpstream } from '../support/upstream.ts'

const anyBlobHead = { method: 'HEAD', path: /\/blobs\// }
const anyHead = { method: 'HEAD' }
const noCache = { headers: { 'cache-control': 'no-cache' } }
const head = { method: 'HEAD' }

const refusals = [401, 403, 404, 405, 410, 451, 500, 501, 503]

describe.each(refusals)('an upstream that answers every HEAD with %i and every GET correctly', (code) => {
  test('serves its cached tags, and a moved tag is noticed', async () => {
    const { upstream, mirror, image } = await startScene()
    upstream.on(anyHead, status(code))
    for (let pull = 0; pull < 3; pull++) expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    const moved = makeImage({ seed: 2 })
    upstream.push('library/app', 'v1', moved)
    // Polls, because a HEAD that fails by 5xx is tried three times, in the background of an answer from the cache.
    await expect
      .poll(async () => (await mirror.get(`${app}/manifests/v1`, noCache)).headers['docker-content-digest'], {
        timeout: 20_000,
      })
      .toBe(moved.digest)
  })

  test("answers a client's HEAD of a tag and of a digest that are not cached, and the GET after it", async () => {
    const { upstream, mirror, image } = await startScene()
    upstream.on(anyHead, status(code))
    const expected = {
      status: 200,
      headers: {
        'docker-content-digest': image.digest,
        'content-length': String(image.bytes.length),
        'content-type': image.mediaType,
      },
    }
    expect(await mirror.get(`${app}/manifests/v1`, head)).toMatchObject(expected)
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    upstream.push('library/other', 'v1', image)
    expect(await mirror.get(`/v2/library/other/manifests/${image.digest}`, head)).toMatchObject(expected)
  })

  test('grants a blob that is stored for another repository, and tells the size of one that is not stored', async () => {
    const { upstream, mirror, image, layer } = await startScene()
    upstream.push('library/other', 'v1', makeImage({ seed: 3 }))
    upstream.push('library/third', 'v1', image)
    upstream.on(anyHead, status(code))
    const cold = await mirror.get(`${app}/blobs/${layer}`, head)
    expect(cold).toMatchObject({ status: 200, headers: { 'content-length': String(layerSize) } })
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    expectContent(await mirror.get(`/v2/library/third/blobs/${layer}`), layer)
    expect((await mirror.get(`/v2/library/other/blobs/${layer}`)).status).toBe(404)
    // Expects one full download; a request for one byte confirms the access of other repositories.
    const whole = upstream.requests.filter(
      ({ method, path, headers }) => method === 'GET' && path.includes(layer) && headers.range === undefined,
    )
    expect(whole).toHaveLength(1)
  })
})

describe('a refused HEAD', () => {
  test('is confirmed by one GET before a cached tag is removed', async () => {
    const { upstream, mirror } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    upstream.remove('library/app', 'v1')
    const { length } = upstream.requests
    expectError(await mirror.get(`${app}/manifests/v1`), 404, 'MANIFEST_UNKNOWN')
    expectError(await mirror.get(`${app}/manifests/v1`), 404, 'MANIFEST_UNKNOWN')
    expect(upstream.requests.slice(length).map(({ method }) => method)).toEqual(['HEAD', 'GET'])
  })

  test('switches the upstream to GET, but only for content whose HEADs are refused', async () => {
    const { upstream, mirror } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    const heal = upstream.on(anyManifestHead, status(403))
    await mirror.get(`${app}/manifests/v1`)
    heal()
    const { length } = upstream.requests
    await mirror.get(`${app}/manifests/v1`)
    await mirror.get(`${app}/manifests/v1`)
    expect(upstream.requests.slice(length).map(({ method }) => method)).toEqual(['GET', 'GET'])
  })

  test('with a temporary 503 does not switch to GET', async () => {
    const { upstream, mirror } = await startScene({ cache: { timeouts: { revalidate: 10_000 } } })
    await mirror.get(`${app}/manifests/v1`)
    upstream.on(anyManifestHead, times(3, status(503)))
    await mirror.get(`${app}/manifests/v1`)
    const { length } = upstream.requests
    await mirror.get(`${app}/manifests/v1`)
    expect(upstream.requests.slice(length).map(({ method }) => method)).toEqual(['HEAD'])
  })

  test('with a 404 before the tag was pushed does not switch to GET', async () => {
    const { upstream, mirror, image } = await startScene()
    upstream.on(anyHead, times(1, status(404)))
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expectContent(await mirror.get(`${app}/manifests/v1`, noCache), image.digest)
    const { length } = upstream.requests
    expectContent(await mirror.get(`${app}/manifests/v1`, noCache), image.digest)
    expect(upstream.requests.slice(length).map(({ method }) => method)).toEqual(['HEAD'])
  })

  test.each([302, 307, 304])('as %i without a location is confirmed by GET', async (code) => {
    const { upstream, mirror, image } = await startScene()
    upstream.on(anyManifestHead, status(code))
    for (let pull = 0; pull < 2; pull++) expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
  })

  test('by a redirect to a missing target is confirmed by GET', async () => {
    const { upstream, mirror, image } = await startScene()
    upstream.on(anyManifestHead, redirect('/nowhere'))
    for (let pull = 0; pull < 2; pull++) expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
  })

  test('by the storage behind a redirect is confirmed by GET, for a manifest and for a blob', async () => {
    const { upstream, mirror, image, layer } = await startScene()
    const storage = await startUpstream()
    storage.on({}, status(403))
    upstream.on(
      anyHead,
      redirect((path) => storage.url + path),
    )
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    await expect
      .poll(async () => (await mirror.get(`${app}/manifests/v1`)).headers['cache-status'])
      .toBe('mirror; fwd=miss; stored')
    const answer = await mirror.get(`${app}/blobs/${layer}`, head)
    expect([answer.status, answer.headers['content-length']]).toEqual([200, String(layerSize)])
  })

  test('without a response is an outage, and no GET is sent', async () => {
    const { upstream, mirror, image } = await startScene({ cache: { timeouts: { headers: 100 } } })
    await mirror.get(`${app}/manifests/v1`)
    upstream.on({}, () => {})
    const asked = upstream.count(anyManifest)
    const answer = await mirror.get(`${app}/manifests/v1`)
    expectContent(answer, image.digest)
    expect(answer.headers['cache-status']).toBe('mirror; hit; detail=stale-on-error')
    expect(upstream.count(anyManifest)).toBe(asked)
  })
})

describe('a pull quota, which the GET of a manifest spends', () => {
  const limited = status(429, { 'retry-after': '60', 'ratelimit-remaining': '0;w=21600' })

  test('is not spent while HEADs are answered', async () => {
    const { upstream, mirror } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    for (let pull = 0; pull < 3; pull++) await mirror.get(`${app}/manifests/v1`)
    await mirror.get('/v2/library/app/manifests/v1', head)
    expect(upstream.count(anyManifest)).toBe(1)
  })

  test('is not spent when the HEAD is rate-limited: a cached tag is served stale, another gets a 429', async () => {
    const { upstream, mirror, image } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    upstream.on(anyManifestHead, status(429, { 'retry-after': '60' }))
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    const answer = await mirror.get(`${app}/manifests/v2`, head)
    expect([answer.status, Number(answer.headers['retry-after'])]).toEqual([429, expect.any(Number)])
    expect(upstream.count(anyManifest)).toBe(1)
  })

  test('that is used up confirms no refused HEAD: a cached tag stays, and other content is a 404', async () => {
    const { upstream, mirror, image } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    upstream.on(anyManifestHead, status(404))
    upstream.on(anyManifest, limited)
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expect((await mirror.get(`${app}/manifests/v2`, head)).status).toBe(404)
  })

  test('limits GETs no longer than its Retry-After', async () => {
    const { upstream, mirror, image } = await startScene()
    upstream.on(anyManifestHead, status(429, { 'retry-after': '1' }))
    expect((await mirror.get(`${app}/manifests/v1`, head)).status).toBe(429)
    await expect.poll(async () => (await mirror.get(`${app}/manifests/v1`)).status).toBe(200)
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
  })
})

describe('a HEAD that names another digest than the GET', () => {
  const wrong = computeDigest(Buffer.from('what the HEAD says'))

  test('never prevents a pull, and is replaced by GET once it was wrong twice', async () => {
    const { upstream, mirror, image } = await startScene()
    upstream.on(anyManifestHead, headers({ 'docker-content-digest': wrong }))
    for (let pull = 0; pull < 2; pull++) expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    const answer = await mirror.get(`${app}/manifests/v1`, head)
    expect(answer.headers['docker-content-digest']).toBe(image.digest)
    const { length } = upstream.requests
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expect(upstream.requests.slice(length).map(({ method }) => method)).toEqual(['GET'])
  })

  test('is repeated, because the tag may have moved in between', async () => {
    const { upstream, mirror, image } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    upstream.on(anyManifestHead, times(1, headers({ 'docker-content-digest': wrong })))
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    const { length } = upstream.requests
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expect(upstream.requests.slice(length).map(({ method }) => method)).toEqual(['HEAD'])
  })
})

/** lengths are faults of a HEAD whose length is not that of the GET. */
const lengths: [string, Fault][] = [
  ['Content-Length: 0', headers({ 'content-length': '0' })],
  ['no Content-Length', withoutLength(false)],
  ['Transfer-Encoding: chunked', withoutLength(true)],
]
const anotherLength: [string, Fault] = ['a Content-Length that is wrong', headers({ 'content-length': '7' })]

function withoutLength(isChunked: boolean): Fault {
  return ({ response, reply }) => {
    response.sendDate = false
    response.useChunkedEncodingByDefault = isChunked
    response.writeHead(reply.status, { ...reply.headers, ...(isChunked ? { 'transfer-encoding': 'chunked' } : {}) })
    response.end()
  }
}

describe.each(lengths)('a HEAD with %s', (_, fault) => {
  test('of a manifest that is not cached is replaced by the manifest, which has the length', async () => {
    const { upstream, mirror, image } = await startScene()
    upstream.on(anyHead, fault)
    upstream.push('library/other', 'v1', image)
    for (const path of [`${app}/manifests/v1`, `/v2/library/other/manifests/${image.digest}`]) {
      const answer = await mirror.get(path, head)
      expect([answer.status, answer.headers['content-length']]).toEqual([200, String(image.bytes.length)])
    }
  })

  test('of a blob that no manifest names is answered without a length', async () => {
    const { upstream, mirror, layer } = await startScene()
    upstream.on(anyHead, fault)
    const answer = await mirror.get(`${app}/blobs/${layer}`, head)
    expect([answer.status, answer.headers['content-length']]).toEqual([200, undefined])
  })
})

describe.each([...lengths, anotherLength])('a HEAD with %s', (_, fault) => {
  test('of a blob is answered with the size of its descriptor', async () => {
    const { upstream, mirror, layer } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    upstream.on(anyHead, fault)
    const answer = await mirror.get(`${app}/blobs/${layer}`, head)
    expect([answer.status, answer.headers['content-length']]).toEqual([200, String(layerSize)])
  })

  test('of an image in an index is answered with the size of its descriptor', async () => {
    const { upstream, mirror, image } = await startScene()
    upstream.push('library/app', 'v2', makeIndex([image]))
    await mirror.get(`${app}/manifests/v2`)
    upstream.on(anyHead, fault)
    const answer = await mirror.get(`${app}/manifests/${image.digest}`, head)
    expect([answer.status, answer.headers['content-length']]).toEqual([200, String(image.bytes.length)])
  })

  test('does not make a stored blob look damaged', async () => {
    const { upstream, mirror, image, layer } = await startScene()
    await mirror.get(`${app}/blobs/${layer}`)
    await mirror.untilStored(1)
    upstream.push('library/other', 'v1', image)
    upstream.on(anyHead, fault)
    expectContent(await mirror.get(`/v2/library/other/blobs/${layer}`), layer)
    // Waits until the blob is fetched again, because its length seems to differ from the stored one.
    await expect
      .poll(async () => (await mirror.get(`/v2/library/other/blobs/${layer}`)).headers['cache-status'])
      .toBe('mirror; hit')
    await upstream.stop()
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    expectContent(await mirror.get(`/v2/library/other/blobs/${layer}`), layer)
    expect((await mirror.status()).storage.blobs).toBe(1)
  })
})

test('the HEAD of an empty blob has its length', async () => {
  const empty = Buffer.alloc(0)
  const { mirror } = await startScene({ image: makeImage({ layers: [empty] }) })
  const answer = await mirror.get(`${app}/blobs/${computeDigest(empty)}`, head)
  expect([answer.status, answer.headers['content-length']]).toEqual([200, '0'])
})

describe('a GET with Content-Length: 0', () => {
  const nothing: Fault = ({ response, reply }) =>
    send(response, { status: 200, headers: { ...reply.headers, 'content-length': '0' }, body: Buffer.alloc(0) })

  test('is neither a manifest nor a blob, and is not stored', async () => {
    const { upstream, mirror, image, layer } = await startScene()
    upstream.on(anyManifest, nothing)
    upstream.on(anyBlob, nothing)
    expectError(await mirror.get(`${app}/manifests/v1`), 502)
    expectError(await mirror.get(`${app}/blobs/${layer}`), 502)
    upstream.heal()
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    upstream.on(anyManifest, nothing)
    upstream.on(anyManifestHead, headers({ 'docker-content-digest': undefined }))
    const stale = await mirror.get(`${app}/manifests/v1`)
    expectContent(stale, image.digest)
    expect(stale.headers['cache-status']).toBe('mirror; hit; detail=stale-on-error')
  })
})

test('a refused HEAD of a blob does not answer the GET after it', async () => {
  const { upstream, mirror, layer } = await startScene()
  upstream.on(anyBlobHead, status(404))
  upstream.on(anyBlob, times(1, status(404)))
  expect((await mirror.get(`${app}/blobs/${layer}`, head)).status).toBe(404)
  expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
})
