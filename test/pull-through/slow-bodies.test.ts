import { expect, onTestFinished, test } from 'vitest'
import { clientBodies, upstreamBodies } from '../../src/lib/body-memory.ts'
import { expectContent } from '../support/expect-content.ts'
import { slow } from '../support/faults.ts'
import { get } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { largeImage } from '../support/large-manifest.ts'
import { leavingClients } from '../support/leaving-clients.ts'
import { startTestMirror } from '../support/mirror.ts'
import { app } from '../support/scene.ts'
import { startUpstream } from '../support/upstream.ts'

test('slow large manifests do not delay small ones', async () => {
  const [image, large] = [makeImage({ seed: 1 }), largeImage(1)]
  const names = Array.from({ length: 20 }, (_, number) => `library/large${number}`)
  const images = Object.fromEntries([['library/app', { v1: image }], ...names.map((name) => [name, { v1: large }])])
  const upstream = await startUpstream({ images })
  // Exceeds the duration of the test, so that only memory decides.
  const timeouts = { headers: 600_000, idle: 600_000, revalidate: 600_000 }
  const mirror = await startTestMirror({ upstreams: { 'docker.io': upstream.url }, cache: { timeouts } })
  upstream.on({ method: 'GET', path: /\/library\/large/ }, slow(256 * 1024))
  // Occupies the memory until all requests wait, however slow the machine is. Later one waiting request is admitted every two
  // seconds, which is too slow for the last ones.
  const held = await upstreamBodies.reserve(upstreamBodies.bytes)
  onTestFinished(() => held.release())
  const { signal } = leavingClients()
  for (const name of names) get(mirror.url, `/v2/${name}/manifests/v1`, { signal }).catch(() => undefined)
  await expect.poll(() => upstreamBodies.waiting).toBe(names.length)
  held.release()
  expect(upstreamBodies.waiting).toBeGreaterThan(11)

  expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
  expect(upstreamBodies.waiting).toBeGreaterThan(0)
  expect(clientBodies.waiting).toBe(0)
})
