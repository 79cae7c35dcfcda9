import { open as openFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { expect, onTestFinished, test } from 'vitest'
import { mediaType } from '../../src/oci/content.ts'
import { blobFile } from '../support/blob-file.ts'
import { descriptorsOf } from '../support/descriptors.ts'
import { flood, type FloodResult } from '../support/flood.ts'
import { get, open } from '../support/get.ts'
import { emptyConfig, largeImage, largeManifest, largePushes } from '../support/large-manifest.ts'
import { startMirrorProcess } from '../support/mirror-process.ts'
import { pushBlob } from '../support/push.ts'
import { app } from '../support/scene.ts'
import { startUpstream } from '../support/upstream.ts'

const MiB = 1024 * 1024

async function startWithConfig(cache: Readonly<Record<string, unknown>> = {}) {
  const mirror = await startMirrorProcess({ upstreams: {}, registry: true, cache })
  const registry = mirror.registryUrl!
  await pushBlob(registry, 'app', emptyConfig)
  return { mirror, registry }
}

const countOf = ({ statuses }: FloodResult) => Object.values(statuses).reduce((sum, count) => sum + count, 0)

test('a hundred concurrent pushes of 4.1 MB manifests stay within 300 MB of memory, and each is accepted or gets a Retry-After', async () => {
  const { mirror, registry } = await startWithConfig()
  // Closes each connection with its answer, which may come before the whole body is sent.
  const result = await flood(registry, largePushes(100), { keepAlive: false })
  expect(countOf(result)).toBe(100)
  expect(Object.keys(result.statuses).filter((status) => status !== '201' && status !== '503')).toEqual([])
  expect(result.statuses['201']).toBeGreaterThan(0)
  expect(result.withoutRetryAfter).toBe(0)
  expect(await mirror.memory('VmHWM')).toBeLessThan(300 * MiB)
})

test('clients that announce 4 MB and send nothing, or half of it, block no other push', async () => {
  // Sets a long idle timeout, so that no silent client is disconnected during the test.
  const { mirror, registry } = await startWithConfig({ timeouts: { idle: '10m' } })
  const { hostname, port } = new URL(registry)
  const before = descriptorsOf(mirror.pid)
  const [start, filler] = largeManifest(0)
  let ended = 0
  for (let client = 0; client < 100; client++) {
    const socket = connect(Number(port), hostname)
    socket.on('error', () => {})
    socket.once('data', () => (ended += 1))
    onTestFinished(() => void socket.destroy())
    socket.write(
      `PUT /v2/app/manifests/s${client} HTTP/1.1\r\nHost: localhost\r\nContent-Type: ${mediaType.ociManifest}\r\nContent-Length: 4000000\r\n\r\n`,
    )
    if (client % 2 === 0) socket.write(Buffer.concat([start!, filler!.subarray(0, 200_000)]))
  }
  // Waits until all of them are connected, or were replaced by others of them.
  await expect.poll(() => descriptorsOf(mirror.pid) + ended).toBeGreaterThanOrEqual(before + 100)
  expect((await flood(registry, largePushes(1))).statuses).toEqual({ 201: 1 })
})

test('300 clients that do not read their 4.1 MB manifest cost no memory for it', async () => {
  const { mirror, registry } = await startWithConfig()
  expect((await flood(registry, largePushes(1))).statuses).toEqual({ 201: 1 })
  const before = await mirror.memory('VmRSS')
  const readers = await Promise.all(Array.from({ length: 300 }, () => open(registry, '/v2/app/manifests/v0')))
  onTestFinished(() => readers.forEach((reader) => void reader.destroy()))
  expect(readers.filter(({ statusCode }) => statusCode !== 200)).toEqual([])
  expect((await mirror.memory('VmRSS')) - before).toBeLessThan(200 * MiB)
  expect((await get(registry, '/v2/app/manifests/v0')).body.equals(Buffer.concat(largeManifest(0)))).toBe(true)
})

test('a large manifest of an upstream is fetched, stored and served whole, by tag and by digest, also after a restart', async () => {
  const image = largeImage(1)
  const upstream = await startUpstream({ images: { 'library/app': { v1: image } } })
  const first = await startMirrorProcess({ upstreams: { 'docker.io': upstream.url } })
  for (const reference of ['v1', 'v1', image.digest]) {
    const { status, headers, body } = await first.get(`${app}/manifests/${reference}`)
    expect([status, headers['docker-content-digest'], headers['content-type']]).toEqual([
      200,
      image.digest,
      image.mediaType,
    ])
    expect(body.equals(image.bytes)).toBe(true)
  }
  const head = await first.get(`${app}/manifests/v1`, { method: 'HEAD' })
  expect([head.status, head.headers['content-length']]).toEqual([200, String(image.bytes.length)])
  first.kill('SIGTERM')
  await first.ended
  const second = await startMirrorProcess({ upstreams: { 'docker.io': upstream.url }, home: first.home })
  const { headers, body } = await second.get(`${app}/manifests/${image.digest}`)
  expect(headers['cache-status']).toBe('mirror; hit')
  expect(body.equals(image.bytes)).toBe(true)

  // Flips a byte on disk, which is found before the first byte is sent, as in a small manifest.
  const file = await blobFile(second, image.digest)
  const handle = await openFile(file, 'r+')
  await handle.write(Buffer.from('y'), 0, 1, 2_000_000)
  await handle.close()
  expect((await second.get(`${app}/manifests/${image.digest}`)).body.equals(image.bytes)).toBe(true)
})
