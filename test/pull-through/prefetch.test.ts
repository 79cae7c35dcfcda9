import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { expectContent } from '../support/expect-content.ts'
import { cutAt, slow, status } from '../support/faults.ts'
import { send, type Fault } from '../support/faulty-server.ts'
import { makeImage } from '../support/images.ts'
import { noise } from '../support/noise.ts'
import { app, startScene, type SceneOptions } from '../support/scene.ts'
import { anyBlob } from '../support/upstream.ts'

const layers = [1, 2, 3, 4, 5].map((seed) => noise(100_000 + seed, seed))
const defaults = { layers: 6, rangesPerBlob: 4, rangeBytes: 100_000, rangeMinSize: 1_000_000 }

async function startLayered(
  prefetch: Partial<typeof defaults> = {},
  options: Omit<SceneOptions, 'image' | 'cache'> = {},
) {
  const image = makeImage({ layers })
  const scene = await startScene({ image, cache: { prefetch: { ...defaults, ...prefetch } }, ...options })
  const blob = (at: number) => `${app}/blobs/${image.layers[at]!}`
  const config = [...image.blobs.keys()].find((digest) => !image.layers.includes(digest))!
  return { ...scene, image, blob, config: `${app}/blobs/${config}` }
}

/** Waits until all prefetches would have been requested. */
const settle = () => sleep(300)

describe('the layers that a client will request', () => {
  test('are prefetched behind the requested one, each once', async () => {
    const { upstream, mirror, image, blob } = await startLayered()
    await mirror.get(`${app}/manifests/v1`)
    expectContent(await mirror.get(blob(1)), image.layers[1]!)
    await mirror.untilStored(5)
    const paths = upstream.requests.filter(({ path }) => path.includes('/blobs/')).map(({ path }) => path)
    expect(paths.toSorted()).toEqual([blob(1), blob(2), blob(3), blob(4)].toSorted())
    for (const at of [2, 3, 4]) expectContent(await mirror.get(blob(at)), image.layers[at]!)
    expect(upstream.count(anyBlob)).toBe(4)
  })

  test('count as misses for their first request, and as hits after it', async () => {
    const { mirror, blob } = await startLayered()
    await mirror.get(`${app}/manifests/v1`)
    await mirror.get(blob(0))
    await mirror.untilStored(6)
    for (const at of [1, 2, 3, 4])
      expect((await mirror.get(blob(at))).headers['cache-status']).toBe('mirror; fwd=miss; stored')
    // Polls, because the mirror counts an answer a moment after its client has it.
    await expect.poll(async () => (await mirror.status()).cache).toMatchObject({ misses: 6, hits: 0, bytesSaved: 0 })
    expect((await mirror.get(blob(4))).headers['cache-status']).toBe('mirror; hit')
  })

  test('are joined by the client while they arrive', async () => {
    const { upstream, mirror, image, blob } = await startLayered()
    upstream.on(anyBlob, slow(200_000))
    await mirror.get(`${app}/manifests/v1`)
    const answers = await Promise.all([0, 1, 2, 3, 4].map((at) => mirror.get(blob(at))))
    for (const [at, answer] of answers.entries()) expectContent(answer, image.layers[at]!)
    expect(upstream.count(anyBlob)).toBe(5)
  })

  test.each([
    ['by a HEAD', { method: 'HEAD' }, 0],
    ['by a range request', { headers: { range: 'bytes=0-9' } }, 1],
  ])('are not prefetched %s', async (_, options, gets) => {
    const { upstream, mirror, blob } = await startLayered()
    await mirror.get(`${app}/manifests/v1`)
    await mirror.get(blob(0), options)
    await settle()
    expect(upstream.count(anyBlob)).toBe(gets)
  })

  test('are not prefetched for a config, without a manifest, or with prefetching turned off', async () => {
    const { upstream, mirror, blob, config } = await startLayered()
    await mirror.get(`${app}/manifests/v1`, { method: 'HEAD' })
    await mirror.get(blob(0))
    await mirror.get(`${app}/manifests/v1`)
    await mirror.get(config)
    await settle()
    expect(upstream.count(anyBlob)).toBe(2)

    const off = await startLayered({ layers: 0 })
    await off.mirror.get(`${app}/manifests/v1`)
    await off.mirror.get(off.blob(0))
    await settle()
    expect(off.upstream.count(anyBlob)).toBe(1)
  })

  test('are prefetched up to the limit at a time, and not after a 429 of the upstream', async () => {
    const { upstream, mirror, image, blob } = await startLayered({ layers: 2 })
    await mirror.get(`${app}/manifests/v1`)
    upstream.on({ ...anyBlob, path: new RegExp(`blobs/(?!${image.layers[0]!})`) }, status(429, { 'retry-after': '60' }))
    expectContent(await mirror.get(blob(0)), image.layers[0]!)
    await settle()
    expect(upstream.count(anyBlob)).toBeLessThanOrEqual(3)
  })
})

