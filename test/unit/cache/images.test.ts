import { describe, expect, test } from 'vitest'
import { listCachedImages } from '../../../src/cache/images.ts'
import { addManifest, digestFor, emptyRecord, sizesOf } from '../../support/store/records.ts'

const sizes = sizesOf({ index: 1, amd64: 10, arm64: 10, base: 1000, top: 100, single: 5 })

describe('the list of cached images', () => {
  test('has one entry per tag, and counts each stored blob of all its manifests once', () => {
    const record = emptyRecord()
    addManifest(record, 'index', { tags: ['v1', 'latest'], manifests: ['amd64', 'arm64'] })
    addManifest(record, 'amd64', { blobs: ['base', 'top', 'top', 'not held'] })
    addManifest(record, 'arm64', { blobs: ['base'] })
    Object.assign(record.tags.get('v1')!, { pulls: 3, lastPulled: 111, checkedAt: 222 })
    expect(listCachedImages({ all: () => [record] }, sizes)).toEqual([
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
      },
    ])
  })

  test('has images that were only pulled by digest, but no child manifests', () => {
    const record = emptyRecord()
    addManifest(record, 'index', { manifests: ['amd64'] })
    addManifest(record, 'amd64', { blobs: ['top'] })
    Object.assign(addManifest(record, 'single', {}), { pulls: 2, lastPulled: 9 })
    expect(
      listCachedImages({ all: () => [record] }, sizes).map(({ name, bytes, pulls }) => [name, bytes, pulls]),
    ).toEqual(
      expect.arrayContaining([
        [`docker.io/library/app@${digestFor('index')}`, 111, 0],
        [`docker.io/library/app@${digestFor('single')}`, 5, 2],
      ]),
    )
  })

  test('has a tag even if its manifest is also a child of another image', () => {
    const record = emptyRecord()
    addManifest(record, 'index', { tags: ['all'], manifests: ['amd64'] })
    addManifest(record, 'amd64', { tags: ['amd64'] })
    expect(listCachedImages({ all: () => [record] }, sizes).map(({ name }) => name)).toEqual([
      'docker.io/library/app:all',
      'docker.io/library/app:amd64',
    ])
  })

  test('distinguishes equal names of different upstreams, and omits images without stored blobs', () => {
    const records = ['docker.io', 'ghcr.io'].map((host) => {
      const record = emptyRecord('app', host)
      addManifest(record, host === 'ghcr.io' ? 'single' : 'gone', { tags: ['v1'] })
      return record
    })
    expect(listCachedImages({ all: () => records }, sizes).map(({ name }) => name)).toEqual(['ghcr.io/app:v1'])
  })

  test('ends even if damaged records reference each other in a cycle', () => {
    const record = emptyRecord()
    addManifest(record, 'index', { tags: ['v1'], manifests: ['amd64'] })
    addManifest(record, 'amd64', { manifests: ['index'] })
    addManifest(record, 'single', { manifests: ['single'] })
    expect(listCachedImages({ all: () => [record] }, sizes)).toHaveLength(2)
  })
})
