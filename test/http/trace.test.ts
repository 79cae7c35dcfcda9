import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import type { TraceReport } from '../../src/admin/activity.ts'
import { getCacheRoot } from '../../src/config/paths.ts'
import { createStoreLayout } from '../../src/store/layout.ts'
import { heldAt, status } from '../support/faults.ts'
import { get, open } from '../support/get.ts'
import { makeImage, makeIndex, type TestImage } from '../support/images.ts'
import { startTestMirror, temporaryHome, type TestMirror } from '../support/mirror.ts'
import { noise } from '../support/noise.ts'
import { startTestRegistry } from '../support/registry.ts'
import { app, type Scene, startScene, type SceneOptions } from '../support/scene.ts'
import { anyBlob } from '../support/upstream.ts'

const prefetch = { layers: 0, rangesPerBlob: 1, rangeBytes: 1, rangeMinSize: 1 }
const amd64 = makeImage({ layers: [noise(100_000, 1)], seed: 1 })
const arm64 = makeImage({ layers: [noise(90_000, 2)], seed: 2, platform: { os: 'linux', architecture: 'arm64' } })
const index = makeIndex([amd64, arm64])

const name = 'docker.io/library/app:v1'

async function trace(mirror: Pick<TestMirror, 'adminUrl'>, image = 'app:v1', platform = 'linux/amd64') {
  const answer = await get(mirror.adminUrl, `/api/trace?${new URLSearchParams({ image, platform }).toString()}`)
  expect(answer.status, answer.body.toString()).toBe(200)
  return JSON.parse(answer.body.toString()) as TraceReport
}

function start(options: SceneOptions = {}): Promise<Scene> {
  return startScene({ image: index, isDockerHub: true, ...options, cache: { prefetch, ...options.cache } })
}

/** Pulls as a client of linux/amd64 does. */
async function pull(mirror: TestMirror, image: TestImage = amd64): Promise<void> {
  await mirror.get(`${app}/manifests/v1`)
  await mirror.get(`${app}/manifests/${image.digest}`)
  for (const digest of image.blobs.keys()) await mirror.get(`${app}/blobs/${digest}`)
}

async function pullAndStore({ mirror }: Scene): Promise<void> {
  await pull(mirror)
  await mirror.untilStored(4)
}

/** Compares what the trace expects with what a pull does then. */
async function expectPull(
  { mirror, upstream }: Pick<Scene, 'mirror' | 'upstream'>,
  expected: Partial<TraceReport['next']>,
) {
  const { next } = await trace(mirror)
  expect(next).toMatchObject(expected)
  const before = upstream.requests.length
  await pull(mirror)
  return { next, requests: upstream.requests.length - before }
}

const describeContent = ({ content }: TraceReport) =>
  content.map(({ kind, state, platform, reason, isNeeded }) =>
    [kind, state, platform, reason, isNeeded ? 'needed' : undefined].filter((word) => word !== undefined).join(' '),
  )

