import { describe, expect, test } from 'vitest'
import {
  type EvictionPlan,
  type EvictionRequest,
  removeReferences,
  getRemovedNames,
  planEviction,
} from '../../../src/cache/eviction-plan.ts'
import type { Digest } from '../../../src/oci/reference.ts'
import { anonymousIdentity } from '../../../src/oci/registry.ts'
import type { RepositoryRecord } from '../../../src/store/records.ts'
import { addManifest, digestFor, emptyRecord, sizesOf } from '../../support/store/records.ts'

interface Case {
  records: RepositoryRecord[]
  sizes: Record<string, number>
  maxSize?: number
  maxAge?: number
  reserveBytes?: number
  needBytes?: number
  now?: number
  inUse?: string[]
}

/** Returns the plan, with names instead of digests. */
function planned(given: Case): { images: string[]; blobs: string[]; bytes: number } {
  const { maxSize = 0, maxAge = 0, reserveBytes = 0, needBytes = 0, now = 100 } = given
  const inUse = new Set((given.inUse ?? []).map(digestFor))
  const plan = toEnd({
    records: given.records,
    sizes: sizesOf(given.sizes),
    limits: { maxSize, maxAge, reserveBytes, needBytes },
    now,
    isInUse: (digest) => inUse.has(digest),
  })
  const names = new Map<Digest, string>(Object.keys(given.sizes).map((name) => [digestFor(name), name]))
  return {
    images: plan.references.flatMap(getRemovedNames).map((name) => name.replace('docker.io/library/', '')),
    blobs: plan.blobs.map((digest) => names.get(digest)!),
    bytes: plan.bytes,
  }
}

function toEnd(request: EvictionRequest): EvictionPlan {
  const steps = planEviction(request)
  for (;;) {
    const step = steps.next()
    if (step.done) return step.value
  }
}

const nothing = { images: [], blobs: [], bytes: 0 }

/** Returns images old (used at 10) and new (used at 20), which share a base. */
function twoImages(): Case {
  const record = emptyRecord()
  addManifest(record, 'old', { tags: ['old'], blobs: ['base', 'old layer'], usedAt: 10 })
  addManifest(record, 'new', { tags: ['new'], blobs: ['base', 'new layer'], usedAt: 20 })
  return { records: [record], sizes: { old: 1, new: 1, base: 1000, 'old layer': 100, 'new layer': 100 } }
}

/** Adds a list of the referrers of a manifest. */
function addList(record: RepositoryRecord, subject: string, usedAt: number): void {
  const digest = digestFor(`list of ${subject}`)
  const page = { query: '', next: undefined, filtersApplied: undefined, isWithoutApi: false, size: 1 }
  record.referrers.set(subject, { subject: digestFor(subject), identity: anonymousIdentity, digest, usedAt, ...page })
}

