import { open, utimes } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { computeDigest } from '../../../src/oci/reference.ts'
import type { OpenBlob } from '../../../src/oci/registry.ts'
import { isStored } from '../../../src/store/contents.ts'
import type { TestStore } from '../../support/store/store.ts'
import { withStore } from '../../support/temporary-store.ts'

/** Stores a manifest of 1 MB, and counts the bytes that are read of it. */
async function setUp({ blobs, layout }: TestStore, seed: string) {
  const bytes = Buffer.alloc(1_000_000, seed)
  const digest = computeDigest(bytes)
  await blobs.put(digest, bytes)
  const reads: { bytes: number; during?: () => Promise<void> } = { bytes: 0 }
  const counted = {
    quarantine: blobs.quarantine.bind(blobs),
    async open(...args: Parameters<typeof blobs.open>): Promise<OpenBlob | undefined> {
      const blob = await blobs.open(...args)
      if (!blob) return undefined
      const read: OpenBlob['read'] = async (buffer, position) => {
        const count = await blob.read(buffer, position)
        reads.bytes += count
        await reads.during?.()
        return count
      }
      const { size, fd } = blob
      return { digest, size, fd, read, close: () => blob.close() }
    },
  }
  const ask = () => isStored(counted, digest, bytes.length)
  const push = () => blobs.put(digest, bytes)
  return { path: layout.blob(digest), size: bytes.length, reads, ask, push }
}

test('a large manifest is hashed once for all concurrent and later callers', async () => {
  await withStore(async (store) => {
    const { size, reads, ask } = await setUp(store, 'once')
    expect(await Promise.all(Array.from({ length: 30 }, ask))).toEqual(Array.from({ length: 30 }, () => true))
    for (let again = 0; again < 5; again++) expect(await ask()).toBe(true)
    expect(reads.bytes).toBe(size)
  })
})

test('a large manifest is hashed again when its file has changed, and quarantined when it is damaged', async () => {
  await withStore(async (store) => {
    const { path, size, reads, ask } = await setUp(store, 'again')
    expect(await ask()).toBe(true)
    await sleep(20)
    await utimes(path, 1, 1)
    expect(await ask()).toBe(true)
    expect(reads.bytes).toBe(2 * size)
    await sleep(20)
    const file = await open(path, 'r+')
    await file.write(Buffer.from('X'), 0, 1, 500_000)
    await file.close()
    expect(await Promise.all([ask(), ask(), ask()])).toEqual([false, false, false])
    expect(await ask()).toBe(false)
    await expect(open(path)).rejects.toMatchObject({ code: 'ENOENT' })
  })
})

test('a large manifest that is pushed again while its damaged file is hashed is kept', async () => {
  await withStore(async (store) => {
    const { path, reads, ask, push } = await setUp(store, 'pushed')
    const file = await open(path, 'r+')
    await file.write(Buffer.from('X'), 0, 1, 500_000)
    await file.close()
    reads.during = async () => {
      delete reads.during
      await push()
    }
    expect(await ask()).toBe(false)
    expect(await ask()).toBe(true)
  })
})
