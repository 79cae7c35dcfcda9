import {
  appendFile,
  mkdir,
  readdir,
  readFile,
  stat,
  symlink,
  truncate,
  unlink,
  utimes,
  writeFile,
  rm,
} from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { silentLogger } from '../../../src/lib/logger.ts'
import { computeDigest, type Digest } from '../../../src/oci/reference.ts'
import { FileBlobStore } from '../../../src/store/file-blob-store.ts'
import { makeStoreFolders, createStoreLayout } from '../../../src/store/layout.ts'
import type { TestStore } from '../../support/store/store.ts'
import { bytesOf, openTestStore, openText, putText, temporaryFolder } from '../../support/store/store.ts'

const text = 'some bytes worth keeping'

/** Changes a byte in the middle; size and times stay. */
async function flipByte(path: string): Promise<void> {
  const { atime, mtime } = await stat(path)
  const bytes = await readFile(path)
  bytes[bytes.length >> 1]! ^= 1
  await writeFile(path, bytes)
  await utimes(path, atime, mtime)
}

async function quarantined(store: TestStore): Promise<string[]> {
  return readdir(store.layout.quarantine)
}

/** Creates a store as a killed process leaves it: it has the text, and is not marked clean. */
async function killedStore(root: string): Promise<Digest> {
  const store = await openTestStore(root)
  const digest = await putText(store, text)
  await store.close()
  await rm(store.layout.cleanMarker)
  return digest
}

describe('a damaged blob', () => {
  const damages: [string, (path: string) => Promise<void>][] = [
    ['truncated to nothing', (path) => truncate(path, 0)],
    ['longer than it was', (path) => appendFile(path, 'x')],
    ['shorter than it was', (path) => truncate(path, 5)],
  ]
  test.each(damages)('%s is quarantined when it is opened', async (_, damage) => {
    const store = await openTestStore(await temporaryFolder())
    const digest = await putText(store, text)
    await damage(store.layout.blob(digest))
    expect(await openText(store, digest, text.length)).toBeUndefined()
    expect(await store.blobs.stat(digest)).toBeUndefined()
    expect(await quarantined(store)).toEqual([expect.stringContaining(`sha256-${digest.slice(7)}-`)])
    await putText(store, text)
    expect(await openText(store, digest, text.length)).toBe(text)
  })

  test('is detected by its size without an expected size', async () => {
    const store = await openTestStore(await temporaryFolder())
    const digest = await putText(store, text)
    await truncate(store.layout.blob(digest), 3)
    expect(await openText(store, digest)).toBeUndefined()
    expect(await quarantined(store)).toHaveLength(1)
  })

  test('with a flipped byte is never returned by read', async () => {
    const store = await openTestStore(await temporaryFolder())
    const digest = await putText(store, text)
    await flipByte(store.layout.blob(digest))
    expect(await store.blobs.read(digest, 1000)).toBeUndefined()
    expect(await quarantined(store)).toHaveLength(1)
  })

  test('with a flipped byte is never opened when reads are verified', async () => {
    const store = await openTestStore(await temporaryFolder(), { verifyReads: 'always' })
    const digest = await putText(store, text)
    expect(await openText(store, digest)).toBe(text)
    await flipByte(store.layout.blob(digest))
    expect(await openText(store, digest, text.length)).toBeUndefined()
    expect(await quarantined(store)).toHaveLength(1)
  })

  test('that is a folder is moved out of the way', async () => {
    const root = await temporaryFolder()
    const digest = computeDigest(bytesOf(text))
    const path = createStoreLayout(root).blob(digest)
    await mkdir(path, { recursive: true })
    const store = await openTestStore(root)
    await store.blobs.ready
    expect(await store.blobs.stat(digest)).toBeUndefined()
    expect(await openText(store, digest, text.length)).toBeUndefined()
    await putText(store, text)
    expect(await openText(store, digest)).toBe(text)
  })

  test('does not take an intact blob with it that has replaced it meanwhile', async () => {
    const store = await openTestStore(await temporaryFolder(), { verifyReads: 'always' })
    const digest = await putText(store, text)
    await truncate(store.layout.blob(digest), 16 * 1024 * 1024)
    const opening = openText(store, digest)
    await putText(store, text)
    expect(await opening).toBeUndefined()
    expect(await openText(store, digest)).toBe(text)
  })

  test('is not an intact blob whose descriptor has a wrong size', async () => {
    const store = await openTestStore(await temporaryFolder())
    const digest = await putText(store, text)
    expect(await openText(store, digest, text.length - 1)).toBeUndefined()
    expect(await openText(store, digest, text.length)).toBe(text)
    expect(await quarantined(store)).toEqual([])
  })
})

