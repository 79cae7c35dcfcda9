import { existsSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { digestOf } from '../../src/oci/digest.ts'
import { mediaType } from '../../src/oci/media-types.ts'
import { get } from '../support/get.ts'
import { emptyConfig } from '../support/large-manifest.ts'
import { temporaryHome } from '../support/mirror.ts'
import { startMirrorProcess } from '../support/mirror-process.ts'
import { pushBlob } from '../support/push.ts'
import { app } from '../support/scene.ts'
import { startUpstream } from '../support/upstream.ts'
import { manifestOf } from '../support/images.ts'

const MiB = 1024 * 1024
const repeat = (text: string, count: number) =>
  Array.from({ length: count }, (_, at) => text.replace('#', String(at))).join()
const layer = `{"mediaType":"${mediaType.ociLayerGzip}","digest":"${digestOf(emptyConfig)}","size":2}`
const start = `"schemaVersion":2,"mediaType":"${mediaType.ociManifest}","config":{"mediaType":"${mediaType.ociConfig}","digest":"${digestOf(emptyConfig)}","size":2}`

const bombs: Readonly<Record<string, readonly [string, number]>> = {
  'nested lists': ['['.repeat(4_000_000), 400],
  'nested objects': [`{${start},"a":${'{"a":'.repeat(700_000)}`, 400],
  'a million empty objects': [`{${start},"a":[${repeat('{}', 1_000_000)}]}`, 400],
  'hundreds of thousands of keys': [`{${start},"a":{${repeat('"k#":1', 330_000)}}}`, 400],
  'one key again and again': [`{${start},"a":{${repeat('"k":1', 600_000)}}}`, 400],
  numbers: [`{${start},"a":[${repeat('12345', 600_000)}]}`, 400],
  'one text of 4 MB': [`{${start},"a":"${'x'.repeat(4_000_000)}"}`, 201],
  '4 MB of escapes': [`{${start},"a":"${'\\u0041'.repeat(650_000)}"}`, 201],
  '23,000 layers': [`{${start},"layers":[${repeat(layer, 23_000)}]}`, 201],
  '150,000 objects with keys of their own': [`{${start},"a":[${repeat('{"k#":1}', 90_000)}]}`, 201],
}

test('while JSON bodies of 4 MB arrive, nobody else waits: the event loop is kept for 100 ms at most, 99 times of 100', async () => {
  const home = await temporaryHome()
  const file = join(home, 'loop-delay.json')
  const preload = fileURLToPath(new URL('../support/loop-delay.mjs', import.meta.url))
  const upstream = await startUpstream({})
  const mirror = await startMirrorProcess({
    upstreams: { 'docker.io': upstream.url },
    registry: true,
    home,
    env: { NODE_OPTIONS: `--import=${preload}`, LOOP_DELAY_FILE: file },
  })
  const registry = mirror.registryUrl!
  await pushBlob(registry, 'app', emptyConfig)

  // Not the first question ever, which loads what asking takes.
  await mirror.get(`${app}/manifests/none`)

  const worst: Record<string, number> = {}
  const measured = async (what: string, task: () => Promise<void>) => {
    rmSync(file)
    await expect.poll(() => existsSync(file), { interval: 20 }).toBe(true)
    await task()
    await sleep(400)
    worst[what] = (JSON.parse(readFileSync(file, 'utf8')) as { p99: number }).p99
  }
  for (const [what, [text, status]] of Object.entries(bombs)) {
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
    // The same from an upstream.
    upstream.push('library/app', 'bomb', manifestOf(body, mediaType.ociManifest))
    await measured(`${what}, of an upstream`, async () => {
      expect([200, 502]).toContain((await mirror.get(`${app}/manifests/bomb`)).status)
    })
  }
  if (process.env['DEBUG']) console.log(worst)
  for (const [what, delay] of Object.entries(worst)) expect([what, delay <= 100, delay]).toEqual([what, true, delay])
})
