import { describe, expect, test } from 'vitest'
import {
  type EvictionPlan,
  type EvictionRequest,
  removeReferences,
  getRemovedNames,
  planEviction,
} from '../../../src/cache/eviction-plan.ts'
import type { Digest } from '../../../src/oci/digest.ts'
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

/** The plan, in the names that stand for digests. */
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

/** old (used at 10) and new (used at 20) share a base. */
function twoImages(): Case {
  const record = emptyRecord()
  addManifest(record, 'old', { tags: ['old'], blobs: ['base', 'old layer'], usedAt: 10 })
  addManifest(record, 'new', { tags: ['new'], blobs: ['base', 'new layer'], usedAt: 20 })
  return { records: [record], sizes: { old: 1, new: 1, base: 1000, 'old layer': 100, 'new layer': 100 } }
}

/** A list of what refers to a manifest. */
function addList(record: RepositoryRecord, subject: string, usedAt: number): void {
  const digest = digestFor(`list of ${subject}`)
  const page = { query: '', next: undefined, filtersApplied: undefined, isWithoutApi: false, size: 1 }
  record.referrers.set(subject, { subject: digestFor(subject), identity: anonymousIdentity, digest, usedAt, ...page })
}

describe('what is evicted', () => {
  test('is a list of referrers with its image, whenever somebody asked for it', () => {
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

  test('is a list of referrers of an image that is not held by its own age', () => {
    const record = emptyRecord()
    addList(record, 'elsewhere', 10)
    addList(record, 'another', 50)
    const sizes = { 'list of elsewhere': 7, 'list of another': 7 }
    const given = { records: [record], sizes, maxAge: 85 }
    expect(planned(given)).toEqual({ images: [], blobs: ['list of elsewhere'], bytes: 7 })
    expect(planned({ ...given, maxAge: 0, maxSize: 13 })).toMatchObject({ blobs: ['list of elsewhere'] })
  })

  test('is nothing when there are no limits, or they are kept', () => {
    expect(planned(twoImages())).toEqual(nothing)
    expect(planned({ ...twoImages(), maxSize: 1202, maxAge: 100 })).toEqual(nothing)
    expect(planned({ records: [], sizes: {}, maxSize: 1, maxAge: 1, needBytes: 1 })).toEqual(nothing)
  })

  test('is the image least recently used; what it shares with a kept one stays', () => {
    expect(planned({ ...twoImages(), maxSize: 1201 })).toEqual({
      images: ['app:old'],
      blobs: ['old', 'old layer'],
      bytes: 101,
    })
  })

  test('is counted from the latest use of any manifest of an image', () => {
    const given = twoImages()
    addManifest(given.records[0]!, 'index', { tags: ['index'], manifests: ['old'], usedAt: 1 })
    given.records[0]!.tags.delete('old')
    given.records[0]!.manifests.get(digestFor('old'))!.usedAt = 30
    expect(planned({ ...given, sizes: { ...given.sizes, index: 1 }, maxSize: 1202 }).images).toEqual(['app:new'])
  })

  test('begins with what nobody names, the rest stays when that is enough', () => {
    const given = twoImages()
    given.sizes['nobody'] = 50
    expect(planned({ ...given, maxSize: 1202 })).toEqual({ images: [], blobs: ['nobody'], bytes: 50 })
    expect(planned({ ...given, maxSize: 1201 })).toEqual({
      images: ['app:old'],
      blobs: ['nobody', 'old', 'old layer'],
      bytes: 151,
    })
  })

  test('leaves what nobody names while there is room: its upstream may vouch for it again', () => {
    expect(planned({ records: [], sizes: { nobody: 50 }, maxSize: 50, maxAge: 1 })).toEqual(nothing)
  })

  test('are blobs of the image that was pulled last, when it alone is too large; its record stays', () => {
    expect(planned({ ...twoImages(), maxSize: 150 })).toEqual({
      images: ['app:old'],
      blobs: ['old', 'old layer', 'base'],
      bytes: 1101,
    })
    expect(planned({ ...twoImages(), maxSize: 1 }).blobs.toSorted()).toEqual(
      ['base', 'new layer', 'old', 'old layer'].toSorted(),
    )
  })

  test('is never what is in use, nor an image of which a part is in use', () => {
    expect(planned({ ...twoImages(), maxSize: 1201, inUse: ['old layer'] })).toEqual({
      images: [],
      blobs: ['base'],
      bytes: 1000,
    })
    const all = Object.keys(twoImages().sizes)
    expect(planned({ ...twoImages(), maxSize: 1, maxAge: 1, inUse: all })).toEqual(nothing)
    expect(planned({ records: [], sizes: { nobody: 50 }, maxSize: 1, inUse: ['nobody'] })).toEqual(nothing)
  })

  test('are blobs of images in use when nothing else is left, the least recently used and the largest first', () => {
    const given = { ...twoImages(), inUse: ['old', 'new'] }
    expect(planned({ ...given, needBytes: 1 }).blobs).toEqual(['old layer'])
    expect(planned({ ...given, needBytes: 101 }).blobs).toEqual(['old layer', 'base'])
    expect(planned({ ...given, reserveBytes: 9999 })).toEqual({
      images: [],
      blobs: ['old layer', 'base', 'new layer'],
      bytes: 1200,
    })
  })

  test('is every image unused for longer than the age, also the last', () => {
    expect(planned({ ...twoImages(), maxAge: 80 }).images).toEqual(['app:old'])
    expect(planned({ ...twoImages(), maxAge: 79 })).toEqual({
      images: ['app:old', 'app:new'],
      blobs: ['old', 'old layer', 'new', 'base', 'new layer'],
      bytes: 1202,
    })
  })

  test('is nothing more when running time has gone back', () => {
    expect(planned({ ...twoImages(), maxAge: 1, now: 0 })).toEqual(nothing)
  })

  test('is as much as is needed, whatever the size is', () => {
    expect(planned({ ...twoImages(), needBytes: 101 })).toMatchObject({ images: ['app:old'], bytes: 101 })
    expect(planned({ ...twoImages(), maxSize: 1300, needBytes: 102 }).bytes).toBeGreaterThan(101)
  })

  test('is nothing for what could not be written even if everything went', () => {
    expect(planned({ ...twoImages(), needBytes: 1202 }).bytes).toBe(1202)
    expect(planned({ ...twoImages(), needBytes: 1203 })).toEqual(nothing)
    expect(planned({ ...twoImages(), needBytes: 1202, inUse: ['old'] })).toEqual(nothing)
    const limits = { maxSize: 1201, reserveBytes: 1, needBytes: 1203 }
    expect(planned({ ...twoImages(), ...limits })).toMatchObject({ images: ['app:old'], bytes: 101 })
  })

  test('is all there is when the disk lacks even more of its reserve', () => {
    expect(planned({ ...twoImages(), reserveBytes: 9999 }).bytes).toBe(1202)
  })

  test('is a blob confirmed by itself in its turn, and only with its last holder', () => {
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

  test('stays while another repository or upstream names it', () => {
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

  test('leaves records alone whose content is gone already', () => {
    const given = twoImages()
    given.sizes = { new: 1, 'new layer': 100 }
    expect(planned({ ...given, maxSize: 50 })).toEqual({ images: [], blobs: ['new layer'], bytes: 100 })
  })
})

describe('forgetting an image', () => {
  test('takes its tags, its manifest and the children that no kept image names', () => {
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
    // The image took its use from its children: it is as young as they are.
    expect(plan.references).toEqual([])
    record.manifests.get(digestFor('tagged'))!.usedAt = 1
    const { references: gone } = toEnd({
      records: [record],
      sizes: sizesOf({ gone: 1 }),
      limits: { maxSize: 0, maxAge: 45, reserveBytes: 0, needBytes: 0 },
      now: 51,
      isInUse: () => false,
    })
    removeReferences(
      record,
      gone.filter(({ reference: holding }) => holding.digest === digestFor('gone')),
    )
    expect([...record.tags.keys()].toSorted()).toEqual(['child', 'v3'])
    expect(new Set(record.manifests.keys())).toEqual(new Set(['kept', 'shared', 'tagged', 'single'].map(digestFor)))
  })

  test('leaves an image that has been tagged again meanwhile', () => {
    const record = emptyRecord()
    addManifest(record, 'image', { tags: ['v1'], usedAt: 1 })
    const { references: gone } = toEnd({
      records: [record],
      sizes: sizesOf({ image: 1 }),
      limits: { maxSize: 0, maxAge: 1, reserveBytes: 0, needBytes: 0 },
      now: 51,
      isInUse: () => false,
    })
    record.tags.set('v2', { ...record.tags.get('v1')! })
    record.tags.set('v1', { ...record.tags.get('v1')!, digest: digestFor('other') })
    removeReferences(record, gone)
    expect([...record.tags.keys()]).toEqual(['v1', 'v2'])
    expect(record.manifests.has(digestFor('image'))).toBe(true)
  })
})
