import { readdir, readFile, writeFile } from 'node:fs/promises'
import { setTimeout } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { silentLogger } from '../../../src/lib/logger.ts'
import { systemClock } from '../../../src/lib/time.ts'
import { type Digest, computeDigest } from '../../../src/oci/reference.ts'
import type { TestStore } from '../../support/store/store.ts'
import { createScrub, type VerifyOptions, type VerifyState, verifyStore } from '../../../src/store/verify.ts'
import { openTestStore, openText, putText, temporaryFolder } from '../../support/store/store.ts'

async function storeWithDamage(): Promise<{ store: TestStore; good: Digest; bad: Digest }> {
  const store = await openTestStore(await temporaryFolder())
  const good = await putText(store, 'good')
  const bad = await putText(store, 'bad bytes')
  const path = store.layout.blob(bad)
  const bytes = await readFile(path)
  bytes[0]! ^= 1
  await writeFile(path, bytes)
  return { store, good, bad }
}

async function lastState(store: TestStore, options: Partial<VerifyOptions> = {}): Promise<VerifyState | undefined> {
  let last: VerifyState | undefined
  const { signal } = new AbortController()
  for await (const state of verifyStore(store, { quarantine: true, signal, ...options })) last = state
  return last
}

describe('verification of the store', () => {
  test('finds a flipped byte and quarantines the blob', async () => {
    const { store, good, bad } = await storeWithDamage()
    const expected = { checked: 2, total: 2, checkedBytes: 13, totalBytes: 13, damaged: [bad] }
    expect(await lastState(store, { quarantine: false })).toEqual(expected)
    expect(store.blobs.usage.blobs).toBe(2)
    expect(await lastState(store)).toEqual(expected)
    expect(await store.blobs.stat(bad)).toBeUndefined()
    expect(await openText(store, good)).toBe('good')
    expect(await lastState(store)).toMatchObject({ checked: 1, damaged: [] })
  })

  test('of an empty store ends at once', async () => {
    const store = await openTestStore(await temporaryFolder())
    expect(await lastState(store)).toEqual({ checked: 0, total: 0, checkedBytes: 0, totalBytes: 0, damaged: [] })
  })

  test('keeps its rate limit, and reports its progress', async () => {
    const store = await openTestStore(await temporaryFolder())
    const bytes = Buffer.alloc(1024 * 1024)
    await store.blobs.put(computeDigest(bytes), bytes)
    let now = 0
    const clock = { ...systemClock, monotonic: () => now, sleep: async (ms: number) => void (now += ms) }
    const states: number[] = []
    const { signal } = new AbortController()
    for await (const { checkedBytes } of verifyStore(store, {
      quarantine: true,
      signal,
      clock,
      bytesPerSecond: 256 * 1024,
    }))
      states.push(checkedBytes)
    expect(now).toBe(4_000)
    expect(states).toEqual([1, 2, 3, 4, 4].map((quarters) => quarters * 256 * 1024))
  })

  test('can be cancelled, and leaves no file open', async () => {
    const { store } = await storeWithDamage()
    const ending = new AbortController()
    const clock = { ...systemClock, sleep: async () => ending.abort(new Error('enough')) }
    await expect(lastState(store, { signal: ending.signal, clock, bytesPerSecond: 1 })).rejects.toThrow('enough')
    if (process.platform === 'linux') expect(await openBlobFiles(store)).toBe(0)
  })
})

describe('the scrub', () => {
  test('finds a flipped byte in the background, and ends when it is closed', async () => {
    const { store, good } = await storeWithDamage()
    const scrub = createScrub({ store, clock: systemClock, logger: silentLogger, firstAfterMs: 1, intervalMs: 1 })
    while (store.blobs.usage.blobs === 2) await setTimeout(5)
    await scrub.close()
    expect(await readdir(store.layout.quarantine)).toHaveLength(1)
    expect(await openText(store, good)).toBe('good')
  })

  test('can be closed during a slow round', async () => {
    const { store } = await storeWithDamage()
    const scrub = createScrub({ store, clock: systemClock, logger: silentLogger, firstAfterMs: 0, bytesPerSecond: 1 })
    await setTimeout(20)
    await scrub.close()
    expect(store.blobs.usage.blobs).toBeGreaterThan(0)
  })
})

/** Counts the files of the store that this process has open. */
async function openBlobFiles(store: TestStore): Promise<number> {
  const { readlink } = await import('node:fs/promises')
  const links = await Promise.all(
    (await readdir('/proc/self/fd')).map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => '')),
  )
  return links.filter((link) => link.startsWith(store.layout.blobs)).length
}
