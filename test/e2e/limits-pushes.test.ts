import { createHash } from 'node:crypto'
import { mkdir, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { computeDigest, type Digest } from '../../src/oci/reference.ts'
import { mediaType } from '../../src/oci/content.ts'
import { expectContent } from '../support/expect-content.ts'
import { get } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { canLimitMemory, limitMemory } from '../support/memory-limit.ts'
import { findRegistryStore } from '../support/metadata-log.ts'
import { startMirrorProcess, type MirrorProcess } from '../support/mirror-process.ts'
import { pushBlob, putManifest } from '../support/push.ts'
import { startUpstream } from '../support/upstream.ts'

const MiB = 1024 * 1024
const config = Buffer.from('{}')
const layer = Buffer.from('a layer')

async function start(limit: number, home?: string): Promise<MirrorProcess> {
  return startMirrorProcess({
    upstreams: {},
    registry: true,
    wrapper: limitMemory(limit).wrapper,
    ...(home === undefined ? {} : { home }),
  })
}

/** Creates a manifest with more members, whose layers are one layer repeated. */
function manifest(members: Record<string, unknown>, layers = 1): Buffer {
  const entry = { mediaType: 'application/x', digest: computeDigest(layer), size: layer.length }
  return Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: mediaType.ociManifest,
      config: { mediaType: mediaType.ociConfig, digest: computeDigest(config), size: config.length },
      layers: Array.from({ length: layers }, () => entry),
      ...members,
    }),
  )
}

/** Pushes manifests one after the other, by tag; returns their digests. */
async function pushAll(mirror: MirrorProcess, count: number, make: (at: number) => Buffer): Promise<Digest[]> {
  const url = mirror.registryUrl!
  await pushBlob(url, 'app', config)
  await pushBlob(url, 'app', layer)
  const digests: Digest[] = []
  for (let at = 0; at < count; at++) {
    const bytes = make(at)
    expect((await putManifest(url, 'app', `v${at}`, { bytes, mediaType: mediaType.ociManifest })).status).toBe(201)
    digests.push(computeDigest(bytes))
  }
  return digests
}

async function expectAll(mirror: MirrorProcess, digests: readonly Digest[]): Promise<void> {
  for (const [at, digest] of digests.entries()) {
    expectContent(await get(mirror.registryUrl!, `/v2/app/manifests/${at % 2 ? digest : `v${at}`}`), digest)
  }
}

/** Kills a mirror, as a crash does. */
async function crash(mirror: MirrorProcess): Promise<void> {
  mirror.kill('SIGKILL')
  await mirror.ended
}

const folderOf = (home: string) => findRegistryStore(home).logFolder

async function recordBytes(home: string): Promise<number> {
  const sizes = (await readdir(folderOf(home))).map(async (name) => (await stat(join(folderOf(home), name))).size)
  return (await Promise.all(sizes)).reduce((sum, size) => sum + size, 0)
}

function said(name: string, values: Record<string, number>): void {
  console.log(name, JSON.stringify(values))
}

/** Restarts a mirror with little memory; it must start in time, and serve everything. */
async function expectRestart(home: string, limit: number, digests: readonly Digest[]): Promise<MirrorProcess> {
  const begun = performance.now()
  const mirror = await start(limit, home)
  const milliseconds = Math.round(performance.now() - begun)
  const peak = await mirror.memory('VmHWM')
  said('restart', {
    milliseconds,
    peakMiB: Math.round(peak / MiB),
    recordKiB: Math.round((await recordBytes(home)) / 1024),
  })
  expect(milliseconds).toBeLessThan(20_000)
  expect(peak).toBeLessThan(160 * MiB)
  await expectAll(mirror, digests)
  expect((await mirror.get('/v2/')).status).toBe(200)
  return mirror
}

