import { describe, expect, test } from 'vitest'
import { toBytes, toSmallContent } from '../../../src/oci/content.ts'
import { type Digest, computeDigest } from '../../../src/oci/reference.ts'
import { SmallContents } from '../../../src/store/contents.ts'
import { noise } from '../../support/noise.ts'

/** Creates a store in memory that counts the reads. */
function memoryStore(...blobs: Uint8Array<ArrayBuffer>[]) {
  const held = new Map<Digest, Uint8Array<ArrayBuffer>>(blobs.map((bytes) => [computeDigest(bytes), bytes]))
  const store = {
    reads: 0,
    held,
    async stat(digest: Digest) {
      return held.get(digest)?.length
    },
    async read(digest: Digest, limit: number) {
      store.reads += 1
      const bytes = held.get(digest)
      return bytes && bytes.length <= limit ? bytes : undefined
    },
  }
  return store
}

const bytes = (size: number, seed = 0) => new Uint8Array(noise(size, seed))

describe('small contents', () => {
  test.each([0, 1, 5000, 64 * 1024, 64 * 1024 + 1])('of %i bytes are returned unchanged', async (size) => {
    const content = toSmallContent(bytes(size))
    expect(content.size).toBe(size)
    expect(content.body.length).toBe(size)
    expect(Buffer.from(toBytes(content)).equals(bytes(size))).toBe(true)
  })

  test('are read from disk once, and again after they were dropped', async () => {
    const store = memoryStore(bytes(100))
    const contents = new SmallContents(store, 10_000)
    const digest = computeDigest(bytes(100))
    for (let time = 0; time < 3; time++) expect((await contents.load(digest, 1000))?.size).toBe(100)
    expect(store.reads).toBe(1)
    contents.clear()
    expect((await contents.load(digest, 1000))?.size).toBe(100)
    expect(store.reads).toBe(2)
  })

  test('stay within their memory limit', async () => {
    const blobs = Array.from({ length: 10 }, (_, seed) => bytes(1000, seed))
    const store = memoryStore(...blobs)
    const contents = new SmallContents(store, 4000)
    for (const blob of blobs) await contents.load(computeDigest(blob), 1000)
    for (const blob of blobs.slice(-3)) await contents.load(computeDigest(blob), 1000)
    expect(store.reads).toBe(10)
    await contents.load(computeDigest(blobs[0]!), 1000)
    expect(store.reads).toBe(11)
  })

  test('that must be on disk are not returned when they were removed or have another size', async () => {
    const store = memoryStore(bytes(100))
    const contents = new SmallContents(store, 10_000)
    const digest = computeDigest(bytes(100))
    expect((await contents.loadStored(digest, 100))?.size).toBe(100)
    expect(await contents.loadStored(digest, 99)).toBe(undefined)
    store.held.delete(digest)
    expect(await contents.loadStored(digest, 100)).toBe(undefined)
  })
})
