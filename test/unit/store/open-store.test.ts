import { chmod, mkdir, readdir, readFile, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test, vi } from 'vitest'
import { toOperations } from '../../../src/metadata/repositories.ts'
import { systemClock } from '../../../src/lib/time.ts'
import { exitCode, MirrorError } from '../../../src/lib/errors.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { makeStoreFolders, createStoreLayout } from '../../../src/store/layout.ts'
import type { TestStore } from '../../support/store/store.ts'
import { addManifest, createTestRepository, digestFor } from '../../support/metadata.ts'
import { openTestStore, openText, putText, temporaryFolder } from '../../support/store/store.ts'

async function refusal(open: Promise<TestStore>): Promise<MirrorError> {
  const error = await open.catch((error: unknown) => error)
  expect(error).toBeInstanceOf(MirrorError)
  return error as MirrorError
}

describe('opening a store', () => {
  test('creates every folder with mode 0700', async () => {
    const root = join(await temporaryFolder(), 'data', 'cache')
    const { layout } = await openTestStore(root)
    const folders = [root, layout.home, layout.blobs, layout.blobFolder('sha512'), layout.temporary]
    folders.push(layout.metadata, layout.quarantine)
    for (const folder of folders) expect((await stat(folder)).mode & 0o777, folder).toBe(0o700)
    expect((await stat(layout.lock)).mode & 0o777).toBe(0o600)
  })

  test('restores everything after a close', async () => {
    const root = await temporaryFolder()
    const first = await openTestStore(root)
    const digest = await putText(first, 'abc')
    const repository = createTestRepository({}, first.metadata)
    addManifest(repository, 'index', { tags: ['v1'], blobs: ['a'] })
    const before = [...toOperations(repository.current)]
    await first.close()
    await first.close()
    expect((await readdir(first.layout.home)).toSorted()).toEqual(
      ['blobs', 'clean', 'metadata', 'quarantine', 'running.json', 'tmp'].toSorted(),
    )
    const second = await openTestStore(root)
    expect([...toOperations(second.metadata.get('docker.io', 'library/app')!)]).toEqual(before)
    expect(await openText(second, digest)).toBe('abc')
    await second.blobs.ready
    expect(second.blobs.usage).toEqual({ bytes: 3, blobs: 1 })
    expect(await readdir(second.layout.home)).not.toContain('clean')
  })

  test('logs whether the last stop or an earlier one was not clean, until all blobs are verified', async () => {
    const root = await temporaryFolder()
    const killed = await openTestStore(root)
    const { layout } = killed
    const digest = await putText(killed, 'text')
    await killed.close()
    await rm(layout.cleanMarker)
    const open = async () => {
      const said: unknown[] = []
      const logger = { ...silentLogger, info: (_: object, message: string) => void said.push(message) }
      const store = await openTestStore(root, { logger })
      await store.blobs.ready
      return { store, said }
    }
    const last = ['the last stop was not clean; blobs are checked when first read']
    const earlier = [
      'an earlier stop was not clean, and some blobs were not checked since; blobs are checked when first read',
    ]
    const first = await open()
    expect(first.said).toEqual(last)
    await first.store.close()
    const second = await open()
    expect(second.said).toEqual(earlier)
    expect(await readdir(layout.home)).not.toContain('unchecked')
    await second.store.close()
    const third = await open()
    expect(third.said).toEqual(earlier)
    await openText(third.store, digest)
    await third.store.close()
    const fourth = await open()
    expect(fourth.said).toEqual([])
    await fourth.store.close()
    await rm(layout.cleanMarker)
    const fifth = await open()
    expect(fifth.said).toEqual(last)
  })

  test('removes the temp files of dead processes', async () => {
    const root = await temporaryFolder()
    const layout = createStoreLayout(root)
    await makeStoreFolders(layout)
    await writeFile(layout.temporaryBlob(), 'half a blob')
    await mkdir(join(layout.temporary, 'folder'))
    await writeFile(join(layout.metadata, '7.new'), 'half a checkpoint')
    await writeFile(join(layout.home, '.running.json.0123'), '{')
    const old = layout.quarantined(digestFor('old'))
    await writeFile(old, 'old')
    const aged = new Date(Date.now() - 8 * 24 * 3_600_000)
    await utimes(old, aged, aged)
    const recent = layout.quarantined(digestFor('recent'))
    await writeFile(recent, 'recent')
    await openTestStore(root)
    expect(await readdir(layout.temporary)).toEqual([])
    expect(await readdir(layout.metadata)).toEqual(['0000000000000001.log'])
    expect((await readdir(layout.home)).filter((name) => name.startsWith('.'))).toEqual([])
    expect(await readdir(layout.quarantine)).toHaveLength(1)
  })

  test('refuses a store of a newer version, and leaves it as it is', async () => {
    const root = await temporaryFolder()
    await mkdir(join(root, 'v12'))
    const error = await refusal(openTestStore(root))
    expect(error.exit).toBe(exitCode.usage)
    expect(error.message).toContain('newer version')
    expect(error.hints.length).toBeGreaterThan(0)
    expect(await readdir(root)).toEqual(['v12'])
  })

  test('names the folder that cannot be used, and the reason', async () => {
    const root = join(await temporaryFolder(), 'cache')
    await writeFile(root, 'a file')
    const error = await refusal(openTestStore(root))
    expect(error.message).toContain(root)
    expect(error.hints[0]).toContain('in the way')
  })

  test('explains how to make a folder writable', async ({ skip }) => {
    if (process.platform === 'win32' || process.getuid?.() === 0) skip('root may write everywhere')
    const parent = await temporaryFolder()
    await chmod(parent, 0o500)
    expect((await refusal(openTestStore(join(parent, 'cache')))).hints[0]).toBe(`chmod u+w ${parent}`)
    await chmod(parent, 0o700)
  })

  test('releases the lock when it fails later', async () => {
    const root = await temporaryFolder()
    const wall = vi.fn(() => {
      throw new Error('no clock')
    })
    await expect(openTestStore(root, { clock: { ...systemClock, wall } })).rejects.toThrow('no clock')
    expect(await readdir(createStoreLayout(root).home)).not.toContain('lock')
  })

  test('works for two independent stores in one process', async () => {
    const one = await openTestStore(await temporaryFolder())
    const other = await openTestStore(await temporaryFolder())
    const digest = await putText(one, 'abc')
    expect(await openText(other, digest)).toBeUndefined()
    await one.close()
    await putText(other, 'abc')
    expect(await openText(other, digest)).toBe('abc')
  })
})

