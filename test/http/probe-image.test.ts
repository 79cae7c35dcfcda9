import { describe, expect, test } from 'vitest'
import { get } from '../support/get.ts'
import { startTestMirror } from '../support/mirror.ts'
import { app, startScene } from '../support/scene.ts'

interface Offer {
  id: string
  repository: string
  tag: string
  digest: string
}

describe('a probe image', () => {
  test.each([
    ['by namespace', (offer: Offer) => `/v2/${offer.repository}/manifests/${offer.tag}?ns=docker.io`, 'docker.io'],
    ['by path', (offer: Offer) => `/v2/ghcr.io/${offer.repository}/manifests/${offer.tag}`, 'ghcr.io'],
    ['with nothing said', (offer: Offer) => `/v2/${offer.repository}/manifests/${offer.tag}`, 'docker.io'],
  ])('is pulled %s through the cache, recorded, and absent after its end', async (_, pathOf, host) => {
    const mirror = await startTestMirror({ cache: { offline: true } })
    const offered = await mirror.post('/api/canary', {})
    const offer = JSON.parse(offered.body.toString()) as Offer
    const index = await mirror.get(pathOf(offer))
    expect(index.status).toBe(200)
    expect(index.headers['docker-content-digest']).toBe(offer.digest)
    const child = (JSON.parse(index.body.toString()) as { manifests: { digest: string }[] }).manifests[0]!
    const at = (path: string) => `/v2/${host}/${offer.repository}/${path}`
    const manifest = JSON.parse((await mirror.get(at(`manifests/${child.digest}`))).body.toString()) as {
      config: { digest: string }
      layers: { digest: string }[]
    }
    for (const { digest } of [manifest.config, ...manifest.layers])
      expect((await mirror.get(at(`blobs/${digest}`))).status).toBe(200)
    await mirror.untilStored(4)

    const end = await mirror.post('/api/canary/end', { id: offer.id })
    expect(JSON.parse(end.body.toString())).toEqual({ seen: { [host]: 2 } })
    expect((await mirror.get(pathOf(offer))).status).not.toBe(200)
    expect(await mirror.status()).toMatchObject({ images: [], storage: { blobs: 0 } })
    expect((await mirror.post('/api/canary/end', { id: offer.id })).status).toBe(404)
  })

  test('leaves no trace in the statistics, the images, the upstreams or the metrics', async () => {
    const { mirror } = await startScene({ cache: { tagFreshness: 60_000 } })
    await mirror.get(`${app}/manifests/v1`)
    const counted = async () => {
      const { cache, upstreams, images } = await mirror.status()
      const metrics = (await get(mirror.adminUrl, '/metrics')).body.toString()
      return { cache, upstreams, images, metrics: metrics.replace(/^mirror_(uptime|storage)_.*$/gm, '') }
    }
    const before = await counted()

    const offer = JSON.parse((await mirror.post('/api/canary', {})).body.toString()) as Offer
    const at = (path: string) => `/v2/ghcr.io/${offer.repository}/${path}`
    await mirror.get(at('manifests/check'), { method: 'HEAD' })
    const index = await mirror.get(at('manifests/check'))
    const child = (JSON.parse(index.body.toString()) as { manifests: { digest: string }[] }).manifests[0]!
    const manifest = JSON.parse((await mirror.get(at(`manifests/${child.digest}`))).body.toString()) as {
      layers: { digest: string }[]
    }
    for (const { digest } of manifest.layers) {
      expect((await mirror.get(at(`blobs/${digest}`))).status).toBe(200)
      expect((await mirror.get(at(`blobs/${digest}`))).status).toBe(200)
    }
    expect((await mirror.get(at('blobs/sha256:' + '0'.repeat(64)))).status).toBe(404)
    expect(await counted()).toEqual(before)
    await mirror.post('/api/canary/end', { id: offer.id })
    expect(await counted()).toEqual(before)
  })

  test('without a pull has no recorded requests', async () => {
    const mirror = await startTestMirror()
    const offer = JSON.parse((await mirror.post('/api/canary', {})).body.toString()) as Offer
    const end = await mirror.post('/api/canary/end', { id: offer.id })
    expect(JSON.parse(end.body.toString())).toEqual({ seen: {} })
  })
})
