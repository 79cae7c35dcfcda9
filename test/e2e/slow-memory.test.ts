import type { IncomingMessage } from 'node:http'
import { expect, test } from 'vitest'
import { expectContent } from '../support/expect-content.ts'
import { open } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { startMirrorProcess } from '../support/mirror-process.ts'
import { noise } from '../support/noise.ts'
import { pull } from '../support/pull.ts'
import { app } from '../support/scene.ts'
import { anyBlob, anyManifest, startUpstream } from '../support/upstream.ts'
import { endless } from '../support/faults.ts'

const MiB = 1024 * 1024
const content = noise(60_000_000)
const image = makeImage({ layers: [content] })
const path = `${app}/blobs/${image.layers[0]!}`
const clients = <T>(count: number, each: () => Promise<T>) => Promise.all(Array.from({ length: count }, each))

async function startBoth(cache: Record<string, unknown> = {}) {
  const upstream = await startUpstream({ images: { 'library/app': { v1: image } } })
  const mirror = await startMirrorProcess({ upstreams: { 'docker.io': upstream.url }, cache })
  return { upstream, mirror }
}

test('a hundred clients on one cold blob of 60 MB cost one fetch and no more than 256 MiB', async () => {
  const { upstream, mirror } = await startBoth()
  const pulls = await clients(100, () => pull(mirror.url, path, content))
  expect(pulls.filter(({ right }) => !right)).toEqual([])
  expect(upstream.count(anyBlob)).toBe(1)
  expect(await mirror.memory('VmHWM')).toBeLessThanOrEqual(256 * MiB)
})

test('a hundred clients on one warm blob of 60 MB cost no more than 256 MiB', async () => {
  const { mirror } = await startBoth()
  await pull(mirror.url, path, content)
  const pulls = await clients(100, () => pull(mirror.url, path, content))
  expect(pulls.filter(({ right }) => !right)).toEqual([])
  expect(await mirror.memory('VmHWM')).toBeLessThanOrEqual(256 * MiB)
})

test('a thousand clients on one cold blob of 5 MB cost one fetch and no more than 384 MiB', async () => {
  const small = noise(5_000_000, 1)
  const other = makeImage({ layers: [small] })
  const { upstream, mirror } = await startBoth()
  upstream.push('library/app', 'small', other)
  const pulls = await clients(1000, () => pull(mirror.url, `${app}/blobs/${other.layers[0]!}`, small))
  expect(pulls.filter(({ right }) => !right)).toEqual([])
  expect(upstream.count(anyBlob)).toBe(1)
  expect(await mirror.memory('VmHWM')).toBeLessThanOrEqual(384 * MiB)
})

test('a client that reads nothing does not slow down the others, costs no memory, and is disconnected', async () => {
  const cache = { timeouts: { idle: '3s' } }
  const pullByTwenty = async ({ upstream, mirror }: Awaited<ReturnType<typeof startBoth>>) => {
    const begun = performance.now()
    const pulls = await clients(20, () => pull(mirror.url, path, content))
    const took = performance.now() - begun
    expect(pulls.filter(({ right }) => !right)).toEqual([])
    expect(upstream.count(anyBlob)).toBe(1)
    return { took, peak: await mirror.memory('VmHWM') }
  }
  const rounds: { alone: number; beside: number; growth: number; stuck: IncomingMessage }[] = []
  for (let round = 0; round < 3; round++) {
    const alone = await pullByTwenty(await startBoth(cache))
    const both = await startBoth(cache)
    await both.mirror.get('/v2/')
    const stuck = await open(both.mirror.url, path)
    const beside = await pullByTwenty(both)
    rounds.push({ alone: alone.took, beside: beside.took, growth: beside.peak - alone.peak, stuck })
  }
  // Compares the quickest rounds, because other work of the machine slows down some of them.
  const quickest = (of: 'alone' | 'beside') => Math.min(...rounds.map((round) => round[of]))
  expect(quickest('beside')).toBeLessThanOrEqual(1.5 * quickest('alone') + 500)
  for (const { growth } of rounds) expect(growth).toBeLessThanOrEqual(50 * MiB)

  // Waits for two idle times, because Node checks a socket's progress once in an idle time.
  await new Promise((resolve) => setTimeout(resolve, 8000))
  for (const { stuck } of rounds) {
    let got = 0
    stuck.on('data', (chunk: Buffer) => (got += chunk.length)).on('error', () => {})
    await new Promise((resolve) => stuck.once('close', resolve))
    expect(stuck.complete).toBe(false)
    expect(got).toBeLessThan(content.length)
  }
})

test('upstream manifests that are too large or never end do not raise the peak of memory', async () => {
  const { upstream, mirror } = await startBoth()
  const large = makeImage({ manifest: { annotations: { padding: 'x'.repeat(5_500_000) } } })
  const good = makeImage({ manifest: { annotations: { padding: 'x'.repeat(4_000_000) } } })
  upstream.push('library/app', 'large', large)
  upstream.push('library/app', 'good', good)
  expectContent(await mirror.get(`${app}/manifests/good`), good.digest)
  expect((await mirror.get(`${app}/manifests/large`)).status).toBe(502)
  upstream.on(anyManifest, endless)
  expect((await mirror.get(`${app}/manifests/endless`)).status).toBe(502)
  const askTwentyTimes = async (round: number) => {
    for (let at = 0; at < 20; at++) {
      expect((await mirror.get(`${app}/manifests/endless-${round}-${at}`)).status).toBe(502)
    }
  }
  const first = await mirror.memory('VmHWM')
  await askTwentyTimes(1)
  const reached = await mirror.memory('VmHWM')
  await askTwentyTimes(2)
  const end = await mirror.memory('VmHWM')
  // Allows some growth before the collector runs; all forty manifests together would hold 160 MiB.
  expect(end - reached).toBeLessThanOrEqual(20 * MiB)
  expect(end - first).toBeLessThanOrEqual(40 * MiB)
})