describe('the trace of an image tells what a pull does now', () => {
  test('no pull of Docker Hub is counted where another server stands in for it', async () => {
    const scene = await start({ isDockerHub: false })
    const { next } = await expectPull(scene, { result: 'miss', hubPulls: 0, upstreamRequests: 1 })
    expect(next).not.toHaveProperty('countsPulls')
  })

  test('an unknown image is fetched', async () => {
    const scene = await start()
    const { next, requests } = await expectPull(scene, { result: 'miss', hubPulls: 1, upstreamRequests: 1 })
    expect(next.bytes).toBeUndefined()
    expect(next.why).toEqual([`The mirror does not have the tag, so one GET request asks docker.io for ${name}.`])
    // The trace cannot know what the manifest names.
    expect(requests).toBe(4)
  })

  test('a fresh image is a hit without a request', async () => {
    const scene = await start({ cache: { tagFreshness: 60_000 } })
    await pullAndStore(scene)
    const { next, requests } = await expectPull(scene, { result: 'hit', upstreamRequests: 0, hubPulls: 0, bytes: 0 })
    expect(next.why[0]).toMatch(/^All 4 parts for linux\/amd64 are held: \d+/)
    expect(next.why[1]).toMatch(/^The tag is fresh for (?:59|60|1) \w+, so docker\.io is not asked about it\.$/)
    expect(requests).toBe(0)
    const report = await trace(scene.mirror)
    expect(report.tag).toMatchObject({ name: 'v1', digest: index.digest })
    expect(Date.parse(report.tag!.freshUntil!)).toBeGreaterThan(Date.now() + 30_000)
    expect(report.requests.map(({ cache }) => cache)).toContain('hit')
    expect(describeContent(report)).toEqual([
      'index held needed',
      'manifest held linux/amd64 needed',
      'config held needed',
      'layer held needed',
      'manifest missing linux/arm64 first',
    ])
  })

  test('a tag that is not fresh costs one HEAD, which Docker Hub does not count', async () => {
    const scene = await start()
    await pullAndStore(scene)
    const { requests } = await expectPull(scene, { result: 'hit', upstreamRequests: 1, hubPulls: 0, bytes: 0 })
    expect(requests).toBe(1)
  })

  test('another platform of a held index is fetched in part', async () => {
    const scene = await start({ cache: { tagFreshness: 60_000 } })
    await pullAndStore(scene)
    const { next } = await trace(scene.mirror, 'app:v1', 'linux/arm64')
    expect(next).toMatchObject({ result: 'partly', upstreamRequests: 1, hubPulls: 1 })
    expect(next.why).toContain('1 part (manifest) was never in the cache.')
    expect(await trace(scene.mirror, 'app:v1', 'linux/riscv64')).toMatchObject({
      next: {
        result: 'fails',
        why: [expect.stringContaining('no manifest for linux/riscv64') as string, expect.anything()],
      },
    })
  })

  test('an evicted image names its eviction', async () => {
    const scene = await start({ image: amd64, cache: { maxSize: 150_000, tagFreshness: 60_000 } })
    await pull(scene.mirror)
    scene.upstream.push('library/app', 'v2', arm64)
    await scene.mirror.get(`${app}/manifests/v2`)
    for (const digest of arm64.blobs.keys()) await scene.mirror.get(`${app}/blobs/${digest}`)
    await expect.poll(() => scene.mirror.log.some((line) => line.includes('removed cached content'))).toBe(true)
    const { next } = await expectPull(scene, { result: 'miss', upstreamRequests: 1, hubPulls: 1 })
    expect(next.why[0]).toMatch(/^It was evicted .* to keep a limit, so docker\.io is asked for it\.$/)
    const byDigest = await trace(scene.mirror, `app@${amd64.digest}`)
    expect(byDigest.content[0]).toMatchObject({ state: 'held' })
  })

  test('a removed layer is the only part that is fetched', async () => {
    const scene = await start({ cache: { tagFreshness: 60_000 } })
    await pullAndStore(scene)
    const layer = amd64.layers[0]!
    await scene.mirror.post('/api/cache/rm', { names: [layer], dryRun: false })
    const size = amd64.blobs.get(layer)!.length
    const { next, requests } = await expectPull(scene, {
      result: 'partly',
      upstreamRequests: 1,
      hubPulls: 0,
      bytes: size,
    })
    expect(next.why).toContain('1 part (layer) was removed by a command.')
    expect(requests).toBe(1)
  })

  test('a tag that moved shows the digest before', async () => {
    const scene = await start()
    await pullAndStore(scene)
    const next = makeImage({ layers: [noise(1000, 9)], seed: 9 })
    scene.upstream.push('library/app', 'v1', next)
    await scene.mirror.get(`${app}/manifests/v1`)
    const { tag, digest } = await trace(scene.mirror)
    expect(digest).toBe(next.digest)
    expect(tag!.movedFrom!.digest).toBe(index.digest)
    expect(tag!.cachedAt).toBe(tag!.movedFrom!.at)
  })

  test('a damaged manifest is missing, and stays where it is', async () => {
    const scene = await start({ cache: { tagFreshness: 60_000 } })
    await pullAndStore(scene)
    const layout = createStoreLayout(getCacheRoot(scene.mirror.paths))
    await writeFile(layout.blob(amd64.digest), Buffer.alloc(amd64.bytes.length))
    const report = await trace(scene.mirror)
    expect(describeContent(report)[1]).toBe('manifest missing linux/amd64 damaged needed')
    expect(report.next).toMatchObject({ result: 'partly', upstreamRequests: 1, bytes: amd64.bytes.length })
    expect(describeContent(report).slice(2, 4)).toEqual(['config held needed', 'layer held needed'])
    expect(scene.mirror.log.join('\n')).not.toContain('is damaged')
  })

  test('another credential needs one HEAD for the tag, which grants all that it names', async () => {
    const users = { ann: 'one', bea: 'two' }
    const credentials = async (username: keyof typeof users) => {
      const passwordFile = join(await temporaryHome(), 'password')
      await writeFile(passwordFile, users[username], { mode: 0o600 })
      return { from: 'password-file' as const, username, passwordFile }
    }
    const scene = await start({
      isDockerHub: false,
      auth: { scheme: 'basic', users },
      upstream: { credentials: await credentials('ann') },
    })
    await pullAndStore(scene)
    expect(await trace(scene.mirror)).toMatchObject({
      upstream: { credential: 'password-file', url: scene.upstream.url },
    })
    await scene.mirror.close()
    const upstreams = { 'docker.io': { url: scene.upstream.url, credentials: await credentials('bea') } }
    const mirror = await startTestMirror({ home: scene.mirror.home, upstreams, cache: { prefetch } })
    const report = await trace(mirror)
    expect(report.content[0]).toMatchObject({
      state: 'held',
      reason: 'identity',
      grants: [{ repository: 'docker.io/library/app', identity: 'credential', isValid: false }],
    })
    const { length } = scene.upstream.requests
    await expectPull({ mirror, upstream: scene.upstream }, { result: 'hit', upstreamRequests: 1 })
    // The first one is the challenge.
    expect(scene.upstream.requests.slice(length).map(({ method }) => method)).toEqual(['HEAD', 'HEAD'])
  })

  test('content of another repository needs one HEAD', async () => {
    const scene = await start({ image: amd64 })
    await pull(scene.mirror)
    await scene.mirror.untilStored(3)
    scene.upstream.push('library/copy', 'v1', amd64)
    const report = await trace(scene.mirror, `copy@${amd64.digest}`)
    expect(report.next).toMatchObject({ result: 'hit', upstreamRequests: 1, hubPulls: 0, bytes: 0 })
    expect(report.content[0]).toMatchObject({
      reason: 'not granted',
      grants: [{ repository: 'docker.io/library/app', identity: 'anonymous', isValid: false }],
    })
  })

  test('a download under way is joined', async () => {
    const large = makeImage({ layers: [noise(1_000_000, 4)], seed: 4 })
    const scene = await start({ image: large, cache: { tagFreshness: 60_000 } })
    await scene.mirror.get(`${app}/manifests/v1`)
    await scene.mirror.get(`${app}/blobs/${[...large.blobs.keys()][0]}`)
    await scene.mirror.untilStored(2)
    let release!: () => void
    scene.upstream.on(anyBlob, heldAt(100_000, new Promise<void>((resolve) => (release = resolve))))
    const response = await open(scene.mirror.url, `${app}/blobs/${large.layers[0]}`)
    const { next, content } = await trace(scene.mirror)
    expect(next).toMatchObject({ result: 'partly', upstreamRequests: 0, bytes: 0 })
    expect(next.why[0]).toBe('1 part of 3 arrives now, and a client joins the download.')
    expect(content.at(-1)).toMatchObject({
      state: 'arriving',
      download: { followers: 1, size: large.blobs.get(large.layers[0]!)!.length },
    })
    release()
    response.destroy()
  })

  test('downloads under way are named beside what is missing', async () => {
    const large = makeImage({ layers: [noise(1_000_000, 5), noise(1_100_000, 6), noise(50_000, 7)], seed: 5 })
    const scene = await start({ image: large, cache: { tagFreshness: 60_000 } })
    await scene.mirror.get(`${app}/manifests/v1`)
    await scene.mirror.get(`${app}/blobs/${[...large.blobs.keys()][0]}`)
    await scene.mirror.untilStored(2)
    let release!: () => void
    scene.upstream.on(anyBlob, heldAt(100_000, new Promise<void>((resolve) => (release = resolve))))
    const layers = large.layers.slice(0, 2)
    const responses = await Promise.all(layers.map((layer) => open(scene.mirror.url, `${app}/blobs/${layer}`)))
    const { next } = await trace(scene.mirror)
    expect(next).toMatchObject({ result: 'partly', upstreamRequests: 1 })
    expect(next.why[0]).toMatch(/^1 part of 5 must be fetched from docker\.io: /)
    expect(next.why[1]).toBe('2 parts of 5 arrive now, and a client joins the downloads.')
    release()
    for (const response of responses) response.destroy()
  })

  test('offline, a missing image fails and a held one is a hit', async () => {
    const scene = await start()
    await pullAndStore(scene)
    await scene.mirror.close()
    const upstreams = { 'docker.io': scene.upstream.url }
    const mirror = await startTestMirror({ home: scene.mirror.home, upstreams, cache: { offline: true } })
    expect((await trace(mirror)).next).toMatchObject({ result: 'hit', upstreamRequests: 0 })
    const { next } = await trace(mirror, 'app:other')
    expect(next).toMatchObject({ result: 'fails', upstreamRequests: 0, hubPulls: 0 })
    expect(next.why[0]).toBe('The mirror is offline, and a part is missing: docker.io is not asked.')
  })

  test('an upstream that does not answer fails what is missing, and the tag that is held is served', async () => {
    const scene = await start()
    await pullAndStore(scene)
    await scene.upstream.stop()
    for (let at = 0; at < 5; at++) await scene.mirror.get(`${app}/manifests/gone${at}`)
    const missing = await trace(scene.mirror, 'app:gone')
    expect(missing.next.result).toBe('fails')
    expect(missing.upstream!.state).toBe('open')
    expect((await trace(scene.mirror)).next).toMatchObject({ result: 'hit', upstreamRequests: 0 })
  })

  test('a tag that the upstream could not confirm is served as it is, for a reason', async () => {
    const scene = await start()
    await pullAndStore(scene)
    await scene.mirror.close()
    const upstreams = { 'docker.io': scene.upstream.url }
    const mirror = await startTestMirror({ home: scene.mirror.home, upstreams, cache: { tagFreshness: 60_000 } })
    await scene.upstream.stop()
    await mirror.get(`${app}/manifests/v1`)
    // The check may go on behind the answer.
    await expect.poll(async () => (await trace(mirror)).next.upstreamRequests).toBe(0)
    const { next, requests } = await trace(mirror)
    expect(next.result).toBe('hit')
    expect(next.why[1]).toMatch(
      /^docker\.io could not confirm the tag, so it is served as it is, and docker\.io is not asked for .*: docker\.io .*refused the connection\.$/,
    )
    expect(requests[0]).toMatchObject({
      cache: 'stale',
      warning: expect.stringMatching(/^docker\.io .*; served tag app:v1 as of/),
    })
  })

  test('a tag whose newer digest is known but not fetched is served in part', async () => {
    const scene = await start()
    await pullAndStore(scene)
    const newer = makeImage({ layers: [noise(1000, 9)], seed: 9 })
    scene.upstream.push('library/app', 'v1', newer)
    await scene.mirror.post('/api/cache/check', { image: name })
    expect((await trace(scene.mirror)).tag).toMatchObject({ digest: index.digest, newer: { digest: newer.digest } })
    const before = scene.upstream.requests.length
    const { next } = await trace(scene.mirror)
    expect(next).toMatchObject({ result: 'partly', upstreamRequests: 2, hubPulls: 1 })
    expect(next.why).toEqual([
      expect.stringContaining(`docker.io named another digest for the tag just now (${newer.digest})`),
    ])
    expect(next.bytes).toBeUndefined()
    await scene.mirror.get(`${app}/manifests/v1`)
    expect(scene.upstream.requests.length - before).toBe(2)
    expect((await trace(scene.mirror)).tag!.newer).toBeUndefined()
  })

  test('a newer digest of a fresh tag is fetched later', async () => {
    const scene = await start({ cache: { tagFreshness: 60_000 } })
    await pullAndStore(scene)
    const newer = makeImage({ layers: [noise(1000, 9)], seed: 9 })
    scene.upstream.push('library/app', 'v1', newer)
    await scene.mirror.post('/api/cache/check', { image: name })
    const { next, requests } = await expectPull(scene, { result: 'hit', upstreamRequests: 0, hubPulls: 0 })
    expect(next.why.at(-1)).toMatch(/, which a pull fetches when it asks about the tag again\.$/)
    expect(requests).toBe(0)
  })

  test('an image without an index is for any platform', async () => {
    const scene = await start({ image: arm64, cache: { tagFreshness: 60_000 } })
    await pull(scene.mirror, arm64)
    await scene.mirror.untilStored(3)
    expect((await trace(scene.mirror)).next.why[0]).toMatch(/^All 3 parts are held: /)
  })

  test('content that an upstream does not have is an answer, and no refusal', async () => {
    const scene = await start()
    await scene.mirror.get(`${app}/manifests/none`)
    expect((await trace(scene.mirror, 'app:none')).next).toMatchObject({
      result: 'fails',
      why: [expect.stringMatching(/^docker\.io has just answered: docker\.io does not have it/)],
    })
  })

  test('a refusal that the mirror remembers fails', async () => {
    const scene = await start()
    scene.upstream.on({ method: 'GET', path: /\/manifests\/secret/ }, status(403))
    await scene.mirror.get(`${app}/manifests/secret`)
    expect((await trace(scene.mirror, 'app:secret')).next).toMatchObject({
      result: 'fails',
      why: [expect.stringContaining('docker.io has just refused it') as string],
    })
  })

  test.each([['docker.io/library/*:v1'], [`${'**'.padEnd(7000, '*a')}:x*sha256:`], ['a'.repeat(10_000)]])(
    'a pattern and a long name are no image: %.30s',
    async (image) => {
      const { mirror } = await start()
      const answer = await get(mirror.adminUrl, `/api/trace?${new URLSearchParams({ image }).toString()}`)
      expect([answer.status, answer.body.toString().slice(0, 60)]).toEqual([400, expect.any(String)])
    },
  )

  test('an upstream that was only traced is not in the status', async () => {
    const { mirror } = await start()
    await trace(mirror, 'quay.io/org/app:1')
    expect(Object.keys((await mirror.status()).upstreams)).not.toContain('quay.io')
  })

  test('a registry that is not mirrored fails', async () => {
    const scene = await start()
    const report = await trace(scene.mirror, 'registry.example/app:v1')
    expect(report).toMatchObject({ registry: 'registry.example', content: [], next: { result: 'fails' } })
    expect(report.upstream).toBeUndefined()
    expect(report.next.why[1]).toMatch(/^To mirror it, add ".*registry\.example.*" to mirror\.yaml\.$/)
  })
})

