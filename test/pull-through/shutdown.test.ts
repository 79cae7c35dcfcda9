import { expect, test } from 'vitest'
import { expectContent } from '../support/expect-content.ts'
import { slow } from '../support/faults.ts'
import { open } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { startTestMirror } from '../support/mirror.ts'
import { noise } from '../support/noise.ts'
import { app, startScene } from '../support/scene.ts'
import { anyBlob } from '../support/upstream.ts'

const MB = 1_000_000

test('a running pull finishes when the mirror is stopped, and new connections are refused', async () => {
  const { upstream, mirror, layer } = await startScene({ image: makeImage({ layers: [noise(3 * MB)] }) })
  upstream.on(anyBlob, slow(3 * MB))
  const running = mirror.get(`${app}/blobs/${layer}`)
  await expect.poll(() => upstream.count(anyBlob)).toBe(1)
  const closed = mirror.close()
  await expect(mirror.get('/v2/')).rejects.toMatchObject({ code: 'ECONNREFUSED' })
  expectContent(await running, layer)
  await closed
})

test('a stopped mirror releases its store, and two mirrors run on two stores', async () => {
  const { upstream, mirror, image } = await startScene()
  await mirror.get(`${app}/manifests/v1`)
  const upstreams = { 'docker.io': upstream.url }
  const other = await startTestMirror({ upstreams })
  expectContent(await other.get(`${app}/manifests/v1`), image.digest)
  await expect(startTestMirror({ upstreams, home: mirror.home })).rejects.toMatchObject({
    name: 'MirrorError',
    message: expect.stringContaining(String(process.pid)),
  })
  await mirror.close()
  const next = await startTestMirror({ upstreams, home: mirror.home })
  await upstream.stop()
  expectContent(await next.get(`${app}/manifests/v1`), image.digest)
})

test('totals continue across a restart', async () => {
  const { upstream, mirror } = await startScene({ cache: { tagFreshness: 60_000 } })
  await mirror.get(`${app}/manifests/v1`)
  await mirror.get(`${app}/manifests/v1`)
  const before = await mirror.status()
  await mirror.close()
  const next = await startTestMirror({ upstreams: { 'docker.io': upstream.url }, home: mirror.home })
  const after = await next.status()
  expect(after.cache).toEqual(before.cache)
  expect(after.since).toBe(before.since)
})

test('an idle client does not delay the shutdown', async () => {
  const { mirror } = await startScene()
  const idle = await open(mirror.url, '/v2/', { headers: { connection: 'keep-alive' } })
  idle.resume()
  await mirror.close()
})
