import { spawnSync } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, onTestFinished, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { filesOf, temporaryFiles } from '../support/blob-file.ts'
import { descriptorsOf, holdIdle, withDescriptors } from '../support/descriptors.ts'
import { expectContent, expectError } from '../support/expect-content.ts'
import { failDisk, hasStrace, oneDiskThread } from '../support/failing-disk.ts'
import { slow } from '../support/faults.ts'
import { get } from '../support/get.ts'
import { hostilePaths } from '../support/hostile-paths.ts'
import { makeImage } from '../support/images.ts'
import { watchLoop } from '../support/loop-delay.ts'
import { temporaryHome } from '../support/mirror.ts'
import { startMirrorProcess, type MirrorProcess } from '../support/mirror-process.ts'
import { noise } from '../support/noise.ts'
import { rawGet, rawHttp } from '../support/raw-http.ts'
import { app } from '../support/scene.ts'
import { anyBlob, startUpstream } from '../support/upstream.ts'

const MB = 1_000_000
const isRoot = process.getuid?.() === 0

async function startWithImage(size: number) {
  const image = makeImage({ layers: [noise(size)] })
  const upstream = await startUpstream({ images: { 'library/app': { v1: image } } })
  return { image, layer: image.layers[0]!, upstream, upstreams: { 'docker.io': upstream.url } }
}

test.each([64, 128, 1024])(
  'with %i file descriptors, 200 clients of one cold blob get the content or a 503 with Retry-After, and later pulls work',
  async (limit) => {
    const { upstream, upstreams, layer } = await startWithImage(2 * MB)
    const mirror = await startMirrorProcess({ upstreams, wrapper: withDescriptors(limit) })
    upstream.on(anyBlob, slow(4 * MB))
    const answers = await Promise.all(Array.from({ length: 200 }, () => mirror.get(`${app}/blobs/${layer}`)))
    for (const answer of answers) {
      if (answer.status === 200) expectContent(answer, layer)
      else expect([answer.status, answer.headers['retry-after']]).toEqual([503, expect.any(String)])
    }
    const served = answers.filter(({ status }) => status === 200).length
    expect(served).toBeGreaterThan(0)
    if (limit === 1024) expect(served).toBe(200)
    await sleep(2000)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    expect(upstream.count(anyBlob)).toBe(1)
    console.log(`${limit} descriptors: ${served} of 200 clients got the blob`)
  },
)

test.each([64, 128, 1024])(
  'with %i file descriptors and 5,000 idle connections for 10 s, requests are answered, and no descriptor stays open',
  async (limit) => {
    const { upstreams, layer } = await startWithImage(2 * MB)
    const mirror = await startMirrorProcess({ upstreams, registry: true, wrapper: withDescriptors(limit) })
    const blob = `${app}/blobs/${layer}`
    expectContent(await mirror.get(blob), layer)
    const before = descriptorsOf(mirror.pid)
    const listeners = [mirror.url, mirror.registryUrl!, mirror.adminUrl]
    const idle = await Promise.all(listeners.map((url) => holdIdle(url, Math.ceil(5000 / listeners.length))))
    const until = performance.now() + 10_000
    const statuses: number[] = []
    while (performance.now() < until) {
      const asked = [get(mirror.url, blob), get(mirror.registryUrl!, '/v2/'), get(mirror.adminUrl, '/healthz')]
      for (const answer of await Promise.allSettled(asked))
        if (answer.status === 'fulfilled') statuses.push(answer.value.status)
      await sleep(100)
    }
    const served = statuses.filter((status) => status === 200).length
    console.log(`${limit} descriptors: ${served} of ${statuses.length} answers are a 200`)
    expect(served).toBeGreaterThan(0)
    expect(statuses.filter((status) => status !== 200 && status !== 503)).toEqual([])
    expect(descriptorsOf(mirror.pid)).toBeLessThanOrEqual(limit)
    for (const { release } of idle) release()
    await expect.poll(() => descriptorsOf(mirror.pid), { timeout: 30_000 }).toBeLessThanOrEqual(before + 1)
    expectContent(await mirror.get(blob), layer)
    expect((await mirror.status()).running).toBe(true)
    expect(mirror.log()).not.toMatch(/unhandled rejection|uncaught exception/)
  },
)

