import { readdir } from 'node:fs/promises'
import { describe, expect, onTestFinished, test } from 'vitest'
import { computeDigest } from '../../../src/oci/reference.ts'
import { systemClock, type Clock } from '../../../src/lib/time.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { FileBlobStore } from '../../../src/store/file-blob-store.ts'
import type { TestStore } from '../../support/store/store.ts'
import { UploadSessions } from '../../../src/registry/uploads.ts'
import { bytesOf, openTestStore, openText, temporaryFolder } from '../../support/store/store.ts'

async function setUp(options: { limit?: number; idle?: number; clock?: Clock } = {}) {
  const store = await openTestStore(await temporaryFolder())
  const { limit = 10, idle = 60_000, clock = systemClock } = options
  const sessions = new UploadSessions({ blobs: store.blobs, clock, maxSessions: limit, idleTimeoutMs: idle })
  onTestFinished(() => sessions.close())
  return { store, sessions }
}

const upload = { repository: 'app', user: undefined, algorithm: 'sha256' } as const

const temporaryFiles = async (store: TestStore) => (await readdir(store.layout.temporary)).length

describe('upload sessions', () => {
  test('create no file before the first byte', async () => {
    const { store, sessions } = await setUp()
    const session = sessions.start(upload)!
    expect(await temporaryFiles(store)).toBe(0)
    await session.append(bytesOf('a'))
    expect(await temporaryFiles(store)).toBe(1)
  })

  test.each(['sha256', 'sha512'] as const)(
    'store a blob under its %s digest, whatever algorithm was expected',
    async (algorithm) => {
      const { store, sessions } = await setUp()
      const digest = computeDigest(bytesOf('abc'), algorithm)
      for (const expected of ['sha256', 'sha512'] as const) {
        const session = sessions.start({ ...upload, algorithm: expected })!
        await session.append(bytesOf('ab'))
        await session.append(bytesOf('c'))
        expect((await session.runExclusively(() => session.publish(digest)))?.result).toBe(true)
      }
      expect(await openText(store, digest)).toBe('abc')
      expect(sessions.count).toBe(0)
      expect(await temporaryFiles(store)).toBe(0)
    },
  )

  test('at the limit replace the oldest empty session, and are refused when all have bytes', async () => {
    const { sessions } = await setUp({ limit: 2 })
    const [first, second] = [sessions.start(upload)!, sessions.start(upload)!]
    await first.append(bytesOf('a'))
    const third = sessions.start(upload)!
    expect(sessions.find(second.id)).toBeUndefined()
    await third.append(bytesOf('a'))
    expect(sessions.start(upload)).toBeUndefined()
    expect(sessions.find(first.id)).toBe(first)
  })

  test('that are dropped leave no file, even after a failed first write', async () => {
    const store = await openTestStore(await temporaryFolder())
    const { layout } = store
    const full = { layout, verifyReads: 'auto', suspect: false, minFree: 100, logger: silentLogger } as const
    const blobs = new FileBlobStore({ ...full, freeSpace: async () => 100 })
    onTestFinished(() => blobs.close())
    const sessions = new UploadSessions({ blobs, clock: systemClock, maxSessions: 1, idleTimeoutMs: 60_000 })
    onTestFinished(() => sessions.close())
    const session = sessions.start(upload)!
    await expect(session.append(bytesOf('a'))).rejects.toMatchObject({ code: 'ENOSPC' })
    expect(await temporaryFiles(store)).toBe(1)
    expect(sessions.start(upload)).toBeDefined()
    await expect.poll(() => temporaryFiles(store)).toBe(0)
  })

  test('expire with their files when they are idle, but not while a request uses them', async () => {
    let now = 0
    const clock = { ...systemClock, monotonic: () => now }
    const { store, sessions } = await setUp({ idle: 200, clock })
    const [idle, busy] = [sessions.start(upload)!, sessions.start(upload)!]
    await idle.append(bytesOf('a'))
    let finish = () => {}
    const working = busy.runExclusively(() => new Promise<void>((resolve) => (finish = resolve)))
    now = 1000
    await expect.poll(() => sessions.count).toBe(1)
    await expect.poll(() => temporaryFiles(store)).toBe(0)
    expect(sessions.find(busy.id)).toBe(busy)
    finish()
    await working
  })

  test('run one task at a time, and clean up when they are cancelled during it', async () => {
    const { store, sessions } = await setUp()
    const session = sessions.start(upload)!
    await session.runExclusively(async () => {
      await session.append(bytesOf('a'))
      expect(await session.runExclusively(async () => 1)).toBeUndefined()
      await session.cancel()
      expect(sessions.find(session.id)).toBeUndefined()
      expect(await temporaryFiles(store)).toBe(1)
    })
    expect(await temporaryFiles(store)).toBe(0)
  })
})
