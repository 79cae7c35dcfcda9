import { describe, expect, test } from 'vitest'
import { listCachedImages } from '../../../src/cache/images.ts'
import { Repositories } from '../../../src/metadata/repositories.ts'
import { addManifest, createTestRepository, digestFor, setTag, sizesOf } from '../../support/metadata.ts'

const sizes = sizesOf({ index: 1, amd64: 10, arm64: 10, base: 1000, top: 100, single: 5 })

const noPause = () => Promise.resolve()

describe('the list of cached images', () => {
  test('has one entry per tag, and counts each stored blob of all its manifests once', async () => {
    const repository = createTestRepository()
    addManifest(repository, 'index', { tags: ['v1', 'latest'], manifests: ['amd64', 'arm64'] })
    addManifest(repository, 'amd64', { blobs: ['base', 'top', 'top', 'not held'] })
    addManifest(repository, 'arm64', { blobs: ['base'] })
    repository.apply(setTag('v1', digestFor('index'), { pulls: 3, lastPulled: 111, updatedAt: 222 }))
    expect(await listCachedImages({ all: () => [repository.current] }, sizes, noPause)).toEqual([
      expect.objectContaining({
        name: 'docker.io/library/app:latest',
        bytes: 1121,
        lastPulled: undefined,
        checkedAt: undefined,
      }),
      {
        name: 'docker.io/library/app:v1',
        host: 'docker.io',
        repository: 'library/app',
        tag: 'v1',
        digest: digestFor('index'),
        bytes: 1121,
        pulls: 3,
        lastPulled: 111,
        checkedAt: 222,
        usedAt: 0,
      },
    ])
  })

  test('has images that were only pulled by digest, but no child manifests', async () => {
    const repository = createTestRepository()
    addManifest(repository, 'index', { manifests: ['amd64'] })
    addManifest(repository, 'amd64', { blobs: ['top'] })
    addManifest(repository, 'single', { pulls: 2, lastPulled: 9 })
    expect(
      (await listCachedImages({ all: () => [repository.current] }, sizes, noPause)).map(({ name, bytes, pulls }) => [
        name,
        bytes,
        pulls,
      ]),
    ).toEqual(
      expect.arrayContaining([
        [`docker.io/library/app@${digestFor('index')}`, 111, 0],
        [`docker.io/library/app@${digestFor('single')}`, 5, 2],
      ]),
    )
  })

  test('has a tag even if its manifest is also a child of another image', async () => {
    const repository = createTestRepository()
    addManifest(repository, 'index', { tags: ['all'], manifests: ['amd64'] })
    addManifest(repository, 'amd64', { tags: ['amd64'] })
    expect(
      (await listCachedImages({ all: () => [repository.current] }, sizes, noPause)).map(({ name }) => name),
    ).toEqual(['docker.io/library/app:all', 'docker.io/library/app:amd64'])
  })

  test('distinguishes equal names of different upstreams, and omits images without stored blobs', async () => {
    const repositories = new Repositories(false)
    for (const host of ['docker.io', 'ghcr.io']) {
      const repository = createTestRepository({ name: 'app', host }, repositories)
      addManifest(repository, host === 'ghcr.io' ? 'single' : 'gone', { tags: ['v1'] })
    }
    expect((await listCachedImages(repositories, sizes, noPause)).map(({ name }) => name)).toEqual(['ghcr.io/app:v1'])
  })

  test('ends even if damaged records reference each other in a cycle', async () => {
    const repository = createTestRepository()
    addManifest(repository, 'index', { tags: ['v1'], manifests: ['amd64'] })
    addManifest(repository, 'amd64', { manifests: ['index'] })
    addManifest(repository, 'single', { manifests: ['single'] })
    expect(await listCachedImages({ all: () => [repository.current] }, sizes, noPause)).toHaveLength(2)
  })
})