test('a trace sends no request and records no use', async () => {
  const scene = await start({ cache: { tagFreshness: 60_000 } })
  await pullAndStore(scene)
  const before = { images: (await scene.mirror.status()).images, requests: scene.upstream.requests.length }
  for (const image of ['app', 'app:v1', `app@${index.digest}`, 'ghcr.io/nobody/none']) await trace(scene.mirror, image)
  expect({ images: (await scene.mirror.status()).images, requests: scene.upstream.requests.length }).toEqual(before)
})

test('an image by the first digits of its digest is found', async () => {
  const scene = await start()
  await pullAndStore(scene)
  for (const image of [index.digest, index.digest.slice(0, 20)])
    expect(await trace(scene.mirror, image)).toMatchObject({ image: `docker.io/library/app@${index.digest}` })
})

test('a digest alone may be the manifest of one platform', async () => {
  const scene = await start()
  await pullAndStore(scene)
  expect(await trace(scene.mirror, amd64.digest)).toMatchObject({ image: `docker.io/library/app@${amd64.digest}` })
  const answer = await get(scene.mirror.adminUrl, `/api/trace?image=${amd64.layers[0]}`)
  expect([answer.status, answer.body.toString()]).toEqual([400, expect.stringContaining('no cached manifest has')])
})

test.each([
  ['%s/v2/library/app/manifests/v1', name],
  ['%s/v2/library/app/manifests/v1?ns=ghcr.io', 'ghcr.io/library/app:v1'],
  ['%s/v2/docker.io/library/app/manifests/v1', name],
  [`/v2/app/manifests/${index.digest}?ns=docker.io`, `docker.io/library/app@${index.digest}`],
  ['https://registry-1.docker.io/v2/library/app/manifests/v1', name],
  ['https://r.example:5000/v2/app/manifests/1', 'r.example:5000/app:1'],
  ['/v2/app/manifests/1?ns=r.example%3A5000', 'r.example:5000/app:1'],
])('the URL of a manifest is its image: %s', async (url, expected) => {
  const { mirror } = await start()
  expect((await trace(mirror, url.replace('%s', mirror.url))).image).toBe(expected)
})

