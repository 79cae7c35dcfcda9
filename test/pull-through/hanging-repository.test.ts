import { expect, test } from 'vitest'
import { expectContent } from '../support/expect-content.ts'
import { hang } from '../support/faults.ts'
import { get } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { leavingClients } from '../support/leaving-clients.ts'
import { startTestMirror } from '../support/mirror.ts'
import { startUpstream } from '../support/upstream.ts'

test("a hanging repository takes a quarter of its upstream's connections, and other repositories are served", async () => {
  const image = makeImage({ layers: [10] })
  const upstream = await startUpstream({ images: { 'library/well': { v1: image } } })
  upstream.on({ path: /\/library\/hung\// }, hang)
  // Exceeds the duration of the test, so that no request times out and makes room.
  const timeouts = { headers: 600_000, revalidate: 600_000 }
  const mirror = await startTestMirror({ upstreams: { 'docker.io': upstream.url }, cache: { timeouts } })
  const { signal, leave } = leavingClients()
  const hung = Array.from({ length: 100 }, (_, at) =>
    get(mirror.url, `/v2/library/hung/manifests/t${at}`, { signal }).catch(() => undefined),
  )
  await expect.poll(() => upstream.count({ path: /\/library\/hung\// })).toBe(12)
  expectContent(await mirror.get('/v2/library/well/manifests/v1'), image.digest)
  expect(upstream.count({ path: /\/library\/hung\// })).toBe(12)
  leave()
  await Promise.all(hung)
})

test('a request that waits behind a hanging repository gets 503 with Retry-After', async () => {
  const upstream = await startUpstream({ images: {} })
  upstream.on({ path: /\/library\/hung\// }, hang)
  const mirror = await startTestMirror({ upstreams: { 'docker.io': upstream.url } })
  const answers = await Promise.all(
    Array.from({ length: 40 }, (_, at) => mirror.get(`/v2/library/hung/manifests/t${at}`)),
  )
  for (const { status } of answers) expect([503, 504]).toContain(status)
  expect(answers.some(({ headers }) => headers['retry-after'] !== undefined)).toBe(true)
})
