import { appendFile, mkdir, readFile, readdir, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { describe, expect, test } from 'vitest'
import type { Digest } from '../../src/oci/reference.ts'
import type { VerifyProgress } from '../../src/admin/api.ts'
import { blobFile, filesOf } from '../support/blob-file.ts'
import { expectContent } from '../support/expect-content.ts'
import { corrupt } from '../support/faults.ts'
import { makeImage } from '../support/images.ts'
import { startTestMirror, type TestMirrorOptions } from '../support/mirror.ts'
import { noise } from '../support/noise.ts'
import { app, startScene, type Scene } from '../support/scene.ts'
import { anyBlob } from '../support/upstream.ts'

async function flipByte(file: string): Promise<void> {
  const bytes = await readFile(file)
  bytes[bytes.length >> 1]! ^= 1
  await writeFile(file, bytes)
}

/** Starts a scene whose cache has the whole image. */
async function startFilled(cache?: TestMirrorOptions['cache']): Promise<Scene> {
  const scene = await startScene(cache ? { cache } : {})
  await scene.mirror.get(`${app}/manifests/v1`)
  await scene.mirror.get(`${app}/blobs/${scene.layer}`)
  await scene.mirror.untilStored(2)
  return scene
}

/** Starts another mirror on the same home, after the damage. */
async function restart({ mirror, upstream }: Scene, harm: () => Promise<unknown>) {
  await mirror.close()
  await harm()
  return startTestMirror({ home: mirror.home, upstreams: { 'docker.io': upstream.url } })
}

async function verify(mirror: Scene['mirror']): Promise<VerifyProgress> {
  const answer = await mirror.post('/api/cache/verify', { quarantine: true })
  return JSON.parse(answer.body.toString().trim().split('\n').at(-1)!) as VerifyProgress
}

describe('a stored blob', () => {
  const sizes: [string, (file: string) => Promise<void>][] = [
    ['was truncated to nothing', (file) => truncate(file, 0)],
    ['was cut short', (file) => truncate(file, 1000)],
    ['was appended to', (file) => appendFile(file, 'x')],
  ]

  test.each(sizes)('that %s is fetched again', async (_, harm) => {
    const { upstream, mirror, layer } = await startFilled()
    await harm(await blobFile(mirror, layer))
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    await mirror.untilStored(2)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    expect(upstream.count(anyBlob)).toBe(2)
  })

  test.each(sizes)('that %s while the mirror was stopped is fetched again', async (_, harm) => {
    const scene = await startFilled()
    const file = await blobFile(scene.mirror, scene.layer)
    const second = await restart(scene, () => harm(file))
    expectContent(await second.get(`${app}/blobs/${scene.layer}`), scene.layer)
  })

  test('with a flipped byte is found by verify, quarantined, and fetched again', async () => {
    const { upstream, mirror, layer } = await startFilled()
    await flipByte(await blobFile(mirror, layer))
    expect(await verify(mirror)).toMatchObject({ damaged: [layer], done: true })
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    expect(upstream.count(anyBlob)).toBe(2)
    await mirror.untilStored(2)
    expect(await verify(mirror)).toMatchObject({ damaged: [], done: true })
  })

  test('with a flipped byte is never served with verifyReads: always', async () => {
    const { mirror, layer } = await startFilled({ verifyReads: 'always' })
    await flipByte(await blobFile(mirror, layer))
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
  })

  test('with a flipped byte is never served in ranges with verifyReads: always, wherever the range is', async () => {
    const { mirror, layer, layerBytes } = await startFilled({ verifyReads: 'always' })
    for (const [start, end] of [
      [0, 99],
      [150_000, 150_099],
      [layerBytes.length - 100, layerBytes.length - 1],
    ] as const) {
      await flipByte(await blobFile(mirror, layer))
      const answer = await mirror.get(`${app}/blobs/${layer}`, { headers: { range: `bytes=${start}-${end}` } })
      expect(answer).toMatchObject({ status: 206, complete: true })
      expect(answer.body.equals(layerBytes.subarray(start, end + 1))).toBe(true)
      await mirror.untilStored(2)
    }
  })

  test('with a flipped byte is never served on the first read after an unclean stop', async () => {
    const scene = await startFilled()
    const file = await blobFile(scene.mirror, scene.layer)
    const second = await restart(scene, async () => {
      const marker = (await filesOf(scene.mirror)).filter((path) => path.endsWith('/clean'))
      expect(marker).toHaveLength(1)
      await rm(marker[0]!)
      await flipByte(file)
    })
    expectContent(await second.get(`${app}/blobs/${scene.layer}`), scene.layer)
  })
})

test('a stored manifest with a flipped byte is never served', async () => {
  const scene = await startFilled()
  const { image, mirror } = scene
  const file = await blobFile(mirror, image.digest)
  const second = await restart(scene, () => flipByte(file))
  expectContent(await second.get(`${app}/manifests/${image.digest}`), image.digest)
  expectContent(await second.get(`${app}/manifests/v1`), image.digest)
})

describe('the mirror starts with damaged files', () => {
  test.each([
    ['emptied', (file: string) => truncate(file, 0)],
    ['cut in half', async (file: string) => truncate(file, (await stat(file)).size >> 1)],
    ['full of zeros', async (file: string) => writeFile(file, Buffer.alloc((await stat(file)).size))],
    ['of another shape', (file: string) => writeFile(file, '{"__proto__":1,"tags":[7],"totals":null,"pid":"x"}')],
  ])('when every file except the blobs %s', async (_, harm) => {
    const scene = await startFilled()
    const second = await restart(scene, async () => {
      const files = (await filesOf(scene.mirror)).filter((file) => !file.includes('/blobs/'))
      expect(files.length).toBeGreaterThan(3)
      for (const file of files) await harm(file)
    })
    expectContent(await second.get(`${app}/manifests/v1`), scene.image.digest)
    expectContent(await second.get(`${app}/blobs/${scene.layer}`), scene.layer)
    expect((await second.post('/api/cache/prune', { dryRun: true })).status).toBe(200)
  })
})

test('temp files of a killed process are removed at the start', async () => {
  const scene = await startFilled()
  const temporary = join(dirname(dirname(dirname(await blobFile(scene.mirror, scene.layer)))), 'tmp')
  const second = await restart(scene, async () => {
    await mkdir(temporary, { recursive: true })
    await writeFile(join(temporary, 'f'.repeat(32)), Buffer.alloc(1000))
  })
  expect(await readdir(temporary)).toEqual([])
  expectContent(await second.get(`${app}/blobs/${scene.layer}`), scene.layer)
})

test('successful and failed downloads leave no temp files', async () => {
  const { upstream, mirror, layer } = await startFilled()
  const temporary = join(dirname(dirname(dirname(await blobFile(mirror, layer)))), 'tmp')
  const image = makeImage({ layers: [noise(100_000, 9)] })
  upstream.push('library/app', 'v2', image)
  upstream.on(anyBlob, corrupt)
  await mirror.get(`${app}/blobs/${image.layers[0]!}`)
  await expect.poll(() => readdir(temporary)).toEqual([])
})

test('the mirror creates folders with mode 0700 and files with mode 0600', async () => {
  const { mirror } = await startFilled()
  await mirror.close()
  const entries = await readdir(mirror.home, { recursive: true, withFileTypes: true })
  for (const entry of entries) {
    const path = join(entry.parentPath, entry.name)
    expect([path, ((await stat(path)).mode & 0o777).toString(8)]).toEqual([path, entry.isFile() ? '600' : '700'])
  }
})

test('blobs are stored in the OCI image layout', async () => {
  const { mirror, image, layer } = await startFilled()
  for (const digest of [image.digest, layer] as Digest[]) {
    const file = await blobFile(mirror, digest)
    expect(await readFile(file)).toEqual(image.blobs.get(digest) ?? image.bytes)
    expect(file.endsWith(join('blobs', 'sha256', digest.slice('sha256:'.length)))).toBe(true)
  }
})