describe('after a stop that was not clean', () => {
  test('a blob is hashed on its first open, and only then', async () => {
    const root = await temporaryFolder()
    const digest = await killedStore(root)
    const store = await openTestStore(root)
    expect(await openText(store, digest)).toBe(text)
    await flipByte(store.layout.blob(digest))
    expect(await openText(store, digest)).not.toBeUndefined()
  })

  test('a damaged blob is detected for all concurrent readers', async () => {
    const root = await temporaryFolder()
    const digest = await killedStore(root)
    await flipByte(createStoreLayout(root).blob(digest))
    const store = await openTestStore(root)
    expect(await Promise.all([1, 2, 3].map(() => openText(store, digest, text.length)))).toEqual([
      undefined,
      undefined,
      undefined,
    ])
    expect(await quarantined(store)).toHaveLength(1)
  })

  test('blobs written afterwards are not verified', async () => {
    const root = await temporaryFolder()
    await killedStore(root)
    const store = await openTestStore(root)
    const digest = await putText(store, 'another')
    await flipByte(store.layout.blob(digest))
    expect(await openText(store, digest)).not.toBeUndefined()
  })

  test('blobs that were not read stay suspect across clean stops until all are verified', async () => {
    const root = await temporaryFolder()
    const digest = await killedStore(root)
    await (await openTestStore(root)).close()
    await flipByte(createStoreLayout(root).blob(digest))
    const store = await openTestStore(root)
    expect(await openText(store, digest)).toBeUndefined()
    await store.blobs.ready
    await store.close()
    expect(await readdir(store.layout.home)).toContain('clean')
  })
})

describe('the scan of the disk', () => {
  test('counts blobs and ignores everything else', async () => {
    const root = await temporaryFolder()
    const digest = await killedStore(root)
    const folder = dirname(createStoreLayout(root).blob(digest))
    await writeFile(join(folder, 'README'), 'hello')
    await writeFile(join(folder, 'A'.repeat(64)), 'upper case')
    await symlink('README', join(folder, 'b'.repeat(64)))
    const store = await openTestStore(root)
    await store.blobs.ready
    expect(store.blobs.usage).toEqual({ bytes: text.length, blobs: 1 })
    expect([...store.blobs.entries()]).toEqual([[digest, text.length]])
  })

  test('agrees with blobs that are stored and removed meanwhile', async () => {
    const layout = createStoreLayout(await temporaryFolder())
    await makeStoreFolders(layout)
    const old = Array.from({ length: 500 }, (_, at) => `old ${at}`)
    for (const each of old) await writeFile(layout.blob(computeDigest(bytesOf(each))), each)
    const blobs = new FileBlobStore({ layout, verifyReads: 'auto', suspect: false, minFree: 0, logger: silentLogger })
    const removed = old.slice(0, 250).map((each) => blobs.remove(computeDigest(bytesOf(each))))
    const again = old.slice(200, 300).map((each) => blobs.put(computeDigest(bytesOf(each)), bytesOf(each)))
    const fresh = Array.from({ length: 50 }, (_, at) => putText({ blobs }, `new ${at}`))
    await Promise.all([blobs.ready, ...removed, ...again, ...fresh])
    const names = await readdir(layout.blobFolder('sha256'))
    expect([...blobs.sizes.keys()].map((digest) => digest.slice(7)).toSorted()).toEqual(names.toSorted())
    let bytes = 0
    for (const name of names) bytes += (await stat(join(layout.blobFolder('sha256'), name))).size
    expect(blobs.usage).toEqual({ bytes, blobs: names.length })
    expect(names.length).toBe(350)
  })

  test('removes a blob from the index whose file was deleted from outside', async () => {
    const store = await openTestStore(await temporaryFolder())
    const digest = await putText(store, text)
    await store.blobs.ready
    await unlink(store.layout.blob(digest))
    expect(await openText(store, digest)).toBeUndefined()
    expect(await store.blobs.stat(digest)).toBeUndefined()
    expect(store.blobs.usage).toEqual({ bytes: 0, blobs: 0 })
  })
})
