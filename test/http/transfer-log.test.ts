import { describe, expect, test } from 'vitest'
import type { Digest } from '../../src/oci/reference.ts'
import { status } from '../support/faults.ts'
import { get } from '../support/get.ts'
import { makeImage, makeIndex, type TestImage } from '../support/images.ts'
import { startTestRegistry } from '../support/registry.ts'
import { app, startScene } from '../support/scene.ts'

/** Returns the fields of a message's lines in a log. */
function said(log: readonly string[], message: string): Record<string, unknown>[] {
  const start = `info ${message} `
  return log
    .filter((line) => line.startsWith(start))
    .map((line) => JSON.parse(line.slice(start.length)) as object as {})
}

const docker = { 'user-agent': 'docker/20.10.24+dfsg1 go/go1.19.8 os/linux' }

const bytesOfAll = (image: TestImage, digests: Iterable<Digest>) =>
  [...digests].reduce((sum, digest) => sum + image.blobs.get(digest)!.length, 0)

describe('the summary of a pull', () => {
  test('counts one image: its index, the manifest of one platform and its blobs, first as misses and then as hits', async () => {
    const [one, other] = [makeImage({ layers: [5000, 7000] }), makeImage({ layers: [100], seed: 9 })]
    const index = makeIndex([one, other])
    const { mirror } = await startScene({ image: index, cache: { tagFreshness: 60_000, prefetch: noPrefetch } })
    const pull = async () => {
      await mirror.get(`${app}/manifests/v1`, { method: 'HEAD', headers: docker })
      await mirror.get(`${app}/manifests/${index.digest}`, { headers: docker })
      await mirror.get(`${app}/manifests/${one.digest}`, { headers: docker })
      await Promise.all([...one.blobs.keys()].map((blob) => mirror.get(`${app}/blobs/${blob}`, { headers: docker })))
    }
    const bytes = index.bytes.length + one.bytes.length + bytesOfAll(one, one.blobs.keys())
    const summary = {
      listener: 'cache',
      image: 'docker.io/library/app:v1',
      digest: index.digest,
      bytes,
      ms: expect.any(Number),
      client: '127.0.0.1',
      agent: docker['user-agent'],
    }
    await pull()
    await mirror.untilStored(2 + one.blobs.size)
    // Pulls again at once, which counts as another pull because the client already has the whole image.
    await pull()
    await expect
      .poll(() => said(mirror.log, 'pull'))
      .toEqual([
        { ...summary, hits: 0, misses: 5, bytesFromUpstream: bytes },
        { ...summary, hits: 5, misses: 0, bytesFromUpstream: 0 },
      ])
  })

  test('names an image that was pulled by digest, and keeps two clients apart', async () => {
    const { mirror, image } = await startScene()
    const crane = { 'user-agent': 'crane/0.20' }
    for (const headers of [docker, crane]) {
      await mirror.get(`${app}/manifests/${image.digest}`, { headers })
      for (const blob of image.blobs.keys()) await mirror.get(`${app}/blobs/${blob}`, { headers })
    }
    await expect.poll(() => said(mirror.log, 'pull')).toHaveLength(2)
    for (const { image: name } of said(mirror.log, 'pull')) expect(name).toBe(`docker.io/library/app@${image.digest}`)
  })

  test('is written for a client that has most layers already, and not for one that only sends a HEAD', async () => {
    const { mirror } = await startScene()
    await mirror.get(`${app}/manifests/v1`, { method: 'HEAD', headers: { 'user-agent': 'poller/1' } })
    await mirror.get(`${app}/manifests/v1`, { headers: docker })
    await mirror.close()
    expect(said(mirror.log, 'pull')).toMatchObject([{ image: 'docker.io/library/app:v1', hits: 0, misses: 1 }])
  })

  test('counts the sent bytes of a part of a blob, and a failure as one failure', async () => {
    const { mirror, layer, upstream } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    await mirror.get(`${app}/blobs/${layer}`, { headers: { range: 'bytes=0-99' } })
    upstream.on({}, status(503))
    await mirror.get(`${app}/blobs/sha256:${'0'.repeat(64)}`)
    await mirror.close()
    const [pull] = said(mirror.log, 'pull')
    expect(pull).toMatchObject({ misses: 2, failed: 1 })
  })

  test('is not written for a probe image', async () => {
    const { mirror } = await startScene()
    const offer = JSON.parse((await mirror.post('/api/canary', {})).body.toString()) as { repository: string }
    await mirror.get(`/v2/${offer.repository}/manifests/check?ns=docker.io`)
    await mirror.close()
    expect(said(mirror.log, 'pull')).toEqual([])
    expect(said(mirror.log, 'request').filter(({ probe }) => probe === true)).toHaveLength(1)
  })
})

describe('the summary of a push', () => {
  test('counts the blobs that were sent and those that the registry had already', async () => {
    const registry = await startTestRegistry()
    const image = makeImage({ layers: [3000] })
    await registry.push('team/app', '1', image)
    for (const blob of image.blobs.keys()) await get(registry.url, `/v2/team/app/blobs/${blob}`, { method: 'HEAD' })
    await registry.pushManifest('team/app', '2', image)
    const all = image.bytes.length + bytesOfAll(image, image.blobs.keys())
    expect(said(registry.log, 'push')).toMatchObject([
      { listener: 'registry', image: 'team/app:1', digest: image.digest, bytes: all, blobs: 2, held: 0 },
      { image: 'team/app:2', bytes: image.bytes.length, blobs: 0, held: 2 },
    ])
  })

  test('is one for an index with its images', async () => {
    const registry = await startTestRegistry()
    const index = makeIndex([makeImage({ layers: [100] }), makeImage({ layers: [200], seed: 3 })])
    await registry.push('app', 'multi', index)
    expect(said(registry.log, 'push')).toMatchObject([{ image: 'app:multi', digest: index.digest, blobs: 4 }])
  })

  test('is written in the same way for a pull from the registry', async () => {
    const registry = await startTestRegistry()
    const image = makeImage()
    await registry.push('app', '1', image)
    await registry.get('/v2/app/manifests/1')
    for (const blob of image.blobs.keys()) await registry.get(`/v2/app/blobs/${blob}`)
    await registry.close()
    const [pull] = said(registry.log, 'pull')
    expect(pull).toMatchObject({ listener: 'registry', image: 'app:1' })
    expect(pull).not.toHaveProperty('misses')
  })
})

const noPrefetch = { layers: 0, rangesPerBlob: 1, rangeBytes: 1024 ** 2, rangeMinSize: 1024 ** 3 }