describe('the running time', () => {
  test('continues from the saved time regardless of the wall clock, and never before a recorded use', async () => {
    const root = await temporaryFolder()
    let monotonic = 1_000
    let wall = 1e12
    const clock = { wall: () => wall, monotonic: () => monotonic, sleep: async () => {} }
    const first = await openTestStore(root, { clock })
    expect(first.runningClock.now()).toBe(0)
    monotonic += 5_000
    expect(first.runningClock.now()).toBe(5_000)
    await first.close()

    monotonic = 50
    wall += 1e11
    const second = await openTestStore(root, { clock })
    monotonic += 10
    expect(second.runningClock.now()).toBe(5_010)
    addManifest(createTestRepository({}, second.metadata), 'index', { usedAt: 9_000 })
    await second.close()
    expect((await openTestStore(root, { clock })).runningClock.now()).toBe(9_000)
  })

  test.each(['', '{', '[]', 'null', '{"runningMs":-1}', '{"runningMs":1e400}', '{"runningMs":"5"}'])(
    'starts from 0 when the saved time is damaged: %s',
    async (text) => {
      const root = await temporaryFolder()
      const layout = createStoreLayout(root)
      await makeStoreFolders(layout)
      await writeFile(layout.runningClock, text)
      const store = await openTestStore(root)
      expect(store.runningClock.now()).toBeLessThan(60_000)
      await store.close()
      expect(JSON.parse(await readFile(layout.runningClock, 'utf8'))).toHaveProperty('runningMs')
    },
  )
})
