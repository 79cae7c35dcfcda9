import { expect } from 'vitest'
import { systemClock } from '../../src/lib/time.ts'
import { silentLogger } from '../../src/lib/logger.ts'
import { computeDigest } from '../../src/oci/reference.ts'
import { openPushedStore } from '../../src/registry/repositories.ts'
import { verifyStore } from '../../src/store/verify.ts'
import { get, type Answer } from './get.ts'
import { makeImage } from './images.ts'
import { startMirrorProcess } from './mirror-process.ts'
import { temporaryHome } from './mirror.ts'
import { noise } from './noise.ts'

const pushers = 4

/**
 * Kills a server with SIGKILL during parallel pushes, in each round. After each restart, all content that was answered with
 * 201 must exist and be correct; at the end it checks every byte of the store.
 */
export async function crashRegistry(rounds: number): Promise<void> {
  const home = await temporaryHome()
  /** Paths of the registry, with the digest of the expected content. */
  const confirmed = new Map<string, string>()
  let seed = 0
  for (let round = 0; round < rounds; round++) {
    const mirror = await startMirrorProcess({ upstreams: {}, registry: true, home })
    const base = mirror.registryUrl!
    await expectAll(base, confirmed)
    const pushing = Array.from({ length: pushers }, async (_, worker) => {
      for (;;) if (!(await pushImage(base, `app${worker % 2}`, (seed += 1), confirmed))) return
    })
    const before = confirmed.size
    await systemClock.sleep(50 + ((round * 37) % 350))
    // Wait for pushes, because a busy machine may have finished none yet.
    await expect.poll(() => confirmed.size, { timeout: 30_000, interval: 5 }).toBeGreaterThan(before + 1)
    mirror.kill('SIGKILL')
    await mirror.ended
    await Promise.all(pushing)
  }
  expect(confirmed.size).toBeGreaterThan(rounds)
  const last = await startMirrorProcess({ upstreams: {}, registry: true, home })
  await expectAll(last.registryUrl!, confirmed)
  last.kill('SIGTERM')
  await last.ended

  const root = `${home}/data/registry`
  const store = await openPushedStore({ root, minFree: 0, logger: silentLogger, clock: systemClock })
  try {
    const { signal } = new AbortController()
    for await (const { damaged } of verifyStore(store, { quarantine: false, signal })) expect(damaged).toEqual([])
  } finally {
    await store.close()
  }
}

/** Pushes an image as clients do; false when the server is gone. */
async function pushImage(base: string, name: string, seed: number, confirmed: Map<string, string>): Promise<boolean> {
  const image = makeImage({ layers: [noise(20_000 + (seed % 7) * 30_000, seed)], seed })
  try {
    for (const [digest, body] of image.blobs) {
      const begun = await get(base, `/v2/${name}/blobs/uploads/`, { method: 'POST' })
      const location = begun.headers.location!
      await get(base, location, { method: 'PATCH', body: body.subarray(0, body.length >> 1) })
      const rest = body.subarray(body.length >> 1)
      const answer = await get(base, `${location}?digest=${digest}`, { method: 'PUT', body: rest })
      if (answer.status === 201) confirmed.set(`/v2/${name}/blobs/${digest}`, digest)
    }
    const headers = { 'content-type': image.mediaType }
    const answer = await get(base, `/v2/${name}/manifests/t${seed}`, { method: 'PUT', headers, body: image.bytes })
    if (answer.status === 201) {
      confirmed.set(`/v2/${name}/manifests/t${seed}`, image.digest)
      confirmed.set(`/v2/${name}/manifests/${image.digest}`, image.digest)
    }
    return true
  } catch (error) {
    // Expect refused and broken connections.
    if (error instanceof Error && 'code' in error) return false
    throw error
  }
}

async function expectAll(base: string, confirmed: ReadonlyMap<string, string>): Promise<void> {
  const wrong: string[] = []
  for (const [path, digest] of confirmed) {
    const answer: Answer = await get(base, path)
    if (answer.status !== 200 || computeDigest(answer.body) !== digest) wrong.push(`${answer.status} ${path}`)
  }
  expect(wrong).toEqual([])
}
