import { expect, test } from 'vitest'
import { mediaType } from '../../src/oci/content.ts'
import { get } from '../support/get.ts'
import { emptyConfig } from '../support/large-manifest.ts'
import { watchLoop } from '../support/loop-delay.ts'
import { startMirrorProcess } from '../support/mirror-process.ts'
import { pushBlob } from '../support/push.ts'
import { app } from '../support/scene.ts'
import { startUpstream } from '../support/upstream.ts'
import { manifestOf } from '../support/images.ts'
import { jsonBombs } from './support/json-bombs.ts'

const MiB = 1024 * 1024

test('JSON bodies of 4 MB block the event loop for at most 100 ms (p99)', async () => {
  const loop = await watchLoop()
  const upstream = await startUpstream({})
  const mirror = await startMirrorProcess({ upstreams: { 'docker.io': upstream.url }, registry: true, env: loop.env })
  const registry = mirror.registryUrl!
  await pushBlob(registry, 'app', emptyConfig)

  // Sends a first request, which loads the code of requests to upstreams.
  await mirror.get(`${app}/manifests/none`)

  const worst: Record<string, number> = {}
  const measured = async (what: string, task: () => Promise<void>) => {
    worst[what] = (await loop.during(task)).p99
  }
  for (const [what, { text, status }] of Object.entries(jsonBombs)) {
    const body = Buffer.from(text)
    expect(body.length).toBeLessThanOrEqual(4 * MiB)
    await measured(what, async () => {
      const headers = { 'content-type': mediaType.ociManifest }
      for (let round = 0; round < 2; round++)
        expect([
          what,
          (await get(registry, '/v2/app/manifests/bomb', { method: 'PUT', headers, body })).status,
        ]).toEqual([what, status])
    })
    // Serves the same body from an upstream.
    upstream.push('library/app', 'bomb', manifestOf(body, mediaType.ociManifest))
    await measured(`${what}, of an upstream`, async () => {
      expect([200, 502]).toContain((await mirror.get(`${app}/manifests/bomb`)).status)
    })
  }
  console.log(worst)
  for (const [what, delay] of Object.entries(worst)) expect([what, delay <= 100, delay]).toEqual([what, true, delay])
})
