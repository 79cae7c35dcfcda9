import { randomBytes } from 'node:crypto'
import { describe, expect, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { mediaType } from '../../src/oci/content.ts'
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
import { jsonBombs } from './support/json-bombs.ts'

const MiB = 1024 * 1024

interface Limited {
  readonly mirror: MirrorProcess
  readonly registry: string
  readonly upstream: TestUpstream
  /** Sends the requests at once; each must get an allowed status, and a 503 must have `Retry-After`. */
  send(requests: readonly FloodRequest[], allowed: readonly number[]): Promise<void>
  /** Fails unless the same process still runs and answers. */
  check(what: string): Promise<void>
}

async function startLimited(bytes: number): Promise<Limited> {
  // Creates the group first, so that the process ends before the group is removed.
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
    async send(requests, allowed) {
      const url = requests[0]!.path.startsWith(app) ? mirror.url : registry
      const { statuses, withoutRetryAfter } = await flood(url, requests)
      expect(Object.keys(statuses).filter((status) => !allowed.map(String).includes(status))).toEqual([])
      expect(Object.values(statuses).reduce((sum, count) => sum + count)).toBe(requests.length)
      expect(statuses[allowed[0]!]).toBeGreaterThan(0)
      expect(withoutRetryAfter).toBe(0)
      console.log(statuses)
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

// Allows 15 minutes, because the tests take minutes on a busy machine.
describe.skipIf(!canLimitMemory()).each([256, 512])('in %i MiB', { timeout: 900_000 }, (limit) => {
  test('nothing that clients pull ends the process', async () => {
    const { mirror, upstream, send, check } = await startLimited(limit * MiB)
    const cold = times(100, (at) => makeImage({ layers: [noise(5_000_000, at)] }))
    cold.forEach((image, at) => upstream.push('library/app', `cold${at}`, image))
    const blob = ({ layers: [layer], blobs }: (typeof cold)[0]): FloodRequest => ({
      method: 'GET',
      path: `${app}/blobs/${layer}`,
      content: blobs.get(layer!)!,
    })
    await send(cold.map(blob), [200])
    await check('100 cold blobs')

    const large = makeImage({ layers: [noise(60_000_000, 1000)] })
    upstream.push('library/app', 'large', large)
    await send([blob(large)], [200])
    await send(
      times(100, () => blob(large)),
      [200],
    )
    await check('100 pulls of a warm blob of 60 MB')

    times(100, (at) => upstream.push('library/app', `wide${at}`, largeImage(at)))
    await send(
      times(100, (at) => ({ method: 'GET', path: `${app}/manifests/wide${at}` })),
      [200, 503],
    )
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
    await send(
      blobs.map((body) => ({
        method: 'POST',
        path: `/v2/app/blobs/uploads/?digest=${computeDigest(body)}`,
        body: [body],
      })),
      [201],
    )
    await check('100 blobs of 3 MB')

    await send(largePushes(300), [201, 503])
    await check('300 manifests of 4.1 MB')

    const bombs = Object.values(jsonBombs).map(({ text }) => Buffer.from(text))
    const put = (at: number): FloodRequest => ({
      method: 'PUT',
      path: `/v2/app/manifests/bomb${at}`,
      headers: { 'content-type': mediaType.ociManifest },
      body: [bombs[at % bombs.length]!],
    })
    await send(times(50, put), [201, 400, 503])
    await check('50 JSON bodies of 4 MB')
  })
})
