import { describe, expect, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { get } from '../support/get.ts'
import { noise } from '../support/noise.ts'
import { startTestRegistry } from '../support/registry.ts'
import {
  expectAtLocation,
  locationOf,
  pushBlob,
  waysToPush,
  type BlobPush,
  type WayToPush,
} from './support/push-blob.ts'

// Follows TestBlobAPIs of the suite's development version, with chunks of the size that the registry prefers.
// https://github.com/opencontainers/distribution-spec/tree/main/conformance

const repository = 'conformance/repo1'
const sibling = 'conformance/repo2'
const threeChunks = 1024 * 1024 * 3 - 5

describe.each(['sha256', 'sha512'] as const)('%s blobs', (algorithm) => {
  async function setUp(size = 512, seed = 0): Promise<BlobPush> {
    const { url } = await startTestRegistry()
    const bytes = noise(size, seed)
    return { url, repository, bytes, digest: computeDigest(bytes, algorithm) }
  }

  async function expectThere({ url, digest, bytes, repository: name }: BlobPush): Promise<void> {
    for (const method of ['HEAD', 'GET']) {
      const answer = await get(url, `/v2/${name}/blobs/${digest}`, { method })
      expect(answer).toMatchObject({
        status: 200,
        headers: { 'content-length': String(bytes.length), 'docker-content-digest': digest },
      })
      expect(answer.body.equals(method === 'HEAD' ? Buffer.alloc(0) : bytes)).toBe(true)
    }
  }

  async function expectDeletable({ url, digest, repository: name }: BlobPush): Promise<void> {
    expect((await get(url, `/v2/${name}/blobs/${digest}`, { method: 'DELETE' })).status).toBe(202)
    expect((await get(url, `/v2/${name}/blobs/${digest}`, { method: 'HEAD' })).status).toBe(404)
  }

  test('are a 404 before they are pushed (get-missing)', async () => {
    const { url, digest } = await setUp()
    expect((await get(url, `/v2/${repository}/blobs/${digest}`)).status).toBe(404)
  })

  const pushes: [string, WayToPush, number, Partial<BlobPush>][] = [
    ['post only', 'post only', 512, {}],
    ['post+put', 'post+put', 512, {}],
    ['chunked single', 'chunked', 512, {}],
    ['stream', 'stream', 512, {}],
    ['chunked multi', 'chunked', threeChunks, {}],
    ['chunked multi and put chunk', 'chunked', threeChunks, { putLastChunk: true }],
    ['chunked out-of-order', 'chunked', threeChunks, { outOfOrder: true }],
    ['chunked out-of-order and put chunk', 'chunked', threeChunks, { outOfOrder: true, putLastChunk: true }],
  ]
  test.each(pushes)('are pushed, pulled and deleted: %s', async (_name, way, size, how) => {
    const push = { ...(await setUp(size)), ...how }
    await pushBlob(way, push)
    await expectThere(push)
    await expectDeletable(push)
  })

  test.each([
    ['mount', `&from=${encodeURIComponent(sibling)}`],
    ['mount anonymous', ''],
  ])('are mounted, pulled and deleted: %s', async (_name, from) => {
    const push = await setUp()
    const { url, digest } = push
    await pushBlob('post+put', { ...push, repository: sibling })
    const mount = `mount=${encodeURIComponent(digest)}${from}`
    const answer = await get(url, `/v2/${repository}/blobs/uploads/?${mount}`, { method: 'POST' })
    expect(answer.status).toBe(201)
    await expectAtLocation(answer, push)
    await expectThere(push)
    await expectDeletable(push)
    await expectDeletable({ ...push, repository: sibling })
  })

  test('are uploaded when there is nothing to mount (mount missing)', async () => {
    const push = await setUp()
    const { url, digest, bytes } = push
    const query = `mount=${encodeURIComponent(digest)}&from=${encodeURIComponent(sibling)}`
    const begun = await get(url, `/v2/${repository}/blobs/uploads/?${query}`, { method: 'POST' })
    expect(begun.status).toBe(202)
    const put = await get(url, locationOf(begun, url, { digest }), { method: 'PUT', body: bytes })
    expect(put.status).toBe(201)
    await expectAtLocation(put, push)
  })

  test('are absent after their upload was cancelled (post cancel)', async () => {
    const { url } = await setUp()
    const begun = await get(url, `/v2/${repository}/blobs/uploads/`, { method: 'POST' })
    const target = locationOf(begun, url)
    expect((await get(url, target, { method: 'DELETE', headers: { 'content-length': '0' } })).status).toBe(204)
    expect((await get(url, target)).status).toBe(404)
  })

  test.each([
    ['500-1499', 500, 1499],
    ['500-', 500, 2047],
    ['-500', 1548, 2047],
    ['2000-5000', 2000, 2047],
  ])('are pulled in part with the range %s', async (range, first, last) => {
    const push = await setUp(2048)
    await pushBlob('post only', push)
    const headers = { range: `bytes=${range}` }
    const answer = await get(push.url, `/v2/${repository}/blobs/${push.digest}`, { headers })
    expect(answer).toMatchObject({
      status: 206,
      headers: { 'content-length': String(last - first + 1), 'content-range': `bytes ${first}-${last}/2048` },
    })
    expect(answer.body.equals(push.bytes.subarray(first, last + 1))).toBe(true)
  })

  test.each(['500-0', '5000-10000'])('are a 416 with the range %s', async (range) => {
    const push = await setUp(2048)
    await pushBlob('post only', push)
    const headers = { range: `bytes=${range}` }
    expect((await get(push.url, `/v2/${repository}/blobs/${push.digest}`, { headers })).status).toBe(416)
  })

  test.each([
    ['empty', ''],
    ['emptyJSON', '{}'],
  ])('are pushed in every way, pulled and deleted: %s', async (_name, text) => {
    const { url } = await setUp()
    const bytes = Buffer.from(text)
    const push = { url, repository, bytes, digest: computeDigest(bytes, algorithm) }
    for (const way of waysToPush) {
      await pushBlob(way, push)
      await expectThere(push)
      await expectDeletable(push)
    }
  })

  const badPushes: [string, WayToPush, Partial<BlobPush>][] = [
    ['bad digest post only', 'post only', {}],
    ['bad digest post+put', 'post+put', {}],
    ['bad digest chunked', 'chunked', {}],
    ['bad digest chunked and put chunk', 'chunked', { putLastChunk: true }],
    ['bad digest stream', 'stream', {}],
  ]
  test.each(badPushes)('are not stored: %s', async (_name, way, how) => {
    const push = await setUp(threeChunks)
    await pushBlob(way, { ...push, ...how, bytes: Buffer.concat([push.bytes, Buffer.from('oh no')]), badDigest: true })
    expect((await get(push.url, `/v2/${repository}/blobs/${push.digest}`)).status).toBe(404)
  })
})
