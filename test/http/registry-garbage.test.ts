import { describe, expect, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import type { RemovalReport } from '../../src/admin/api.ts'
import { expectContent } from '../support/expect-content.ts'
import { makeImage, makeIndex } from '../support/images.ts'
import { noise } from '../support/noise.ts'
import { jsonOf, startTestRegistry, type TestRegistry } from '../support/registry.ts'

const image = makeImage()

async function change(registry: TestRegistry, what: string, body: object): Promise<RemovalReport> {
  const answer = await registry.post(`/api/registry/${what}`, { dryRun: false, ...body })
  expect(answer.status).toBe(200)
  return jsonOf(answer)
}

const gc = (registry: TestRegistry, body: object = {}) => change(registry, 'gc', { untagged: false, grace: 0, ...body })

describe('garbage collection', () => {
  test('removes blobs that no manifest names, once their grace period is over', async () => {
    const registry = await startTestRegistry()
    await registry.push('app', 'v1', image)
    const loose = await registry.pushBlob('app', noise(5000, 1))
    expect(await gc(registry, { grace: 3_600_000 })).toMatchObject({ blobs: 0, bytes: 0 })
    expect(await gc(registry, { dryRun: true })).toMatchObject({ blobs: 1, bytes: 5000 })
    expect((await registry.get(`/v2/app/blobs/${loose}`)).status).toBe(200)
    expect(await gc(registry)).toMatchObject({ blobs: 1, bytes: 5000 })
    expect((await registry.get(`/v2/app/blobs/${loose}`)).status).toBe(404)
    expectContent(await registry.get('/v2/app/manifests/v1'), image.digest)
    expectContent(await registry.get(`/v2/app/blobs/${image.layers[0]}`), image.layers[0]!)
  })

  test('keeps bytes that another repository uses', async () => {
    const registry = await startTestRegistry()
    await registry.push('app', 'v1', image)
    await registry.push('other', 'v1', image)
    await registry.ask('DELETE', `/v2/app/manifests/${image.digest}`)
    expect(await gc(registry)).toMatchObject({ blobs: 0 })
    expect((await registry.get(`/v2/app/blobs/${image.layers[0]}`)).status).toBe(404)
    expectContent(await registry.get(`/v2/other/blobs/${image.layers[0]}`), image.layers[0]!)
  })

  test('removes untagged images on request only, never the children or signatures of tagged ones', async () => {
    const registry = await startTestRegistry()
    const index = makeIndex([image, makeImage({ seed: 2 })])
    await registry.push('app', 'multi', index)
    const signature = makeImage({
      seed: 3,
      manifest: { subject: { mediaType: index.mediaType, digest: index.digest, size: index.bytes.length } },
    })
    await registry.push('app', signature.digest, signature)
    const old = makeImage({ seed: 4 })
    await registry.push('app', old.digest, old)
    expect((await gc(registry)).images).toEqual([])
    expect((await gc(registry, { untagged: true })).images).toEqual([`app@${old.digest}`])
    for (const digest of [index.digest, image.digest, signature.digest])
      expect((await registry.get(`/v2/app/manifests/${digest}`)).status).toBe(200)
  })

  test('never removes content that a push refers to', async () => {
    const registry = await startTestRegistry()
    const over = new AbortController()
    let rounds = 0
    const collecting = (async () => {
      while (!over.signal.aborted) {
        await gc(registry, { grace: 2000, untagged: true })
        rounds += 1
      }
    })()
    const push = async (worker: number) => {
      for (let at = 0; at < 25; at++) {
        const one = makeImage({ layers: [100], seed: worker * 1000 + at })
        await registry.push(`app${worker % 2}`, `w${worker}`, one)
      }
    }
    await Promise.all([0, 1, 2, 3].map(push))
    over.abort()
    await collecting
    expect(rounds).toBeGreaterThan(3)
    for (const worker of [0, 1, 2, 3]) {
      const last = makeImage({ layers: [100], seed: worker * 1000 + 24 })
      expectContent(await registry.get(`/v2/app${worker % 2}/manifests/w${worker}`), last.digest)
      for (const layer of last.layers) expectContent(await registry.get(`/v2/app${worker % 2}/blobs/${layer}`), layer)
    }
  })
})

describe('removing by name', () => {
  test('removes the image of a tag when nothing else refers to it', async () => {
    const registry = await startTestRegistry()
    await registry.push('app', 'v1', image)
    await registry.pushManifest('app', 'v2', image)
    expect((await change(registry, 'rm', { names: ['app:v1'] })).images).toEqual(['app:v1'])
    expectContent(await registry.get('/v2/app/manifests/v2'), image.digest)
    const preview = await change(registry, 'rm', { names: ['app:v2'], dryRun: true })
    expect(preview.images).toEqual(['app:v2'])
    const removal = await change(registry, 'rm', { names: ['app:v2', 'app:none'] })
    expect(removal).toEqual({ ...preview, unknown: ['app:none'] })
    expect((await registry.get(`/v2/app/manifests/${image.digest}`)).status).toBe(404)
    await gc(registry)
    expect((await registry.status()).storage.pushedBytes).toBe(0)
  })

  test('removes a repository, a digest in it, a digest anywhere', async () => {
    const registry = await startTestRegistry()
    for (const name of ['a', 'b', 'c']) await registry.push(name, 'v1', image)
    await change(registry, 'rm', { names: ['a'] })
    expect((await registry.get('/v2/a/manifests/v1')).status).toBe(404)
    await change(registry, 'rm', { names: [`b@${image.digest}`] })
    expect((await registry.get('/v2/b/manifests/v1')).status).toBe(404)
    expectContent(await registry.get('/v2/c/manifests/v1'), image.digest)
    await change(registry, 'rm', { names: [image.digest] })
    expect((await registry.get('/v2/c/manifests/v1')).status).toBe(404)
  })
})

describe('a removed image is counted once', () => {
  const index = makeIndex([image, makeImage({ seed: 2 })])
  const dangling = makeIndex([makeImage({ seed: 5 }), makeImage({ seed: 6 })])

  test.each(['prune', 'rm', 'gc'])(
    'by %s, also with the manifests of its index, in a preview and in fact',
    async (by) => {
      const registry = await startTestRegistry()
      await registry.push('app', 'multi', index)
      await registry.push('app', dangling.digest, dangling)
      await new Promise((resolve) => setTimeout(resolve, 5))
      const how = {
        prune: { body: { olderThan: 0, keep: 0 }, images: ['app:multi'] },
        rm: { body: { names: ['app'] }, images: ['app:multi', `app@${dangling.digest}`] },
        gc: { body: { untagged: true, grace: 0 }, images: [`app@${dangling.digest}`] },
      }[by]!
      const preview = await change(registry, by, { ...how.body, dryRun: true })
      expect(preview.images).toEqual(how.images)
      expect(await change(registry, by, how.body)).toEqual(preview)
    },
  )
})

describe('pruning', () => {
  test('removes old tags beyond the newest ones, with their images and signatures', async () => {
    const registry = await startTestRegistry()
    const images = [0, 1, 2, 3].map((seed) => makeImage({ seed }))
    for (const [at, one] of images.entries()) {
      await registry.push('app', `build-${at}`, one)
      await registry.push('other', `build-${at}`, one)
    }
    const signed = { mediaType: images[0]!.mediaType, digest: images[0]!.digest, size: images[0]!.bytes.length }
    const signature = makeImage({ seed: 9, manifest: { subject: signed } })
    await registry.push('app', signature.digest, signature)
    const options = { olderThan: 0, keep: 2, repository: 'app' }
    await new Promise((resolve) => setTimeout(resolve, 5))
    const preview = await change(registry, 'prune', { ...options, dryRun: true })
    const removal = await change(registry, 'prune', options)
    expect(removal).toEqual(preview)
    // Checks that signatures are removed too, although they are not listed as images.
    expect(removal.images).toEqual(['app:build-0', 'app:build-1'])
    expect((await registry.get(`/v2/app/manifests/${signature.digest}`)).status).toBe(404)
    expect(jsonOf(await registry.get('/v2/app/tags/list'))).toEqual({ name: 'app', tags: ['build-2', 'build-3'] })
    expect(jsonOf<{ tags: string[] }>(await registry.get('/v2/other/tags/list')).tags.length).toBe(4)
  })

  test('keeps young tags, however many', async () => {
    const registry = await startTestRegistry()
    await registry.push('app', 'v1', image)
    expect((await change(registry, 'prune', { olderThan: 60_000, keep: 0 })).images).toEqual([])
    expect((await change(registry, 'prune', { olderThan: 0, keep: 0, repository: 'none' })).unknown).toEqual(['none'])
  })
})

test('a blob that was pushed and deleted can be pushed again', async () => {
  const registry = await startTestRegistry()
  const body = noise(1000, 7)
  for (let at = 0; at < 3; at++) {
    const digest = await registry.pushBlob('app', body)
    expectContent(await registry.get(`/v2/app/blobs/${digest}`), computeDigest(body))
    expect((await registry.ask('DELETE', `/v2/app/blobs/${digest}`)).status).toBe(202)
  }
})
