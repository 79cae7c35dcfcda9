import { randomBytes } from 'node:crypto'
import { describe, expect, test } from 'vitest'
import { digestOf } from '../../src/oci/digest.ts'
import { mediaType } from '../../src/oci/media-types.ts'
import { flood, type FloodRequest } from '../support/flood.ts'
import { get, open } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { emptyConfig, largeImage, largePushes } from '../support/large-manifest.ts'
import { canLimitMemory, limitMemory } from '../support/memory-limit.ts'
import { startMirrorProcess, type MirrorProcess } from '../support/mirror-process.ts'
import { noise } from '../support/noise.ts'
import { pushBlob } from '../support/push.ts'
import { app } from '../support/scene.ts'
import { startUpstream, type TestUpstream } from '../support/upstream.ts'

const MiB = 1024 * 1024
/** What a client may be told: what it wanted, that it asked for something wrong, or when to come back. */
const allowed = /^(?:2\d\d|4\d\d|503)$/

interface Limited {
  readonly mirror: MirrorProcess
  readonly registry: string
  readonly upstream: TestUpstream
  send(requests: readonly FloodRequest[]): Promise<Readonly<Record<string, number>>>
  /** Fails unless the same process is there, unharmed, and answers. */
  check(what: string): Promise<void>
}

async function startLimited(bytes: number): Promise<Limited> {
  // Made first, so that the process ends before it is removed.
  const group = limitMemory(bytes)
  const upstream = await startUpstream({})
  const mirror = await startMirrorProcess({
    upstreams: { 'docker.io': upstream.url },
    registry: true,
    wrapper: group.wrapper,
  })
  const registry = mirror.registryUrl!
  await pushBlob(registry, 'app', emptyConfig)
  return {
    mirror,
    registry,
    upstream,
    async send(requests) {
      const url = requests[0]!.path.startsWith(app) ? mirror.url : registry
      const { statuses, withoutRetryAfter } = await flood(url, requests)
      expect(Object.keys(statuses).filter((status) => !allowed.test(status))).toEqual([])
      expect(withoutRetryAfter).toBe(0)
      return statuses
    },
    async check(what) {
      expect(group.kills, mirror.log().slice(-2000)).toBe(0)
      expect((await mirror.status()).pid).toBe(mirror.pid)
      expect((await get(registry, '/v2/')).status).toBe(200)
      expect((await mirror.get('/v2/')).status).toBe(200)
      const [now, most] = [await mirror.memory('VmRSS'), await mirror.memory('VmHWM')]
      console.log(
        `${bytes / MiB} MiB, ${what}: ${Math.round(now / MiB)} MiB now, ${Math.round(most / MiB)} MiB at most`,
      )
    },
  }
}

const times = <T>(count: number, make: (at: number) => T): T[] => Array.from({ length: count }, (_, at) => make(at))

// Minutes, on a machine that does something else as well.
describe.skipIf(!canLimitMemory()).each([256, 512])('in %i MiB', { timeout: 900_000 }, (limit) => {
  test('nothing that clients pull ends the process', async () => {
    const { mirror, upstream, send, check } = await startLimited(limit * MiB)
    const cold = times(100, (at) => makeImage({ layers: [noise(5_000_000, at)] }))
    cold.forEach((image, at) => upstream.push('library/app', `cold${at}`, image))
    const blob = (image: (typeof cold)[0]) => ({ method: 'GET', path: `${app}/blobs/${image.layers[0]!}` })
    await send(cold.map(blob))
    await check('100 cold blobs')

    const large = makeImage({ layers: [noise(60_000_000, 1000)] })
    upstream.push('library/app', 'large', large)
    await send([blob(large)])
    await send(times(100, () => blob(large)))
    await check('100 pulls of a warm blob of 60 MB')

    times(100, (at) => upstream.push('library/app', `wide${at}`, largeImage(at)))
    await send(times(100, (at) => ({ method: 'GET', path: `${app}/manifests/wide${at}` })))
    await check('100 cold manifests of 4.1 MB')

    const wide = `${app}/manifests/wide0`
    expect((await mirror.get(wide)).status).toBe(200)
    const readers = await Promise.all(times(300, () => open(mirror.url, wide).catch(() => undefined)))
    await check('300 readers of manifests that do not read')
    for (const reader of readers) reader?.destroy()
  })

  test('nothing that clients push ends the process', async () => {
    const { send, check } = await startLimited(limit * MiB)
    const blobs = times(100, () => randomBytes(3_000_000))
    const pushed = await send(
      blobs.map((body) => ({ method: 'POST', path: `/v2/app/blobs/uploads/?digest=${digestOf(body)}`, body: [body] })),
    )
    expect(pushed).toEqual({ 201: 100 })
    await check('100 blobs of 3 MB')

    await send(largePushes(300))
    await check('300 manifests of 4.1 MB')

    const put = (at: number, text: string) => ({
      method: 'PUT',
      path: `/v2/app/manifests/bomb${at}`,
      headers: { 'content-type': mediaType.ociManifest },
      body: [Buffer.from(text)],
    })
    const layer = { mediaType: mediaType.ociLayerGzip, digest: digestOf(emptyConfig), size: emptyConfig.length }
    const config = { ...layer, mediaType: mediaType.ociConfig }
    const fields = { schemaVersion: 2, mediaType: mediaType.ociManifest, config }
    const layers = (count: number) => times(count, () => layer)
    const bombs = [
      '['.repeat(4_000_000),
      '{"a":'.repeat(800_000),
      `[${'{},'.repeat(1_000_000)}{}]`,
      `{${times(350_000, (at) => `"k${at}":1`).join()}}`,
      `{${'"a":1,'.repeat(600_000)}"a":1}`,
      `{"a":"${'\\u0041'.repeat(650_000)}"}`,
      `{"a":"${'x'.repeat(4_000_000)}"}`,
      `{"a":[${'1,'.repeat(1_900_000)}1]}`,
      JSON.stringify({ ...fields, layers: layers(25_000) }),
    ]
    await send(times(45, (at) => put(at, bombs[at % bombs.length]!)))
    await check('45 JSON bodies of 4 MB')
  })
})