describe('a large blob', () => {
  const large = noise(1_050_000, 9)
  const ranges = (upstream: Awaited<ReturnType<typeof startScene>>['upstream']) =>
    upstream.requests.filter(({ path }) => path.includes('/blobs/')).map(({ headers }) => String(headers.range))

  /** Limits a fault to requests for some ranges. */
  function forRange(pattern: RegExp, fault: Fault): Fault {
    return (exchange) => {
      if (pattern.test(exchange.request.headers.range ?? '')) return fault(exchange)
      return send(exchange.response, exchange.reply)
    }
  }

  async function startLarge(prefetch: Partial<typeof defaults> = {}) {
    const cache = { prefetch: { ...defaults, ...prefetch } }
    const scene = await startScene({ image: makeImage({ layers: [large] }), cache })
    await scene.mirror.get(`${app}/manifests/v1`)
    return { ...scene, path: `${app}/blobs/${scene.layer}` }
  }

  test('is fetched in ranges, each requested once, and verified as a whole', async () => {
    const { upstream, mirror, layer, path } = await startLarge()
    expectContent(await mirror.get(path), layer)
    const parts = Array.from({ length: 11 }, (_, at) => [at * 100_000, Math.min((at + 1) * 100_000, large.length) - 1])
    expect(ranges(upstream).toSorted()).toEqual(parts.map(([first, last]) => `bytes=${first}-${last}`).toSorted())
    await mirror.untilStored(2)
    expectContent(await mirror.get(path), layer)
  })

  test('that the upstream sends as a whole is accepted as a whole', async () => {
    const { upstream, mirror, layer, path } = await startLarge()
    const whole: Fault = ({ response }) => send(response, { status: 200, body: large })
    upstream.on(anyBlob, whole)
    expectContent(await mirror.get(path), layer)
    expect(upstream.count(anyBlob)).toBe(1)
  })

  test('whose range breaks continues in one request', async () => {
    const { upstream, mirror, layer, path } = await startLarge()
    upstream.on(anyBlob, forRange(/^bytes=300000-/, cutAt(50_000)))
    expectContent(await mirror.get(path), layer)
    expect(ranges(upstream).at(-1)).toMatch(/^bytes=\d+-$/)
  })

  test('of an upstream that limits connections is fetched over one, without a failure for the client', async () => {
    const images = [makeImage({ layers: [large, noise(1_050_000, 10)] })] as const
    const { upstream, mirror } = await startScene({ image: images[0], cache: { prefetch: { ...defaults, layers: 0 } } })
    await mirror.get(`${app}/manifests/v1`)
    upstream.on(anyBlob, forRange(/^bytes=[1-9]\d*-\d+$/, status(429, { 'retry-after': '60' })))
    for (const layer of images[0].layers) expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    // Expects a whole download of the second layer, because the mirror has learned the limit from the first one.
    expect(ranges(upstream).at(-1)).toBe('undefined')
    expect((await mirror.get(`${app}/manifests/v1`, { headers: { 'cache-control': 'no-cache' } })).status).toBe(200)
  })

  test('with wrong bytes is never sent completely', async () => {
    const { upstream, mirror, path } = await startLarge()
    const wrong = Buffer.from(large.subarray(300_000, 400_000))
    wrong[5]! ^= 1
    const range = `bytes 300000-399999/${large.length}`
    const lie: Fault = ({ response }) =>
      send(response, { status: 206, headers: { 'content-range': range }, body: wrong })
    upstream.on(anyBlob, forRange(/^bytes=300000-/, lie))
    expect((await mirror.get(path)).complete).toBe(false)
    expect((await mirror.status()).cache.digestMismatches).toBe(1)
  })

  test('is fetched by one request below the minimum size, with ranges turned off, or for a range request', async () => {
    const small = await startLarge({ rangeMinSize: 2_000_000 })
    expectContent(await small.mirror.get(small.path), small.layer)
    expect(ranges(small.upstream)).toEqual(['undefined'])
    const off = await startLarge({ rangesPerBlob: 1 })
    expectContent(await off.mirror.get(off.path), off.layer)
    expect(ranges(off.upstream)).toEqual(['undefined'])
    const part = await startLarge()
    await part.mirror.get(part.path, { headers: { range: 'bytes=5-9' } })
    await part.mirror.untilStored(2)
    expect(ranges(part.upstream)).toEqual(['undefined'])
  })
})
