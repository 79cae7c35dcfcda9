import { describe, expect, test } from 'vitest'
import { expectContent } from '../support/expect-content.ts'
import { slow, status } from '../support/faults.ts'
import { app, startScene } from '../support/scene.ts'
import { anyBlob } from '../support/upstream.ts'

describe('Cache-Status', () => {
  test('is a miss and then a hit for a blob', async () => {
    const { mirror, layer } = await startScene()
    const path = `${app}/blobs/${layer}`
    expect((await mirror.get(path)).headers['cache-status']).toBe('mirror; fwd=miss; stored')
    await mirror.untilStored(1)
    expect((await mirror.get(path)).headers['cache-status']).toBe('mirror; hit')
  })

  test('is a miss and then a hit for a fresh tag', async () => {
    const { mirror } = await startScene({ cache: { tagFreshness: 60_000 } })
    expect((await mirror.get(`${app}/manifests/v1`)).headers['cache-status']).toBe('mirror; fwd=miss; stored')
    expect((await mirror.get(`${app}/manifests/v1`)).headers['cache-status']).toBe('mirror; hit')
  })

  test('says that a tag was revalidated', async () => {
    const { mirror } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    const answer = await mirror.get(`${app}/manifests/v1`)
    expect(answer.headers['cache-status']).toBe('mirror; hit; fwd=stale; fwd-status=200')
  })

  test('says that a client joined a download', async () => {
    const { upstream, mirror, layer } = await startScene()
    upstream.on(anyBlob, slow(1_000_000))
    const first = mirror.get(`${app}/blobs/${layer}`)
    await expect.poll(() => upstream.count(anyBlob)).toBe(1)
    const second = await mirror.get(`${app}/blobs/${layer}`)
    expect(second.headers['cache-status']).toBe('mirror; fwd=miss; collapsed')
    expect((await first).headers['cache-status']).toBe('mirror; fwd=miss; stored')
  })

  test('is present with an absence', async () => {
    const { mirror } = await startScene()
    const answer = await mirror.get(`${app}/manifests/absent`)
    expect(answer.headers).toMatchObject({
      'cache-status': 'mirror; fwd=miss; fwd-status=404',
      'oci-namespace': 'docker.io',
    })
  })
})

describe('every response describes its content', () => {
  test.each(['cold', 'warm'])('by digest, ETag, type, length and registry, when %s', async (state) => {
    const { mirror, image, layer, layerBytes } = await startScene()
    const paths = [`${app}/manifests/v1`, `${app}/manifests/${image.digest}`, `${app}/blobs/${layer}`]
    if (state === 'warm') {
      for (const path of paths) await mirror.get(path)
      await mirror.untilStored(2)
    }
    for (const path of paths) {
      const [digest, type, size] = path.includes('blobs')
        ? [layer, 'application/octet-stream', layerBytes.length]
        : [image.digest, image.mediaType, image.bytes.length]
      const answer = await mirror.get(path)
      expectContent(answer, digest)
      expect(answer.headers).toMatchObject({
        'docker-content-digest': digest,
        etag: `"${digest}"`,
        'content-type': type,
        'content-length': String(size),
        'oci-namespace': 'docker.io',
        'docker-distribution-api-version': 'registry/2.0',
        'x-content-type-options': 'nosniff',
      })
      expect(answer.headers['content-encoding']).toBeUndefined()
      expect(answer.headers['access-control-allow-origin']).toBeUndefined()
    }
  })

  test('also to a HEAD, as to a GET but without a body', async () => {
    const { mirror, layer } = await startScene({ cache: { tagFreshness: 60_000 } })
    for (const path of [`${app}/manifests/v1`, `${app}/blobs/${layer}`, '/v2/', '/v2/_catalog']) {
      await mirror.get(path)
      if (path.includes('/blobs/')) await mirror.untilStored(2)
      const [{ headers: one }, head] = [await mirror.get(path), await mirror.get(path, { method: 'HEAD' })]
      const own = { date: '', 'x-request-id': '' }
      expect({ ...head.headers, ...own }).toEqual({ ...one, ...own })
      expect([head.status, head.body.length]).toEqual([200, 0])
    }
  })
})

describe('If-None-Match', () => {
  test.each([
    ['is a 304 for the strong tag', (digest: string) => `"${digest}"`, 304],
    ['is a 304 for the weak tag', (digest: string) => `W/"${digest}"`, 304],
    ['is a 304 for one of several tags', (digest: string) => `"x", "${digest}"`, 304],
    ['is a 304 for any tag', () => '*', 304],
    ['is a 200 for another tag', () => '"sha256:0"', 200],
  ])('%s', async (_, tag, expected) => {
    const { mirror, image, layer } = await startScene()
    for (const [path, digest] of [
      [`${app}/manifests/v1`, image.digest],
      [`${app}/manifests/${image.digest}`, image.digest],
      [`${app}/blobs/${layer}`, layer],
    ] as const) {
      await mirror.get(path)
      const answer = await mirror.get(path, { headers: { 'if-none-match': tag(digest) } })
      expect(answer.status).toBe(expected)
      if (expected === 304) expect([answer.body.length, answer.headers.etag]).toEqual([0, `"${digest}"`])
    }
  })

  test('counts as a hit when it is a 304', async () => {
    const { mirror, layer } = await startScene()
    const path = `${app}/blobs/${layer}`
    await mirror.get(path)
    await mirror.untilStored(1)
    await mirror.get(path, { headers: { 'if-none-match': `"${layer}"` } })
    const counted = async () => (await mirror.status()).cache
    await expect.poll(counted).toMatchObject({ requests: 2, hits: 1, misses: 1, bytesSaved: 0 })
  })
})

test('an error response has the form of the specification and names no upstream address', async () => {
  const { upstream, mirror } = await startScene()
  upstream.on({}, status(500))
  const { body } = await mirror.get(`${app}/manifests/v1`)
  expect(body.toString()).not.toContain('node_modules')
  expect(body.toString()).not.toMatch(/\bat .+:\d+:\d+/)
})
