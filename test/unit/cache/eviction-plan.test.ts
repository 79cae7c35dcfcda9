import { describe, expect, test } from 'vitest'
import {
  type EvictionPlan,
  type EvictionRequest,
  removeReferences,
  getRemovedNames,
  type ReferenceRemoval,
  planEviction,
} from '../../../src/cache/eviction-plan.ts'
import { Repositories } from '../../../src/metadata/repositories.ts'
import type { Digest } from '../../../src/oci/reference.ts'
import { anonymousIdentity } from '../../../src/oci/registry.ts'
import {
  addManifest,
  createTestRepository,
  digestFor,
  setTag,
  sizesOf,
  type TestRepository,
  useManifest,
} from '../../support/metadata.ts'

interface Case {
  repositories: Repositories
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
    repositories: given.repositories.all(),
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
function twoImages(): Case & { app: TestRepository } {
  const repositories = new Repositories(false)
  const app = createTestRepository({}, repositories)
  addManifest(app, 'old', { tags: ['old'], blobs: ['base', 'old layer'], usedAt: 10 })
  addManifest(app, 'new', { tags: ['new'], blobs: ['base', 'new layer'], usedAt: 20 })
  const sizes = { old: 1, new: 1, base: 1000, 'old layer': 100, 'new layer': 100 }
  return { repositories, app, sizes }
}

/** Adds a list of the referrers of a manifest. */
function addList(repository: TestRepository, subject: string, usedAt: number): void {
  const digest = digestFor(`list of ${subject}`)
  const page = { query: '', next: undefined, filtersApplied: undefined, isWithoutApi: false, size: 1 }
  const identity = anonymousIdentity
  repository.apply({ op: 'referrers', subject: digestFor(subject), identity, digest, usedAt, ...page })
}

describe('an eviction plan', () => {
  test('evicts a list of referrers with its image, whenever the list was requested', () => {
    const { repositories, app, sizes } = twoImages()
    addList(app, 'old', 90)
    addList(app, 'new', 5)
    const given = { repositories, sizes: { ...sizes, 'list of old': 7, 'list of new': 7 }, maxAge: 85 }
    expect(planned(given)).toEqual({
      images: ['app:old'],
      blobs: ['old', 'old layer', 'list of old'],
      bytes: 108,
    })
    const plan = toEnd({
      repositories: repositories.all(),
      sizes: sizesOf(given.sizes),
      limits: { maxSize: 0, maxAge: 85, reserveBytes: 0, needBytes: 0 },
      now: 100,
      isInUse: () => false,
    })
    app.apply(...removeReferences(app.current, plan.references))
    expect([...app.current.referrers.values()].map(({ subject }) => subject)).toEqual([digestFor('new')])
  })

  test('evicts a list of referrers by its own age when its image has no record', () => {
    const repositories = new Repositories(false)
    const app = createTestRepository({}, repositories)
    addList(app, 'elsewhere', 10)
    addList(app, 'another', 50)
    const sizes = { 'list of elsewhere': 7, 'list of another': 7 }
    const given = { repositories, sizes, maxAge: 85 }
    expect(planned(given)).toEqual({ images: [], blobs: ['list of elsewhere'], bytes: 7 })
    expect(planned({ ...given, maxAge: 0, maxSize: 13 })).toMatchObject({ blobs: ['list of elsewhere'] })
  })

  test('evicts nothing without limits, or within them', () => {
    expect(planned(twoImages())).toEqual(nothing)
    expect(planned({ ...twoImages(), maxSize: 1202, maxAge: 100 })).toEqual(nothing)
    expect(planned({ repositories: new Repositories(false), sizes: {}, maxSize: 1, maxAge: 1, needBytes: 1 })).toEqual(
      nothing,
    )
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
    addManifest(given.app, 'index', { tags: ['index'], manifests: ['old'], usedAt: 1 })
    given.app.apply({ op: 'untag', tag: 'old' })
    useManifest(given.app, 'old', 30)
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
    expect(planned({ repositories: new Repositories(false), sizes: { nobody: 50 }, maxSize: 50, maxAge: 1 })).toEqual(
      nothing,
    )
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
    expect(
      planned({ repositories: new Repositories(false), sizes: { nobody: 50 }, maxSize: 1, inUse: ['nobody'] }),
    ).toEqual(nothing)
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
    const other = createTestRepository({ name: 'library/other' }, given.repositories)
    const blob = { op: 'blob', size: 7, identity: anonymousIdentity } as const
    other.apply({ ...blob, digest: digestFor('alone'), usedAt: 5 })
    other.apply({ ...blob, digest: digestFor('old layer'), usedAt: 15 })
    given.sizes['alone'] = 7
    expect(planned({ ...given, needBytes: 1 })).toEqual({ images: [], blobs: ['alone'], bytes: 7 })
    expect(planned({ ...given, needBytes: 8 })).toEqual({ images: ['app:old'], blobs: ['alone', 'old'], bytes: 8 })
    expect(planned({ ...given, needBytes: 9 }).blobs).toEqual(['alone', 'old', 'old layer'])
  })

  test('keeps a blob that another repository or upstream references', () => {
    const given = twoImages()
    const other = createTestRepository({ host: 'ghcr.io' }, given.repositories)
    addManifest(other, 'old', { tags: ['v1'], blobs: ['base', 'old layer'], usedAt: 50 })
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
    const repository = createTestRepository()
    addManifest(repository, 'gone', { tags: ['v1', 'v2'], manifests: ['shared', 'own', 'tagged'], usedAt: 1 })
    addManifest(repository, 'kept', { tags: ['v3'], manifests: ['shared'], usedAt: 50 })
    addManifest(repository, 'shared', {})
    addManifest(repository, 'own', { manifests: ['below'] })
    addManifest(repository, 'below', {})
    addManifest(repository, 'tagged', { tags: ['child'], usedAt: 50 })
    addManifest(repository, 'single', { usedAt: 50 })
    const plan = toEnd({
      repositories: [repository.current],
      sizes: sizesOf({ gone: 1 }),
      limits: { maxSize: 0, maxAge: 45, reserveBytes: 0, needBytes: 0 },
      now: 51,
      isInUse: () => false,
    })
    // Keeps the image, because it has the latest use of its children.
    expect(plan.references).toEqual([])
    useManifest(repository, 'tagged', 1)
    const { references: removals } = toEnd({
      repositories: [repository.current],
      sizes: sizesOf({ gone: 1 }),
      limits: { maxSize: 0, maxAge: 45, reserveBytes: 0, needBytes: 0 },
      now: 51,
      isInUse: () => false,
    })
    const isGone = ({ reference }: ReferenceRemoval) => reference.digest === digestFor('gone')
    repository.apply(...removeReferences(repository.current, removals.filter(isGone)))
    expect([...repository.current.tags.keys()].toSorted()).toEqual(['child', 'v3'])
    expect(new Set(repository.current.manifests.keys())).toEqual(
      new Set(['kept', 'shared', 'tagged', 'single'].map(digestFor)),
    )
  })

  test('keeps an image that was tagged again meanwhile', () => {
    const repository = createTestRepository()
    addManifest(repository, 'image', { tags: ['v1'], usedAt: 1 })
    const { references: removals } = toEnd({
      repositories: [repository.current],
      sizes: sizesOf({ image: 1 }),
      limits: { maxSize: 0, maxAge: 1, reserveBytes: 0, needBytes: 0 },
      now: 51,
      isInUse: () => false,
    })
    repository.apply(setTag('v2', digestFor('image')), setTag('v1', digestFor('other')))
    repository.apply(...removeReferences(repository.current, removals))
    expect([...repository.current.tags.keys()]).toEqual(['v1', 'v2'])
    expect(repository.current.manifests.has(digestFor('image'))).toBe(true)
  })
})
