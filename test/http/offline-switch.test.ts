import { describe, expect, test } from 'vitest'
import { expectContent, expectError } from '../support/expect-content.ts'
import { cutAt, times } from '../support/faults.ts'
import { get } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { noise } from '../support/noise.ts'
import { app, startScene, type Scene } from '../support/scene.ts'
import { anyBlob } from '../support/upstream.ts'

async function setOffline({ mirror }: Pick<Scene, 'mirror'>, offline: unknown) {
  const answer = await mirror.post('/api/offline', { offline })
  return { status: answer.status, report: JSON.parse(answer.body.toString()) as unknown }
}

describe('a mirror that is switched offline', () => {
  test('serves what it has, contacts no upstream, and says so', async () => {
    const scene = await startScene()
    const { mirror, upstream, image, layer } = scene
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    expect((await mirror.status()).offline).toEqual({ active: false, source: 'config' })

    expect(await setOffline(scene, true)).toEqual({ status: 200, report: { active: true, source: 'session' } })
    const before = upstream.requests.length
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    const missing = await mirror.get(`${app}/manifests/v2`)
    expectError(missing, 503)
    expect(missing.body.toString()).toContain('the mirror is offline')
    expect(upstream.requests.length).toBe(before)
    expect((await mirror.status()).offline).toEqual({ active: true, source: 'session' })
    expect((await get(mirror.adminUrl, '/metrics')).body.toString()).toContain('mirror_offline 1')

    expect(await setOffline(scene, false)).toEqual({ status: 200, report: { active: false, source: 'session' } })
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expect(upstream.requests.length).toBeGreaterThan(before)
    expect((await get(mirror.adminUrl, '/metrics')).body.toString()).toContain('mirror_offline 0')
  })

  test('follows mirror.yaml again after a restart', async () => {
    const scene = await startScene({ cache: { offline: true } })
    const { mirror } = scene
    expectError(await mirror.get(`${app}/manifests/v1`), 503)
    expect((await mirror.status()).offline).toEqual({ active: true, source: 'config' })
    await setOffline(scene, false)
    expect((await mirror.get(`${app}/manifests/v1`)).status).toBe(200)
    await mirror.close()
    const again = await startScene({ home: mirror.home, cache: { offline: true } })
    expect((await again.mirror.status()).offline).toEqual({ active: true, source: 'config' })
  })

  test('completes a download that has begun, also over another connection', async () => {
    const image = makeImage({ layers: [noise(300_000, 7)] })
    const scene = await startScene({ image })
    const { mirror, upstream } = scene
    const layer = image.layers[0]!
    await mirror.get(`${app}/manifests/v1`)
    upstream.on(
      anyBlob,
      times(1, async (context) => {
        await setOffline(scene, true)
        return cutAt(100_000)(context)
      }),
    )
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    expect(upstream.requests.filter(({ path }) => path.includes(layer)).length).toBe(2)
  })

  test('fetches no layers ahead', async () => {
    const image = makeImage({ layers: [Buffer.from('first layer'), Buffer.from('second layer')] })
    const scene = await startScene({ image })
    const { mirror, upstream } = scene
    await mirror.get(`${app}/manifests/v1`)
    await setOffline(scene, true)
    const before = upstream.requests.length
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expectError(await mirror.get(`${app}/blobs/${image.layers[0]!}`), 503)
    expect(upstream.requests.length).toBe(before)
    expect(mirror.log.filter((line) => line.startsWith('error'))).toEqual([])
  })

  test('is switched only by true or false', async () => {
    const scene = await startScene()
    for (const value of ['yes', 1, null, undefined]) expect((await setOffline(scene, value)).status).toBe(400)
    expect((await scene.mirror.status()).offline?.active).toBe(false)
  })
})
