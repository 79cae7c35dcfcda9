import { describe, expect, test } from 'vitest'
import { computeDigest, parseDigest } from '../../src/oci/reference.ts'
import type { BlobStore, BlobWriter } from '../../src/store/blob-store.ts'

/** Tests the contract of blob stores. `make` creates an empty one, which is removed with the test. */
export function blobStoreContract(name: string, make: () => Promise<BlobStore>): void {
  const hello = Buffer.from('hello, world')
  const digest = computeDigest(hello)

  describe(`${name} is a blob store`, () => {
    test('returns undefined for a blob that was never stored', async () => {
      const store = await make()
      expect(await store.stat(digest)).toBeUndefined()
      expect(await store.open(digest)).toBeUndefined()
      expect(await store.read(digest, 100)).toBeUndefined()
      await store.remove(digest)
      await store.ready
      expect(await store.stat(digest)).toBeUndefined()
      expect(store.usage).toEqual({ bytes: 0, blobs: 0 })
    })

    test('returns a stored blob, and counts it once', async () => {
      const store = await make()
      await store.put(digest, hello)
      await store.put(digest, hello)
      await store.ready
      expect(await store.stat(digest)).toBe(hello.length)
      expect(await store.read(digest, 100)).toEqual(new Uint8Array(hello))
      expect(await readAll(store)).toEqual(hello)
      expect(store.usage).toEqual({ bytes: hello.length, blobs: 1 })
      expect([...store.entries()]).toEqual([[digest, hello.length]])
    })

    test.each([
      ['sha512', hello],
      ['sha256', Buffer.alloc(0)],
    ] as const)('stores %s digests and %j', async (algorithm, bytes) => {
      const store = await make()
      const other = computeDigest(bytes, algorithm)
      await store.put(other, bytes)
      expect(await store.read(other, 100)).toEqual(new Uint8Array(bytes))
    })

    test('reads any part of an open blob, and never beyond its end', async () => {
      const store = await make()
      await store.put(digest, hello)
      const blob = (await store.open(digest, hello.length))!
      const buffer = Buffer.alloc(5)
      expect(await blob.read(buffer, 7)).toBe(5)
      expect(buffer.toString()).toBe('world')
      expect(await blob.read(buffer, hello.length)).toBe(0)
      expect(blob.fd).toBeGreaterThan(0)
      await blob.close()
    })

    test('does not read more than the limit of the caller', async () => {
      const store = await make()
      await store.put(digest, hello)
      expect(await store.read(digest, hello.length - 1)).toBeUndefined()
      expect(await store.stat(digest)).toBe(hello.length)
    })

    test('a blob of another size than expected counts as absent', async () => {
      const store = await make()
      await store.put(digest, hello)
      expect(await store.open(digest, hello.length + 1)).toBeUndefined()
    })

    test('shows a blob being written to readers of its writer only, until it is committed', async () => {
      const store = await make()
      const writer = await store.create()
      await writer.write(hello.subarray(0, 5))
      expect(writer.size).toBe(5)
      expect(await readWritten(writer)).toEqual(hello.subarray(0, 5))
      expect(await store.stat(digest)).toBeUndefined()
      await writer.write(hello.subarray(5))
      await writer.commit(digest)
      expect(await store.stat(digest)).toBe(hello.length)
      expect(await readWritten(writer)).toEqual(hello)
      await writer.close()
      expect(await readAll(store)).toEqual(hello)
    })

    test('an aborted blob is never published, and can be read until it is closed', async () => {
      const store = await make()
      const writer = await store.create()
      await writer.write(hello)
      await writer.abort()
      expect(await readWritten(writer)).toEqual(hello)
      await expect(writer.commit(digest)).rejects.toThrow('aborted')
      await writer.close()
      expect(await store.stat(digest)).toBeUndefined()
    })

    test('many writers can commit the same blob at once', async () => {
      const store = await make()
      await Promise.all(Array.from({ length: 8 }, () => store.put(digest, hello)))
      await store.ready
      expect(store.usage).toEqual({ bytes: hello.length, blobs: 1 })
      expect(await readAll(store)).toEqual(hello)
    })

    test('readers of a removed blob finish, and it can be stored again', async () => {
      const store = await make()
      await store.put(digest, hello)
      const blob = (await store.open(digest))!
      await store.remove(digest)
      expect(await store.open(digest)).toBeUndefined()
      const buffer = Buffer.alloc(hello.length)
      expect(await blob.read(buffer, 0)).toBe(hello.length)
      expect(buffer).toEqual(hello)
      await blob.close()
      await store.put(digest, hello)
      expect(await readAll(store)).toEqual(hello)
    })

    test('concurrent storing and removing keeps the counts equal to the blobs on disk', async () => {
      const store = await make()
      for (let round = 0; round < 20; round++) {
        await Promise.all([store.put(digest, hello), store.remove(digest), store.remove(digest)])
        await store.ready
        const blob = await store.open(digest)
        await blob?.close()
        expect(store.usage.blobs).toBe(blob ? 1 : 0)
      }
    })

    test('a quarantined blob is absent until it is stored again', async () => {
      const store = await make()
      await store.put(digest, hello)
      const blob = await store.open(digest)
      for (let twice = 0; twice < 2; twice++) await store.quarantine(blob!)
      expect(await store.stat(digest)).toBeUndefined()
      expect(await store.open(digest)).toBeUndefined()
      await store.ready
      expect(store.usage).toEqual({ bytes: 0, blobs: 0 })
      await store.put(digest, hello)
      expect(await readAll(store)).toEqual(hello)
      // Checks that a late quarantine does not remove the new blob.
      await store.quarantine(blob!)
      await blob!.close()
      expect(await readAll(store)).toEqual(hello)
      await store.remove(digest)
      expect(store.usage).toEqual({ bytes: 0, blobs: 0 })
    })

    async function readAll(store: BlobStore): Promise<Buffer | undefined> {
      const blob = await store.open(parseDigest(digest)!, hello.length)
      if (!blob) return undefined
      const buffer = Buffer.alloc(blob.size)
      await blob.read(buffer, 0)
      await blob.close()
      return buffer
    }
  })
}

async function readWritten(writer: BlobWriter): Promise<Buffer> {
  const buffer = Buffer.alloc(100)
  return buffer.subarray(0, await writer.read(buffer, 0))
}
