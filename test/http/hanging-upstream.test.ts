import { describe, expect, test } from 'vitest'
import { withDescriptors } from '../support/descriptors.ts'
import { expectContent } from '../support/expect-content.ts'
import { hang, slow } from '../support/faults.ts'
import { send } from '../support/faulty-server.ts'
import { get } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { leavingClients } from '../support/leaving-clients.ts'
import { startMirrorProcess } from '../support/mirror-process.ts'
import { noise } from '../support/noise.ts'
import { anyBlob, startUpstream } from '../support/upstream.ts'

/** patient exceeds the duration of a test, so that no request times out and makes room. */
const patient = { timeouts: { headers: '10m', idle: '10m', revalidate: '10m' } }

/** Starts a mirror with 256 descriptors, a working upstream, and others. Open requests end with the test. */
async function startNarrow(others: Readonly<Record<string, string>>, cache: Readonly<Record<string, unknown>> = {}) {
  const image = makeImage({ layers: [noise(20_000)] })
  const well = await startUpstream({ images: { 'library/app': { v1: image } } })
  const upstreams = { 'docker.io': well.url, ...others }
  const mirror = await startMirrorProcess({ upstreams, cache, wrapper: withDescriptors(256) })
  const { signal } = leavingClients()
  const ask = (path: string) => void get(mirror.url, path, { signal }).catch(() => undefined)
  return { image, mirror, ask }
}

describe.skipIf(process.platform !== 'linux')('a mirror with few descriptors', () => {
  test('answers for one upstream at once while another never answers for thirty repositories', async () => {
    const dead = await startUpstream()
    dead.on({}, hang)
    const { image, mirror, ask } = await startNarrow({ 'dead.example': dead.url }, patient)
    for (let at = 0; at < 30; at++) ask(`/v2/team/app${at}/manifests/v1?ns=dead.example`)
    await expect.poll(() => dead.requests.length).toBeGreaterThan(8)
    expectContent(await mirror.get('/v2/library/app/manifests/v1'), image.digest)
    expectContent(await mirror.get(`/v2/library/app/blobs/${image.layers[0]}`), image.layers[0]!)
  })

  test('answers for one upstream at once while three others never answer', async () => {
    const dead = await Promise.all([1, 2, 3].map(() => startUpstream()))
    for (const upstream of dead) upstream.on({}, hang)
    const names = dead.map((_, at) => `dead${at}.example`)
    const { image, mirror, ask } = await startNarrow(
      Object.fromEntries(names.map((name, at) => [name, dead[at]!.url])),
      patient,
    )
    for (const name of names) for (let at = 0; at < 20; at++) ask(`/v2/team/app${at}/manifests/v1?ns=${name}`)
    for (const upstream of dead) await expect.poll(() => upstream.requests.length).toBeGreaterThan(0)
    expectContent(await mirror.get('/v2/library/app/manifests/v1'), image.digest)
  })

  test('answers for one upstream at once while another sends thirty blobs a byte at a time', async () => {
    const images = Array.from({ length: 30 }, (_, at) => makeImage({ layers: [noise(20_000, at + 1)], seed: at }))
    const drip = await startUpstream({
      images: Object.fromEntries(images.map((image, at) => [`team/app${at}`, { v1: image }])),
    })
    drip.on(anyBlob, slow(20))
    const { image, mirror, ask } = await startNarrow({ 'drip.example': drip.url }, patient)
    for (const [at, { layers }] of images.entries()) ask(`/v2/team/app${at}/blobs/${layers[0]}?ns=drip.example`)
    await expect.poll(() => drip.count(anyBlob)).toBeGreaterThan(4)
    expectContent(await mirror.get(`/v2/library/app/blobs/${image.layers[0]}`), image.layers[0]!)
  })

  test('lets a blob wait more than ten seconds behind others that progress', async () => {
    const images = Array.from({ length: 16 }, (_, at) => makeImage({ layers: [noise(120_000, at + 1)], seed: at }))
    const line = await startUpstream({
      images: Object.fromEntries(images.map((image, at) => [`team/app${at}`, { v1: image }])),
    })
    const begun = performance.now()
    // Takes 12 s for the first ones.
    line.on(anyBlob, (exchange) =>
      performance.now() - begun < 9000 ? slow(10_000)(exchange) : send(exchange.response, exchange.reply),
    )
    const { mirror } = await startNarrow({ 'line.example': line.url })
    const answers = await Promise.all(
      images.map(({ layers }, at) => mirror.get(`/v2/team/app${at}/blobs/${layers[0]}?ns=line.example`)),
    )
    expect(answers.map(({ status }) => status)).toEqual(images.map(() => 200))
  })
})