test('a name through the address of the mirror is the image itself', async () => {
  const scene = await start()
  const { host } = new URL(scene.mirror.url)
  expect(await trace(scene.mirror, `${host}/ghcr.io/a/b:1`)).toMatchObject({
    image: 'ghcr.io/a/b:1',
    registry: 'ghcr.io',
  })
})

test.each(['', 'a b', 'APP:1', 'app:', 'app@sha256:12', 'sha256:0123456789', 'app@sha256:zz', '../x', 'a\u001b[31m'])(
  'a name that no image has is refused: %j',
  async (image) => {
    const { mirror } = await start()
    const answer = await get(mirror.adminUrl, `/api/trace?${new URLSearchParams({ image }).toString()}`)
    expect(answer.status).toBe(400)
    expect(answer.body.toString()).toContain('cannot be traced')
  },
)

test('a platform that is none is refused', async () => {
  const { mirror } = await start()
  expect((await get(mirror.adminUrl, '/api/trace?image=app&platform=linux')).status).toBe(400)
})

test('a pushed image is held by the registry, which asks no upstream', async () => {
  const registry = await startTestRegistry()
  await registry.push('app', '1', index)
  const { host } = new URL(registry.url)
  const report = await trace(registry, `${host}/app:1`)
  expect(report).toMatchObject({ listener: 'registry', image: `${host}/app:1`, registry: host, digest: index.digest })
  expect(report.next).toMatchObject({ result: 'hit', upstreamRequests: 0, hubPulls: 0, bytes: 0 })
  expect(describeContent(report)).toContain('manifest held linux/arm64')
  const missing = await trace(registry, `${host}/app:2`)
  expect(missing.next).toMatchObject({
    result: 'fails',
    why: ['Nobody has pushed app:2 to the registry of this mirror.'],
  })
})