test('with 20,000 file descriptors, 5,000 idle connections stay open, and block the event loop for less than 50 ms (p99)', async () => {
  const loop = await watchLoop()
  const mirror = await startMirrorProcess({ upstreams: {}, wrapper: withDescriptors(20_000), env: loop.env })
  const { p99 } = await loop.during(async () => {
    const idle = await holdIdle(mirror.url, 5000)
    // Waits up to 90 s, because a client sees a connection as open before the server accepts it; the kernel offers a connection
    // that did not fit into the queue again, after 31 s at the latest.
    await expect.poll(() => [idle.open, descriptorsOf(mirror.pid) > 5000], { timeout: 90_000 }).toEqual([5000, true])
    for (let at = 0; at < 100; at++) expect((await mirror.get('/v2/')).status).toBe(200)
    expect([idle.open, idle.ended]).toEqual([5000, 0])
  })
  console.log(`the event loop beside 5,000 idle connections: ${p99.toFixed(1)} ms (p99)`)
  expect(p99).toBeLessThan(50)
})

async function startOnSmallDisk(upstreams: Record<string, string>): Promise<MirrorProcess> {
  const home = await temporaryHome()
  expect(spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=40m,mode=700', 'tmpfs', home]).status).toBe(0)
  onTestFinished(() => void spawnSync('umount', ['--lazy', home]))
  return startMirrorProcess({ upstreams, home, registry: true })
}

describe.skipIf(!isRoot)('a disk of 40 MB', () => {
  test('a client gets a blob of 60 MB past a disk of 40 MB, no partial file stays, and the next pulls work', async () => {
    const { upstream, upstreams, image, layer } = await startWithImage(60 * MB)
    const small = makeImage({ layers: [noise(5 * MB, 1)], seed: 1 })
    upstream.push('library/app', 'small', small)
    const mirror = await startOnSmallDisk(upstreams)
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    for (const _ of ['once', 'again']) {
      expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
      await expect.poll(() => temporaryFiles(mirror)).toEqual([])
    }
    expectContent(await mirror.get(`${app}/manifests/small`), small.digest)
    expectContent(await mirror.get(`${app}/blobs/${small.layers[0]!}`), small.layers[0]!)
    expect(spawnSync('ls', [mirror.home]).status).toBe(0)
  })

  test('images that do not fit on the disk together replace each other, and every byte is right', async () => {
    const upstream = await startUpstream()
    const images = [1, 2, 3, 4, 5].map((seed) => makeImage({ layers: [noise(15 * MB, seed)], seed }))
    for (const [at, image] of images.entries()) upstream.push('library/app', `t${at}`, image)
    const mirror = await startOnSmallDisk({ 'docker.io': upstream.url })
    for (const at of [0, 1, 2, 3, 4, 0, 1]) {
      const image = images[at]!
      expectContent(await mirror.get(`${app}/manifests/t${at}`), image.digest)
      expectContent(await mirror.get(`${app}/blobs/${image.layers[0]!}`), image.layers[0]!)
    }
    await expect.poll(() => temporaryFiles(mirror)).toEqual([])
    expect((await mirror.status()).storage.bytes).toBeGreaterThan(14 * MB)
  })
})

describe.skipIf(!isRoot)('a disk of 40 MB with a full cache', () => {
  test('a full cache makes room for a push, and a push that does not fit beside pushed content gets 507', async () => {
    const { upstreams, image, layer } = await startWithImage(30 * MB)
    const mirror = await startOnSmallDisk(upstreams)
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    const push = (seed: number) => {
      const body = noise(25 * MB, seed)
      const path = `/v2/app/blobs/uploads/?digest=${computeDigest(body)}`
      return get(mirror.registryUrl!, path, { method: 'POST', body })
    }
    const pushed = await push(1)
    expect(pushed.status).toBe(201)
    expect((await mirror.status()).storage.bytes).toBeLessThan(30 * MB)
    const refused = await push(2)
    expectError(refused, 507, 'DENIED')
    expect(await filesOf(mirror)).not.toContainEqual(expect.stringMatching(/\/registry\/v\d+\/tmp\//))
    expect((await mirror.status()).storage.pushedBytes).toBe(25 * MB)
    expectContent(await get(mirror.registryUrl!, pushed.headers.location!), computeDigest(noise(25 * MB, 1)))
  })
})

describe.skipIf(!hasStrace)('a disk that fails', () => {
  test.each([
    ['on every fsync', 'fsync,fdatasync:error=EIO'],
    ['with ENOSPC from the third write on', 'pwrite64:error=ENOSPC:when=3+'],
    ['with EIO from the third write on', 'pwrite64:error=EIO:when=3+'],
    ['on every rename', 'rename,renameat,renameat2:error=EIO'],
  ])('a client of a disk that fails %s gets every byte, and no blob is published', async (_, injection) => {
    const { upstream, upstreams, layer } = await startWithImage(5 * MB)
    const home = await temporaryHome()
    // Sets up the store before its disk fails.
    const healthy = await startMirrorProcess({ upstreams, home })
    healthy.kill('SIGTERM')
    await healthy.ended

    const mirror = await startMirrorProcess({ upstreams, home, env: oneDiskThread })
    const mend = await failDisk(mirror, injection)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    await expect.poll(() => temporaryFiles(mirror)).toEqual([])
    expect(await filesOf(mirror)).not.toContainEqual(expect.stringContaining(layer.slice('sha256:'.length)))
    await mend()
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    await expect.poll(async () => (await mirror.status()).storage.blobs).toBe(1)
    expect(upstream.count(anyBlob)).toBe(2)
  })
})

describe.skipIf(!hasStrace)('a trace of system calls', () => {
  test('hostile paths and registries open no file outside the store and no connection', async () => {
    const { upstreams } = await startWithImage(1000)
    const trace = join(await temporaryHome(), 'trace')
    const mirror = await startMirrorProcess({
      upstreams,
      registry: true,
      wrapper: ['strace', '-f', '-qq', '-o', trace, '-e', 'trace=openat,open,creat,connect,sendto,sendmmsg'],
    })
    await mirror.get('/v2/')
    await sleep(500)
    const before = (await readFile(trace, 'utf8')).length
    const registries = [
      '169.254.169.254',
      '127.0.0.1:1',
      'a%40b',
      'docker.io/../x',
      'docker.io&ns=ghcr.io',
      'a'.repeat(300),
    ]
    const targets = [...hostilePaths, ...registries.map((ns) => `${app}/manifests/v1?ns=${ns}`)]
    for (const target of targets) {
      const { statuses } = await rawHttp(mirror.url, rawGet(target))
      expect([400, 404], target).toContain(statuses[0])
    }
    const uploads = ['..%2f..%2fx', '%00', 'a/b', 'a'.repeat(400)].map((id) => `${app}/blobs/uploads/${id}`)
    for (const target of [...hostilePaths, ...uploads]) {
      for (const method of ['GET', 'PUT', 'PATCH', 'DELETE']) {
        const { statuses } = await rawHttp(mirror.registryUrl!, rawGet(target).replace('GET', method))
        expect([400, 404, 405], `${method} ${target}`).toContain(statuses[0])
      }
    }
    const seen = (await readFile(trace, 'utf8')).slice(before).split('\n')
    const opened = seen.flatMap((line) => /(?:openat\(AT_FDCWD, |open\(|creat\()"([^"]*)"/.exec(line)?.[1] ?? [])
    expect(opened.filter((path) => !path.startsWith(mirror.home) && !path.startsWith('/proc/'))).toEqual([])
    expect(seen.filter((line) => line.includes('connect('))).toEqual([])
  })
})

test('a mirror of many repositories starts and stops without losing one', async () => {
  const upstream = await startUpstream()
  const image = makeImage({ layers: [10] })
  for (let at = 0; at < 200; at++) upstream.push(`library/r${at}`, 'v1', image)
  const upstreams = { 'docker.io': upstream.url }
  const first = await startMirrorProcess({ upstreams })
  await Promise.all(Array.from({ length: 200 }, (_, at) => get(first.url, `/v2/library/r${at}/manifests/v1`)))
  first.kill('SIGTERM')
  expect(await first.ended).toBe(0)
  const second = await startMirrorProcess({ upstreams, home: first.home })
  expect((await second.status()).images).toHaveLength(200)
  expect(await temporaryFiles(second)).toEqual([])
})
