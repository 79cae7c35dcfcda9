import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import type { DownloadReport, RequestReport } from '../../src/admin/activity.ts'
import { openStoredCache } from '../../src/admin/local.ts'
import { createStoreLayout } from '../../src/store/layout.ts'
import { getCacheRoot } from '../../src/config/paths.ts'
import { slow } from '../support/faults.ts'
import { get, open } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { startTestMirror, temporaryHome, type TestMirror } from '../support/mirror.ts'
import { noise } from '../support/noise.ts'
import { app, startScene } from '../support/scene.ts'
import { anyBlob } from '../support/upstream.ts'

const noPrefetch = { layers: 0, rangesPerBlob: 1, rangeBytes: 1, rangeMinSize: 1 }
const large = makeImage({ layers: [noise(2_000_000, 5)], seed: 5 })

/** The requests of a first pull: the manifest, the config and the layer. */
const first = ['miss: first', 'miss: first', 'miss: first']

type Logged = Pick<RequestReport, 'kind' | 'cache' | 'reason' | 'evictedAt' | 'repository'>

/** Returns the logged requests for content, the oldest first. */
function listRequests({ log }: TestMirror): Logged[] {
  const lines = log.filter((line) => /^\w+ request \{/.test(line))
  return lines.map((line) => JSON.parse(line.slice(line.indexOf('{'))) as Logged)
}

/** Creates a check of the requests since the last one: `outcome` or `outcome: reason`. A request is logged just after its answer. */
function createCheck(mirror: TestMirror): (expected: string[]) => Promise<void> {
  let seen = 0
  return async (expected) => {
    const list = () => listRequests(mirror).slice(seen)
    await expect.poll(() => list().length).toBe(expected.length)
    expect(list().map(({ cache, reason }) => [cache, reason].filter(Boolean).join(': '))).toEqual(expected)
    seen += expected.length
  }
}

async function pull({ mirror, digests, tag = 'v1' }: { mirror: TestMirror; digests: Iterable<string>; tag?: string }) {
  await mirror.get(`${app}/manifests/${tag}`)
  for (const digest of digests) await mirror.get(`${app}/blobs/${digest}`)
}

test('the first request of content is a miss without an earlier removal, and the next one is a hit', async () => {
  const { mirror, image } = await startScene({ cache: { tagFreshness: 60_000 } })
  const check = createCheck(mirror)
  await pull({ mirror, digests: image.blobs.keys() })
  await check(['miss: first', 'miss: first', 'miss: first'])
  await mirror.untilStored(3)
  await pull({ mirror, digests: image.blobs.keys() })
  await check(['hit', 'hit', 'hit'])
})

test('content that was removed by a command is a miss with that reason, once', async () => {
  const { mirror, image } = await startScene({ cache: { tagFreshness: 60_000 } })
  const check = createCheck(mirror)
  await pull({ mirror, digests: image.blobs.keys() })
  await mirror.untilStored(3)
  await mirror.post('/api/cache/rm', { names: ['docker.io/library/app:v1'], dryRun: false })
  await check(first)
  await pull({ mirror, digests: image.blobs.keys() })
  await check(['miss: removed', 'miss: removed', 'miss: removed'])
  await mirror.untilStored(3)
  await pull({ mirror, digests: image.blobs.keys() })
  await check(['hit', 'hit', 'hit'])
})

test('content that was evicted is a miss with the time of the eviction, also after a restart', async () => {
  const scene = await startScene({ cache: { maxSize: 450_000, tagFreshness: 60_000, prefetch: noPrefetch } })
  const { upstream, image } = scene
  const other = makeImage({ layers: [noise(300_000, 7)], seed: 7 })
  upstream.push('library/app', 'other', other)
  await pull({ mirror: scene.mirror, digests: image.blobs.keys() })
  await pull({ mirror: scene.mirror, digests: other.blobs.keys(), tag: 'other' })
  await expect.poll(() => scene.mirror.log.some((line) => line.includes('removed cached content'))).toBe(true)
  await scene.mirror.close()

  const mirror = await startTestMirror({
    home: scene.mirror.home,
    upstreams: { 'docker.io': upstream.url },
    cache: { tagFreshness: 60_000, prefetch: noPrefetch },
  })
  const check = createCheck(mirror)
  await pull({ mirror, digests: image.blobs.keys() })
  await check(['miss: evicted', 'miss: evicted', 'miss: evicted'])
  const [request] = listRequests(mirror)
  expect(Date.now() - Date.parse(request!.evictedAt!)).toBeLessThan(60_000)
})

test('a tag that moved is a miss with that reason', async () => {
  const { mirror, upstream, image } = await startScene()
  await pull({ mirror, digests: image.blobs.keys() })
  await mirror.untilStored(3)
  upstream.push('library/app', 'v1', makeImage({ layers: [noise(1000, 3)], seed: 3 }))
  const check = createCheck(mirror)
  await check(first)
  await mirror.get(`${app}/manifests/v1`)
  await check(['miss: moved'])
})

test('a blob whose stored bytes are wrong is a miss with that reason', async () => {
  const { mirror, layer, layerBytes, image } = await startScene({ cache: { verifyReads: 'always' } })
  await pull({ mirror, digests: image.blobs.keys() })
  await mirror.untilStored(3)
  const layout = createStoreLayout(getCacheRoot(mirror.paths))
  await writeFile(layout.blob(layer), Buffer.alloc(layerBytes.length))
  const check = createCheck(mirror)
  await check(first)
  await mirror.get(`${app}/blobs/${layer}`)
  await check(['miss: damaged'])
})

test('a range of a blob that is not stored is a miss with that reason', async () => {
  const { mirror, layer } = await startScene({ cache: { prefetch: noPrefetch } })
  await mirror.get(`${app}/manifests/v1`)
  const check = createCheck(mirror)
  await check(['miss: first'])
  await mirror.get(`${app}/blobs/${layer}`, { headers: { range: 'bytes=0-99' } })
  await check(['miss: range'])
})

test('stored content needs a grant under another repository, and the log says so', async () => {
  const { mirror, upstream, image, layer } = await startScene()
  upstream.push('library/copy', 'v1', image)
  await pull({ mirror, digests: image.blobs.keys() })
  await mirror.untilStored(3)
  const check = createCheck(mirror)
  await check(first)
  await mirror.get(`/v2/library/copy/blobs/${layer}`)
  await mirror.get(`/v2/library/copy/manifests/${image.digest}`)
  await check(['revalidated: not granted', 'revalidated: not granted'])
})

test('a download under way is listed with its progress, its clients and its rate', async () => {
  const { mirror, upstream, layer } = await startScene({ image: large, cache: { prefetch: noPrefetch } })
  const list = async () =>
    JSON.parse((await get(mirror.adminUrl, '/api/downloads')).body.toString()) as DownloadReport[]
  await mirror.get(`${app}/manifests/v1`)
  expect(await list()).toEqual([])
  upstream.on(anyBlob, slow(400_000))
  const response = await open(mirror.url, `${app}/blobs/${layer}`)
  await expect.poll(async () => (await list())[0]?.arrived ?? 0, { timeout: 5000 }).toBeGreaterThan(100_000)
  const [download] = await list()
  expect(download).toMatchObject({ digest: layer, repository: 'docker.io/library/app', followers: 1 })
  expect(download!.size).toBe(large.blobs.get(layer)!.length)
  expect(download!.bytesPerSecond).toBeGreaterThan(50_000)
  expect(download!.bytesPerSecond).toBeLessThan(2_000_000)
  expect(Date.now() - Date.parse(download!.startedAt)).toBeLessThan(10_000)
  response.destroy()
  await expect.poll(list, { timeout: 10_000 }).toEqual([])
})

test('an account must prove its access to what another one fetched, and the log says so', async () => {
  const users = { ann: 'one', bea: 'two' }
  const credentials = async (user: keyof typeof users) => {
    const passwordFile = join(await temporaryHome(), 'password')
    await writeFile(passwordFile, users[user], { mode: 0o600 })
    return { from: 'password-file' as const, username: user, passwordFile }
  }
  const scene = await startScene({
    auth: { scheme: 'basic', users },
    upstream: { credentials: await credentials('ann') },
  })
  await pull({ mirror: scene.mirror, digests: scene.image.blobs.keys() })
  await scene.mirror.untilStored(3)
  await scene.mirror.close()
  const upstreams = { 'docker.io': { url: scene.upstream.url, credentials: await credentials('bea') } }
  const mirror = await startTestMirror({ home: scene.mirror.home, upstreams })
  const check = createCheck(mirror)
  await mirror.get(`${app}/manifests/v1`)
  await mirror.get(`${app}/blobs/${scene.layer}`)
  await check(['revalidated: identity', 'hit'])
})

test('content that was removed while the mirror was stopped is a miss with that reason', async () => {
  const scene = await startScene()
  await pull({ mirror: scene.mirror, digests: scene.image.blobs.keys() })
  await scene.mirror.untilStored(3)
  await scene.mirror.close()
  const { paths, home } = scene.mirror
  const limits = { verifyReads: 'auto' as const, minFree: 0, maxSize: 0, maxAge: 0 }
  const stored = openStoredCache({ root: getCacheRoot(paths), stateDir: paths.stateDir, ...limits })
  await stored.remove({ names: ['docker.io/library/app:v1'], dryRun: true })
  await stored.remove({ names: ['docker.io/library/app:v1'], dryRun: false })
  const mirror = await startTestMirror({ home, upstreams: { 'docker.io': scene.upstream.url } })
  const check = createCheck(mirror)
  await pull({ mirror, digests: scene.image.blobs.keys() })
  await check(['miss: removed', 'miss: removed', 'miss: removed'])
})