describe('an eviction plan', () => {
  test('evicts a list of referrers with its image, whenever the list was requested', () => {
    const { records, sizes } = twoImages()
    const [record] = records as [RepositoryRecord]
    addList(record, 'old', 90)
    addList(record, 'new', 5)
    const given = { records, sizes: { ...sizes, 'list of old': 7, 'list of new': 7 }, maxAge: 85 }
    expect(planned(given)).toEqual({
      images: ['app:old'],
      blobs: ['old', 'old layer', 'list of old'],
      bytes: 108,
    })
    const plan = toEnd({
      records,
      sizes: sizesOf(given.sizes),
      limits: { maxSize: 0, maxAge: 85, reserveBytes: 0, needBytes: 0 },
      now: 100,
      isInUse: () => false,
    })
    removeReferences(record, plan.references)
    expect([...record.referrers.keys()]).toEqual(['new'])
  })

  test('evicts a list of referrers by its own age when its image has no record', () => {
    const record = emptyRecord()
    addList(record, 'elsewhere', 10)
    addList(record, 'another', 50)
    const sizes = { 'list of elsewhere': 7, 'list of another': 7 }
    const given = { records: [record], sizes, maxAge: 85 }
    expect(planned(given)).toEqual({ images: [], blobs: ['list of elsewhere'], bytes: 7 })
    expect(planned({ ...given, maxAge: 0, maxSize: 13 })).toMatchObject({ blobs: ['list of elsewhere'] })
  })

  test('evicts nothing without limits, or within them', () => {
    expect(planned(twoImages())).toEqual(nothing)
    expect(planned({ ...twoImages(), maxSize: 1202, maxAge: 100 })).toEqual(nothing)
    expect(planned({ records: [], sizes: {}, maxSize: 1, maxAge: 1, needBytes: 1 })).toEqual(nothing)
  })

  test('evicts the least recently used image, without the blobs that it shares with another', () => {
    expect(planned({ ...twoImages(), maxSize: 1201 })).toEqual({
      images: ['app:old'],
      blobs: ['old', 'old layer'],
      bytes: 101,
    })
  })

  test('takes the latest use of any manifest as the use of its image', () => {
    const given = twoImages()
    addManifest(given.records[0]!, 'index', { tags: ['index'], manifests: ['old'], usedAt: 1 })
    given.records[0]!.tags.delete('old')
    given.records[0]!.manifests.get(digestFor('old'))!.usedAt = 30
    expect(planned({ ...given, sizes: { ...given.sizes, index: 1 }, maxSize: 1202 }).images).toEqual(['app:new'])
  })

  test('evicts unreferenced blobs first, and nothing else when they are enough', () => {
    const given = twoImages()
    given.sizes['nobody'] = 50
    expect(planned({ ...given, maxSize: 1202 })).toEqual({ images: [], blobs: ['nobody'], bytes: 50 })
    expect(planned({ ...given, maxSize: 1201 })).toEqual({
      images: ['app:old'],
      blobs: ['nobody', 'old', 'old layer'],
      bytes: 151,
    })
  })

  test('keeps unreferenced blobs while there is room, because a new grant may reference them again', () => {
    expect(planned({ records: [], sizes: { nobody: 50 }, maxSize: 50, maxAge: 1 })).toEqual(nothing)
  })

  test('evicts blobs of the most recently pulled image, but not its record, when that image alone is too large', () => {
    expect(planned({ ...twoImages(), maxSize: 150 })).toEqual({
      images: ['app:old'],
      blobs: ['old', 'old layer', 'base'],
      bytes: 1101,
    })
    expect(planned({ ...twoImages(), maxSize: 1 }).blobs.toSorted()).toEqual(
      ['base', 'new layer', 'old', 'old layer'].toSorted(),
    )
  })

  test('evicts neither a blob in use, nor an image with a blob in use', () => {
    expect(planned({ ...twoImages(), maxSize: 1201, inUse: ['old layer'] })).toEqual({
      images: [],
      blobs: ['base'],
      bytes: 1000,
    })
    const all = Object.keys(twoImages().sizes)
    expect(planned({ ...twoImages(), maxSize: 1, maxAge: 1, inUse: all })).toEqual(nothing)
    expect(planned({ records: [], sizes: { nobody: 50 }, maxSize: 1, inUse: ['nobody'] })).toEqual(nothing)
  })

  test('evicts unused blobs of images in use at last, least recently used and largest first', () => {
    const given = { ...twoImages(), inUse: ['old', 'new'] }
    expect(planned({ ...given, needBytes: 1 }).blobs).toEqual(['old layer'])
    expect(planned({ ...given, needBytes: 101 }).blobs).toEqual(['old layer', 'base'])
    expect(planned({ ...given, reserveBytes: 9999 })).toEqual({
      images: [],
      blobs: ['old layer', 'base', 'new layer'],
      bytes: 1200,
    })
  })

  test('evicts every image that is older than the maximum age, even the last one', () => {
    expect(planned({ ...twoImages(), maxAge: 80 }).images).toEqual(['app:old'])
    expect(planned({ ...twoImages(), maxAge: 79 })).toEqual({
      images: ['app:old', 'app:new'],
      blobs: ['old', 'old layer', 'new', 'base', 'new layer'],
      bytes: 1202,
    })
  })

  test('evicts nothing when the running time has gone back', () => {
    expect(planned({ ...twoImages(), maxAge: 1, now: 0 })).toEqual(nothing)
  })

  test('evicts as much as a write needs, whatever the maximum size is', () => {
    expect(planned({ ...twoImages(), needBytes: 101 })).toMatchObject({ images: ['app:old'], bytes: 101 })
    expect(planned({ ...twoImages(), maxSize: 1300, needBytes: 102 }).bytes).toBeGreaterThan(101)
  })

  test('evicts nothing for a write that would not fit into an empty store', () => {
    expect(planned({ ...twoImages(), needBytes: 1202 }).bytes).toBe(1202)
    expect(planned({ ...twoImages(), needBytes: 1203 })).toEqual(nothing)
    expect(planned({ ...twoImages(), needBytes: 1202, inUse: ['old'] })).toEqual(nothing)
    const limits = { maxSize: 1201, reserveBytes: 1, needBytes: 1203 }
    expect(planned({ ...twoImages(), ...limits })).toMatchObject({ images: ['app:old'], bytes: 101 })
  })

  test('evicts everything when the disk lacks even more of its reserve', () => {
    expect(planned({ ...twoImages(), reserveBytes: 9999 }).bytes).toBe(1202)
  })

  test('evicts a blob with a grant of its own by age, and only with its last reference', () => {
    const given = twoImages()
    const other = emptyRecord('library/other')
    other.blobs.set(digestFor('alone'), { size: 7, identity: anonymousIdentity, usedAt: 5 })
    other.blobs.set(digestFor('old layer'), { size: 7, identity: anonymousIdentity, usedAt: 15 })
    given.records.push(other)
    given.sizes['alone'] = 7
    expect(planned({ ...given, needBytes: 1 })).toEqual({ images: [], blobs: ['alone'], bytes: 7 })
    expect(planned({ ...given, needBytes: 8 })).toEqual({ images: ['app:old'], blobs: ['alone', 'old'], bytes: 8 })
    expect(planned({ ...given, needBytes: 9 }).blobs).toEqual(['alone', 'old', 'old layer'])
  })

  test('keeps a blob that another repository or upstream references', () => {
    const given = twoImages()
    const other = emptyRecord('library/app', 'ghcr.io')
    addManifest(other, 'old', { tags: ['v1'], blobs: ['base', 'old layer'], usedAt: 50 })
    given.records.push(other)
    expect(planned({ ...given, maxAge: 60 })).toEqual({
      images: ['app:old', 'app:new'],
      blobs: ['new', 'new layer'],
      bytes: 101,
    })
  })

  test('keeps the records of content that was evicted before', () => {
    const given = twoImages()
    given.sizes = { new: 1, 'new layer': 100 }
    expect(planned({ ...given, maxSize: 50 })).toEqual({ images: [], blobs: ['new layer'], bytes: 100 })
  })
})

