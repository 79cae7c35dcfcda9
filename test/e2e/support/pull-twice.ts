import { readFile } from 'node:fs/promises'
import { expect } from 'vitest'
import type { Scene } from './scene.ts'

export interface PullTwice {
  /** Pulls through the mirror, and checks that the image is there. */
  pull: () => Promise<void>
  /** Removes the pulled content from the client. */
  forget: () => Promise<void>
}

/**
 * Checks that a pull fetches each content once, and that a second pull, after the client removed everything and with the upstream
 * gone, fetches nothing and gets the same content.
 */
export async function expectPullsTwice({ upstream, mirror }: Scene, { pull, forget }: PullTwice): Promise<void> {
  await pull()
  const asked = await upstream.requests()
  const fetched = asked.filter(({ method }) => method === 'GET').map(({ path }) => path)
  const blobs = fetched.filter((path) => path.includes('/blobs/'))
  expect(blobs, 'a config and three layers').toHaveLength(4)
  expect(new Set(blobs).size, 'different ones').toBe(4)
  expect(
    fetched.filter((path) => path.includes('/manifests/')),
    'an index and a manifest',
  ).toHaveLength(2)
  const first = await mirror.status()
  expect(first.cache.misses).toBeGreaterThan(0)
  expect(first.cache.pulls).toBe(1)

  await forget()
  await upstream.disconnect()
  await pull()
  expect(await upstream.requests()).toStrictEqual(asked)
  const second = await mirror.status()
  expect(second.cache.hits - first.cache.hits, 'manifests and blobs of the second pull').toBeGreaterThanOrEqual(5)
  expect(second.cache.misses).toBe(first.cache.misses)
  expect(second.cache.bytesFromUpstream).toBe(first.cache.bytesFromUpstream)
  expect(second.cache.staleServed, 'a tag that could not be asked for again').toBeGreaterThan(0)
  expect(second.cache.errors).toBe(0)
  await expectSummaries(mirror)
}

/** Checks that the log sums up the first pull as misses only, and the second one as hits only. */
async function expectSummaries({ logFile }: Scene['mirror']): Promise<void> {
  const summaries = async () => {
    const lines = (await readFile(logFile, 'utf8')).split('\n').filter((line) => line.startsWith('{'))
    return lines.map((line) => JSON.parse(line) as Record<string, unknown>).filter(({ msg }) => msg === 'pull')
  }
  await expect.poll(summaries, { timeout: 20_000 }).toHaveLength(2)
  const [cold, warm] = await summaries()
  expect(cold, 'an index, a manifest, a config and three layers').toMatchObject({ hits: 0, misses: 6 })
  expect(warm).toMatchObject({ hits: 6, misses: 0, bytesFromUpstream: 0 })
  for (const one of [cold, warm]) expect(one?.['image']).toMatch(/:one$/)
}
