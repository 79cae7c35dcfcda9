import { describe, expect, test } from 'vitest'
import type { RemovalReport } from '../../src/admin/api.ts'
import { expectContent } from '../support/expect-content.ts'
import { slow } from '../support/faults.ts'
import { open } from '../support/get.ts'
import { makeImage, type TestImage } from '../support/images.ts'
import type { TestMirror } from '../support/mirror.ts'
import { noise } from '../support/noise.ts'
import { app, startScene, type SceneOptions } from '../support/scene.ts'
import { anyBlob } from '../support/upstream.ts'

const MB = 1_000_000
const images = [1, 2, 3].map((seed) => makeImage({ layers: [noise(MB, seed)], seed }))

async function startThree(cache: SceneOptions['cache']) {
  const scene = await startScene(cache ? { cache } : {})
  for (const [at, image] of images.entries()) scene.upstream.push('library/app', `t${at}`, image)
  return scene
}

async function pull(mirror: TestMirror, at: number): Promise<void> {
  const image = images[at]!
  expectContent(await mirror.get(`${app}/manifests/t${at}`), image.digest)
  for (const digest of image.blobs.keys()) expectContent(await mirror.get(`${app}/blobs/${digest}`), digest)
}

const remove = async (mirror: TestMirror, names: string[]) => {
  const answer = await mirror.post('/api/cache/rm', { names, dryRun: false })
  return JSON.parse(answer.body.toString()) as RemovalReport
}

test('above maxSize whole images are evicted, the least recently pulled first', async () => {
  const { mirror } = await startThree({ maxSize: 2.5 * MB })
  await pull(mirror, 0)
  await pull(mirror, 1)
  await pull(mirror, 0)
  // Sends HEAD requests, which do not count as a use.
  await mirror.get(`${app}/manifests/t1`, { method: 'HEAD' })
  await mirror.get(`${app}/blobs/${images[1]!.layers[0]!}`, { method: 'HEAD' })
  await pull(mirror, 2)
  const kept = async () => (await mirror.status()).images.map(({ name }) => name).toSorted()
  await expect.poll(kept).toEqual(['docker.io/library/app:t0', 'docker.io/library/app:t2'])
  await expect.poll(async () => (await mirror.status()).storage.bytes).toBeLessThanOrEqual(2.5 * MB)
})

test('the result of an eviction counts listed images, and no tag that was only requested by HEAD', async () => {
  const { mirror } = await startThree({})
  await pull(mirror, 0)
  await mirror.get(`${app}/manifests/t1`, { method: 'HEAD' })
  const listed = (await mirror.status()).images.map(({ name }) => name)
  const preview = await mirror.post('/api/cache/rm', { names: ['docker.io/library/app'], dryRun: true })
  expect(JSON.parse(preview.body.toString())).toMatchObject({ images: listed })
  expect(await remove(mirror, ['docker.io/library/app'])).toMatchObject({ images: listed, unknown: [] })
})

test('eviction keeps a layer that a remaining image shares', async () => {
  const shared = noise(500_000, 50)
  const { upstream, mirror } = await startScene()
  const pair: TestImage[] = [1, 2].map((seed) => makeImage({ layers: [shared, noise(1000, seed)], seed }))
  for (const [at, image] of pair.entries()) {
    upstream.push('library/app', `p${at}`, image)
    await mirror.get(`${app}/manifests/p${at}`)
    for (const digest of image.blobs.keys()) await mirror.get(`${app}/blobs/${digest}`)
  }
  await mirror.untilStored(7)
  const { length } = upstream.requests
  expect((await remove(mirror, ['docker.io/library/app:p0'])).images).toEqual(['docker.io/library/app:p0'])
  for (const digest of pair[1]!.blobs.keys()) expectContent(await mirror.get(`${app}/blobs/${digest}`), digest)
  expect(upstream.requests.length).toBe(length)
})

describe('content in use survives its removal', () => {
  test('a client gets all of a blob that is removed during its response', async () => {
    const size = 30 * MB
    const { mirror, layer, layerBytes } = await startScene({ image: makeImage({ layers: [noise(size)] }) })
    await mirror.get(`${app}/manifests/v1`)
    await mirror.get(`${app}/blobs/${layer}`)
    await mirror.untilStored(2)
    const response = await open(mirror.url, `${app}/blobs/${layer}`)
    expect((await remove(mirror, ['docker.io/library/app:v1'])).bytes).toBeGreaterThanOrEqual(size)
    expect((await mirror.status()).storage.blobs).toBe(0)
    const chunks: Buffer[] = []
    for await (const chunk of response as AsyncIterable<Buffer>) chunks.push(chunk)
    expect(response.complete).toBe(true)
    expect(Buffer.concat(chunks).equals(layerBytes)).toBe(true)
  })

  test('a client gets all of a layer whose image is removed during the download', async () => {
    const { upstream, mirror } = await startThree({})
    upstream.on(anyBlob, slow(2 * MB))
    await mirror.get(`${app}/manifests/t0`)
    const layer = images[0]!.layers[0]!
    const running = mirror.get(`${app}/blobs/${layer}`)
    await expect.poll(() => upstream.count(anyBlob)).toBe(1)
    await remove(mirror, ['docker.io/library/app:t0'])
    expectContent(await running, layer)
    upstream.heal()
    expectContent(await mirror.get(`${app}/manifests/t0`), images[0]!.digest)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
  })
})

test('a cache that is too small for any image still serves every byte', async () => {
  const { mirror } = await startThree({ maxSize: 100_000 })
  for (const at of [0, 1, 2, 0]) await pull(mirror, at)
  await expect.poll(async () => (await mirror.status()).storage.bytes).toBeLessThanOrEqual(100_000)
})

test('concurrent pulls and prunes never serve wrong bytes', async () => {
  const { mirror } = await startThree({ maxSize: 1.5 * MB })
  const pulls = Array.from({ length: 4 }, async (_, client) => {
    for (let turn = 0; turn < 5; turn++) await pull(mirror, (client + turn) % 3)
  })
  const done = Promise.all(pulls).then(() => 'done')
  const prune = () => mirror.post('/api/cache/prune', { dryRun: false }).then(() => 'pruned')
  while ((await Promise.race([done, prune()])) !== 'done');
  await done
})
