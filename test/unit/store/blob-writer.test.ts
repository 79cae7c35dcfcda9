import { execFile } from 'node:child_process'
import { mkdir, readdir, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { describe, expect, onTestFinished, test } from 'vitest'
import { createSystemError } from '../../../src/lib/errors.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { computeDigest } from '../../../src/oci/reference.ts'
import { anonymousIdentity } from '../../../src/oci/registry.ts'
import { FileBlobStore } from '../../../src/store/file-blob-store.ts'
import { makeStoreFolders, createStoreLayout, type StoreLayout } from '../../../src/store/layout.ts'
import { digestFor } from '../../support/metadata.ts'
import { openTestStore, openText, putText, temporaryFolder } from '../../support/store/store.ts'

const run = promisify(execFile)

async function blobsWith(freeSpace: () => Promise<number>, minFree: number): Promise<[FileBlobStore, StoreLayout]> {
  const layout = createStoreLayout(await temporaryFolder())
  await makeStoreFolders(layout)
  const logger = silentLogger
  return [new FileBlobStore({ layout, verifyReads: 'auto', suspect: false, minFree, logger, freeSpace }), layout]
}

describe('a blob being written', () => {
  test('leaves nothing behind when it is aborted or closed', async () => {
    const store = await openTestStore(await temporaryFolder())
    const aborted = await store.blobs.create()
    await aborted.write(Buffer.from('abc'))
    await aborted.abort()
    expect(await readdir(store.layout.temporary)).toEqual([])
    await aborted.close()
    const closed = await store.blobs.create()
    await closed.close()
    await closed.close()
    expect(await readdir(store.layout.temporary)).toEqual([])
  })

  test('has mode 0600 and a random name', async () => {
    const store = await openTestStore(await temporaryFolder())
    const writer = await store.blobs.create()
    const [name] = await readdir(store.layout.temporary)
    expect(name).toMatch(/^[0-9a-f]{32}$/)
    expect((await stat(join(store.layout.temporary, name!))).mode & 0o777).toBe(0o600)
    await writer.close()
  })

  test('can be stored after the folders were emptied', async () => {
    const store = await openTestStore(await temporaryFolder())
    await rm(store.layout.temporary, { recursive: true })
    await rm(store.layout.blobs, { recursive: true })
    const digest = await putText(store, 'abc')
    expect(await openText(store, digest)).toBe('abc')
  })

  test('does not remove an existing blob when the sync of its folder fails', async () => {
    const layout = createStoreLayout(await temporaryFolder())
    await makeStoreFolders(layout)
    let isBroken = false
    const syncFolder = async () => {
      if (isBroken) throw createSystemError('EMFILE', 'open', 'EMFILE: too many open files')
    }
    const options = { layout, verifyReads: 'auto' as const, suspect: false, minFree: 0, logger: silentLogger }
    const blobs = new FileBlobStore({ ...options, syncFolder })
    const digest = await putText({ blobs }, 'abc')
    isBroken = true
    await expect(putText({ blobs }, 'abc')).rejects.toThrow('EMFILE')
    expect(await openText({ blobs }, digest)).toBe('abc')
    await expect(putText({ blobs }, 'new')).rejects.toThrow('EMFILE')
    expect(blobs.usage.blobs).toBe(1)
    await blobs.close()
  })

  test('is not published when the rename fails', async () => {
    const store = await openTestStore(await temporaryFolder())
    const digest = computeDigest(Buffer.from('abc'))
    await mkdir(join(store.layout.blob(digest), 'in the way'), { recursive: true })
    // Without a quarantine the folder stays in the way.
    await rm(store.layout.quarantine, { recursive: true })
    await writeFile(store.layout.quarantine, '')
    await expect(putText(store, 'abc')).rejects.toThrow('ENOTDIR')
    expect(store.blobs.usage.blobs).toBe(0)
    expect(await readdir(store.layout.temporary)).toEqual([])
  })
})

describe('the reserve', () => {
  test('is respected when a blob is created', async () => {
    const [blobs, layout] = await blobsWith(async () => 99, 100)
    await expect(blobs.create()).rejects.toMatchObject({ code: 'ENOSPC' })
    expect(await readdir(layout.temporary)).toEqual([])
  })

  test('is respected to the byte while a blob grows', async () => {
    const [blobs] = await blobsWith(async () => 110, 100)
    const writer = await blobs.create()
    await writer.write(Buffer.alloc(10))
    await expect(writer.write(Buffer.alloc(11))).rejects.toMatchObject({ code: 'ENOSPC' })
    expect(writer.size).toBe(10)
    await writer.close()
  })

  test('is checked again every 8 MiB, not at every write', async () => {
    let looks = 0
    const [blobs] = await blobsWith(async () => {
      looks += 1
      return 1e12
    }, 100)
    const writer = await blobs.create()
    for (let written = 0; written < 20; written++) await writer.write(Buffer.alloc(1024 * 1024))
    await writer.close()
    expect(looks).toBe(3)
  })
})

describe('a full disk', () => {
  /** Mounts a disk of 1 MiB; returns its folder. */
  async function smallDisk(skip: (note: string) => void): Promise<string> {
    const folder = await temporaryFolder()
    if (process.platform !== 'linux' || process.getuid?.() !== 0) skip('mounting a small disk needs root on Linux')
    try {
      await run('mount', ['-t', 'tmpfs', '-o', 'size=1m,mode=700', 'tmpfs', folder])
    } catch (error) {
      skip(`this machine does not let us mount: ${String(error)}`)
    }
    onTestFinished(async () => void (await run('umount', ['-l', folder])))
    return folder
  }

  test('does not remove chunks that were written ahead', async ({ skip }) => {
    const store = await openTestStore(join(await smallDisk(skip), 'cache'))
    const writer = await store.blobs.create()
    const chunk = Buffer.alloc(300 * 1024, 'x')
    await writer.writeAt(chunk.length, chunk)
    await writer.writeAt(0, chunk)
    await expect(writer.writeAt(5 * chunk.length, Buffer.alloc(1024 * 1024))).rejects.toMatchObject({ code: 'ENOSPC' })
    writer.extend(2 * chunk.length)
    const end = Buffer.alloc(10)
    expect(await writer.read(end, 2 * chunk.length - 10)).toBe(10)
    expect(end.toString()).toBe('xxxxxxxxxx')
    await writer.close()
  })

  test('leaves exactly the bytes written before, and free space is used again', async ({ skip }) => {
    const folder = await smallDisk(skip)
    const store = await openTestStore(join(folder, 'cache'))
    const writer = await store.blobs.create()
    const chunk = Buffer.alloc(300 * 1024, 'x')
    const fill = async () => {
      for (;;) await writer.write(chunk)
    }
    await expect(fill()).rejects.toMatchObject({ code: 'ENOSPC' })
    expect(writer.size % chunk.length).toBe(0)
    const [name] = await readdir(store.layout.temporary)
    expect((await stat(join(store.layout.temporary, name!))).size).toBe(writer.size)
    const end = Buffer.alloc(10)
    expect(await writer.read(end, writer.size - 10)).toBe(10)
    expect(end.toString()).toBe('xxxxxxxxxx')
    // Publishes the bytes written before the disk was full, which are complete.
    await writer.commit(computeDigest(Buffer.alloc(writer.size, 'x')))
    await writer.close()
    await expect(store.blobs.put(computeDigest(chunk), chunk)).rejects.toMatchObject({ code: 'ENOSPC' })
    await store.blobs.remove(computeDigest(Buffer.alloc(writer.size, 'x')))
    await store.blobs.put(computeDigest(chunk), chunk)

    // Checks that a record that does not fit stays in memory, and is written when there is room.
    const readBytes = async () => {
      const files = (await readdir(store.layout.metadata)).map((name) => stat(join(store.layout.metadata, name)))
      return (await Promise.all(files)).reduce((sum, { size }) => sum + size, 0)
    }
    const empty = await readBytes()
    const filler = join(folder, 'filler')
    await writeFile(filler, Buffer.alloc(1024 * 1024)).catch(() => undefined)
    const repository = { host: 'docker.io', name: 'library/app' }
    // The record must be larger than the rest of the last page of its file.
    const blobs = Array.from({ length: 100 }, (_, at) => ({
      op: 'blob' as const,
      digest: digestFor(`${at}`),
      size: chunk.length,
      identity: anonymousIdentity,
      usedAt: 0,
    }))
    void store.metadata.commit(repository, blobs, 'soon')
    await store.metadata.flush()
    expect(await readBytes()).toBe(empty)
    await rm(filler)
    await store.metadata.flush()
    expect(await readBytes()).toBeGreaterThan(empty)
  })
})
