import { expect, onTestFinished, test } from 'vitest'
import { clientBodies, upstreamBodies } from '../../src/lib/body-budgets.ts'
import { expectContent } from '../support/expect-content.ts'
import { slow } from '../support/faults.ts'
import { makeImage } from '../support/images.ts'
import { largeImage } from '../support/large-manifest.ts'
import { startTestMirror } from '../support/mirror.ts'
import { app } from '../support/scene.ts'
import { startUpstream } from '../support/upstream.ts'

test('large manifests that come slowly keep no small one waiting', { timeout: 30_000 }, async () => {
  const [image, large] = [makeImage({ seed: 1 }), largeImage(1)]
  const count = Math.ceil(upstreamBodies.bytes / (2 * large.bytes.length)) + 2
  const tags = Array.from({ length: count }, (_, number) => `large${number}`)
  const images = Object.fromEntries([['v1', image], ...tags.map((tag) => [tag, large])])
  const upstream = await startUpstream({ images: { 'library/app': images } })
  const mirror = await startTestMirror({ upstreams: { 'docker.io': upstream.url } })
  upstream.on({ method: 'GET', path: /\/manifests\/large/ }, slow(80 * 1024))
  const leaving = new AbortController()
  onTestFinished(() => leaving.abort())
  for (const tag of tags)
    fetch(`${mirror.url}${app}/manifests/${tag}`, { signal: leaving.signal }).catch(() => undefined)
  await expect.poll(() => upstreamBodies.waiting).toBeGreaterThan(0)

  const begun = performance.now()
  expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
  // Far below the 20 s for which a large one waits.
  expect(performance.now() - begun).toBeLessThan(5000)
  expect(upstreamBodies.waiting).toBeGreaterThan(0)
  expect(clientBodies.waiting).toBe(0)
})
