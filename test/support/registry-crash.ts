import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { expect } from 'vitest'
import { systemClock } from '../../src/lib/time.ts'
import { silentLogger } from '../../src/lib/logger.ts'
import { computeDigest } from '../../src/oci/reference.ts'
import { openPushedStore } from '../../src/registry/repositories.ts'
import { verifyStore } from '../../src/store/verify.ts'
import { makeImage, type TestImage } from './images.ts'
import { type MirrorProcess, program, startMirrorProcess } from './mirror-process.ts'
import { temporaryHome } from './mirror.ts'
import { noise } from './noise.ts'
import { RegistryLedger } from './registry-ledger.ts'
import { startUpstream } from './upstream.ts'

const [kept, checkedPulls, manyChanges] = [3, 5, 2000]
/** Sets how many rounds pass until one kills during the start, collects garbage, makes many changes, or checks all, not only the changes. */
const [killsStartEvery, collectsEvery, changesManyEvery, checksAllEvery] = [5, 10, 20, 50]
/** Sets the pause of a client that pushes new images, because each of them makes the checks longer, ms. */
const pauseMs = 20

/**
 * Kills a server with SIGKILL in each round: while it starts, while it collects garbage, or while clients push, replace, delete,
 * prune and pull. After each restart, everything that was acknowledged must exist and be correct, what was deleted must be gone,
 * and each tag must lead to a complete image; at the end it checks every byte of the store.
 */
export async function crashMirror(rounds: number): Promise<void> {
  const home = await temporaryHome()
  const upstream = await startUpstream()
  const options = { upstreams: { 'docker.io': upstream.url }, registry: true, home }
  const ledger = new RegistryLedger()
  /** Holds the images of the upstream that clients have begun to pull. */
  const pulled = new Map<string, TestImage>()
  let seed = 0
  const nextImage = async () => {
    await systemClock.sleep(pauseMs)
    seed += 1
    return makeImage({ layers: [noise(200 + (seed % 7) * 3000, seed), noise(300, seed % 5)], seed })
  }
  for (let round = 0; round < rounds; round++) {
    if (round % killsStartEvery === killsStartEvery - 1) {
      await killDuringStart(home, 100 + ((round * 61) % 400))
      continue
    }
    const mirror = await startMirrorProcess(options)
    const base = mirror.registryUrl!
    await ledger.check(base, { all: round % checksAllEvery === 0 })
    for (const [tag, image] of [...pulled].slice(-checkedPulls))
      expect(await isPulled(ledger, mirror, tag, image), tag).toBe(true)
    const before = ledger.acknowledged
    if (round % collectsEvery === 1) {
      const collecting = ledger.collect(mirror)
      await systemClock.sleep((round * 7) % 60)
      await kill(mirror)
      await collecting
      continue
    }
    const work = [
      ...['app', 'app', 'other'].map((name) => async () => {
        const image = await nextImage()
        return (await ledger.push(base, name, `t${image.digest.slice(-8)}`, image)) === 201
      }),
      async () => {
        const image = await nextImage()
        const tag = `t${image.digest.slice(-8)}`
        if ((await ledger.push(base, 'fickle', tag, image)) !== 201) return false
        if (seed % 2 === 0) return (await ledger.untag(base, 'fickle', tag)) === 202
        return (await ledger.remove(mirror, 'fickle', tag)) === 200
      },
      async () => {
        const image = await nextImage()
        if ((await ledger.push(base, 'pruned', `t${image.digest.slice(-8)}`, image)) !== 201) return false
        if (ledger.tagsOf('pruned').length < 3 * kept) return true
        return (await ledger.prune(mirror, 'pruned', kept)) === 200
      },
      // Replaces few tags by few images, which makes a log long for what it holds.
      ...Array.from({ length: 16 }, (_, at) => `t${at}`).map((tag) => async () => {
        const image = makeImage({ layers: [noise(300, seed % 3)], seed: -1 - (seed % 3) })
        return (await ledger.push(base, 'hot', tag, image)) === 201
      }),
      async () => {
        const image = await nextImage()
        const tag = `p${seed}`
        upstream.push('library/app', tag, image)
        pulled.set(tag, image)
        return isPulled(ledger, mirror, tag, image)
      },
    ]
    const working = work.map(async (task) => {
      while (await task());
    })
    await systemClock.sleep(50 + ((round * 37) % 350))
    // Waits for changes, because a busy machine may have finished none yet; in some rounds until a log is worth a checkpoint.
    const enough = round % changesManyEvery === changesManyEvery / 2 ? manyChanges : 2
    await expect
      .poll(() => ledger.acknowledged - before, { timeout: 60_000, interval: 5 })
      .toBeGreaterThanOrEqual(enough)
    await kill(mirror)
    await Promise.all(working)
  }
  expect(ledger.acknowledged).toBeGreaterThan(rounds)
  const last = await startMirrorProcess(options)
  await ledger.check(last.registryUrl!)
  expect((await last.status()).registry).not.toHaveProperty('damaged')
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

/** Pulls an image through the cache, and expects the right bytes; false when the server is gone. */
async function isPulled(
  ledger: RegistryLedger,
  mirror: MirrorProcess,
  tag: string,
  image: TestImage,
): Promise<boolean> {
  const wanted = [
    [`manifests/${tag}`, image.digest],
    ...Array.from(image.blobs.keys(), (blob) => [`blobs/${blob}`, blob]),
  ]
  for (const [path, digest] of wanted) {
    const answer = await ledger.ask(mirror.url, 'GET', `/v2/library/app/${path}`)
    if (answer === undefined) return false
    expect([path, answer.status, computeDigest(answer.body)]).toEqual([path, 200, digest])
  }
  return true
}

async function kill(mirror: MirrorProcess): Promise<void> {
  mirror.kill('SIGKILL')
  await mirror.ended
}

/** Starts a server and kills it after so many ms, ready or not. */
async function killDuringStart(home: string, after: number): Promise<void> {
  const child = spawn(process.execPath, [program, 'serve'], {
    env: { ...process.env, MIRROR_HOME: home },
    stdio: 'ignore',
  })
  const ended = once(child, 'exit')
  await systemClock.sleep(after)
  child.kill('SIGKILL')
  expect(await ended).toEqual([null, 'SIGKILL'])
}