describe.skipIf(!canLimitMemory())('with little memory', () => {
  test.each([512, 256])(
    '150 pushes of 4 MB of annotations do not end a mirror with %i MiB, and all are there after a restart',
    async (limit) => {
      const mirror = await start(limit * MiB)
      const annotation = 'x'.repeat(4_000_000)
      const digests = await pushAll(mirror, 150, (at) => manifest({ annotations: { annotation, at: String(at) } }))
      said('pushed', { peakMiB: Math.round((await mirror.memory('VmHWM')) / MiB) })
      expect(await recordBytes(mirror.home)).toBeLessThan(MiB)
      await crash(mirror)
      const again = await expectRestart(mirror.home, limit * MiB, digests)
      // Lists all images within the same memory.
      const listed = await get(again.adminUrl, '/api/registry')
      expect(JSON.parse(listed.body.toString())).toHaveLength(digests.length)
      await crash(again)
    },
  )

  test.each([512, 256])(
    '47 manifests of 27,000 layers do not end a mirror with %i MiB, and all are there after a restart',
    async (limit) => {
      const mirror = await start(limit * MiB)
      const digests = await pushAll(mirror, 47, (at) => manifest({ annotations: { at: String(at) } }, 27_000))
      expect(await recordBytes(mirror.home)).toBeLessThan(MiB)
      await crash(mirror)
      const again = await expectRestart(mirror.home, limit * MiB, digests)
      const token = (await readFile(join(again.home, 'state', 'token'), 'utf8').catch(() => '')).trim()
      const listed = await get(again.adminUrl, '/api/registry', { headers: { authorization: `Bearer ${token}` } })
      expect(JSON.parse(listed.body.toString())).toHaveLength(digests.length)
      await expectAll(again, digests)
      await crash(again)
    },
  )

  test('5 clients of a mirror with 256 MiB list 20 referrers of 4 MB of annotations completely, in pages', async () => {
    const mirror = await start(256 * MiB)
    const url = mirror.registryUrl!
    const image = manifest({})
    const subject = { mediaType: mediaType.ociManifest, digest: computeDigest(image), size: image.length }
    const annotation = 'x'.repeat(4_000_000)
    const digests = await pushAll(mirror, 20, (at) =>
      manifest({ subject, artifactType: 'application/x', annotations: { annotation, at: String(at) } }),
    )
    const list = async () => {
      const seen: string[] = []
      let path: string | undefined = `/v2/app/referrers/${subject.digest}`
      while (path !== undefined) {
        const answer = await get(url, path)
        expect(answer.status).toBe(200)
        const { manifests } = JSON.parse(answer.body.toString()) as {
          manifests: { digest: string; annotations: { annotation: string } }[]
        }
        for (const entry of manifests) {
          expect(entry.annotations.annotation.length).toBe(annotation.length)
          seen.push(entry.digest)
        }
        path = /<([^>]+)>/.exec(answer.headers['link']?.toString() ?? '')?.[1]
      }
      return seen
    }
    for (const seen of await Promise.all(Array.from({ length: 5 }, list))) expect(seen).toEqual(digests.toSorted())
    said('referrers', { peakMiB: Math.round((await mirror.memory('VmHWM')) / MiB) })
    await crash(mirror)
  })

  test('a record of an earlier version with 560 MB of annotations and links loads in 256 MiB, and is below 1 MiB afterwards', async () => {
    const first = await start(256 * MiB)
    const make = (at: number) => manifest({ annotations: { at: String(at) } })
    const digests = await pushAll(first, 5, make)
    await crash(first)
    // Turns the store into one of release 0.1, with a journal of format 1, which kept annotations and links of each push.
    const root = join(first.home, 'data', 'registry')
    await rename(join(root, 'v2'), join(root, 'v1'))
    await rm(join(root, 'v1', 'metadata'), { recursive: true })
    const repositories = join(root, 'v1', 'repositories')
    await mkdir(repositories)
    const path = join(repositories, `${createHash('sha256').update('app').digest('hex')}.jsonl`)
    const annotations = { annotation: '\\"x'.repeat(1_000_000) }
    const link = { kind: 'blob', mediaType: 'application/x', digest: computeDigest(layer), size: layer.length }
    const links = Array.from({ length: 5000 }, () => link)
    const file = await open(path, 'a')
    const writeLine = (value: unknown) => file.write(`${JSON.stringify(value)}\n`)
    await writeLine({ format: 1, name: 'app' })
    await writeLine(
      [config, layer].map((bytes) => ({ op: 'blob', digest: computeDigest(bytes), size: bytes.length, heldSince: 0 })),
    )
    for (let round = 0; round < 20; round++)
      for (const [at, digest] of digests.entries())
        await writeLine([
          {
            op: 'manifest',
            digest,
            mediaType: mediaType.ociManifest,
            size: make(at).length,
            pushedAt: 1,
            heldSince: 0,
            links,
            annotations,
          },
          { op: 'tag', tag: `v${at}`, digest, pushedAt: 1 },
        ])
    await file.close()
    expect((await stat(path)).size).toBeGreaterThan(500 * MiB)
    await crash(await expectRestart(first.home, 256 * MiB, digests))
    expect(await recordBytes(first.home)).toBeLessThan(MiB)
    await crash(await expectRestart(first.home, 256 * MiB, digests))
  })

  test('25 cold manifests of 40,000 layers from an upstream do not end a cache with 256 MiB, and it starts again', async () => {
    const upstream = await startUpstream({ images: {} })
    const layers = Array.from({ length: 40_000 }, () => ({ digest: computeDigest(layer), size: 7 }))
    const digests: Digest[] = []
    for (let at = 0; at < 25; at++) {
      const image = makeImage({ manifest: { layers, annotations: { at: String(at) } } })
      upstream.push('library/app', `v${at}`, image)
      digests.push(image.digest)
    }
    const options = { upstreams: { 'docker.io': upstream.url } }
    const mirror = await startMirrorProcess({ ...options, wrapper: limitMemory(256 * MiB).wrapper })
    const pullAll = async (from: MirrorProcess) => {
      for (const [at, digest] of digests.entries())
        expectContent(await from.get(`/v2/docker.io/library/app/manifests/v${at}`), digest)
    }
    await pullAll(mirror)
    said('cold', { peakMiB: Math.round((await mirror.memory('VmHWM')) / MiB) })
    await new Promise((resolve) => setTimeout(resolve, 2000))
    await crash(mirror)
    const again = await startMirrorProcess({ ...options, home: mirror.home, wrapper: limitMemory(256 * MiB).wrapper })
    said('restarted', { peakMiB: Math.round((await again.memory('VmHWM')) / MiB) })
    await pullAll(again)
    await crash(again)
  })
})