describe("the removal of an image's references", () => {
  test('removes its tags, its manifest, and the child manifests that no other image names', () => {
    const record = emptyRecord()
    addManifest(record, 'gone', { tags: ['v1', 'v2'], manifests: ['shared', 'own', 'tagged'], usedAt: 1 })
    addManifest(record, 'kept', { tags: ['v3'], manifests: ['shared'], usedAt: 50 })
    addManifest(record, 'shared', {})
    addManifest(record, 'own', { manifests: ['below'] })
    addManifest(record, 'below', {})
    addManifest(record, 'tagged', { tags: ['child'], usedAt: 50 })
    addManifest(record, 'single', { usedAt: 50 })
    const plan = toEnd({
      records: [record],
      sizes: sizesOf({ gone: 1 }),
      limits: { maxSize: 0, maxAge: 45, reserveBytes: 0, needBytes: 0 },
      now: 51,
      isInUse: () => false,
    })
    // Keeps the image, because it has the latest use of its children.
    expect(plan.references).toEqual([])
    record.manifests.get(digestFor('tagged'))!.usedAt = 1
    const { references: removals } = toEnd({
      records: [record],
      sizes: sizesOf({ gone: 1 }),
      limits: { maxSize: 0, maxAge: 45, reserveBytes: 0, needBytes: 0 },
      now: 51,
      isInUse: () => false,
    })
    removeReferences(
      record,
      removals.filter(({ reference }) => reference.digest === digestFor('gone')),
    )
    expect([...record.tags.keys()].toSorted()).toEqual(['child', 'v3'])
    expect(new Set(record.manifests.keys())).toEqual(new Set(['kept', 'shared', 'tagged', 'single'].map(digestFor)))
  })

  test('keeps an image that was tagged again meanwhile', () => {
    const record = emptyRecord()
    addManifest(record, 'image', { tags: ['v1'], usedAt: 1 })
    const { references: removals } = toEnd({
      records: [record],
      sizes: sizesOf({ image: 1 }),
      limits: { maxSize: 0, maxAge: 1, reserveBytes: 0, needBytes: 0 },
      now: 51,
      isInUse: () => false,
    })
    record.tags.set('v2', { ...record.tags.get('v1')! })
    record.tags.set('v1', { ...record.tags.get('v1')!, digest: digestFor('other') })
    removeReferences(record, removals)
    expect([...record.tags.keys()]).toEqual(['v1', 'v2'])
    expect(record.manifests.has(digestFor('image'))).toBe(true)
  })
})
