import type { Operation, ReferrersPage, Repository } from '../metadata/metadata.ts'
import { type Digest, parseDigest } from '../oci/reference.ts'
import { type ImageReference, type References, toImageName, collectReferences } from './images.ts'

export interface EvictionRequest {
  readonly repositories: Iterable<Repository>
  /** Bytes of each stored blob. */
  readonly sizes: ReadonlyMap<Digest, number>
  readonly limits: EvictionLimits
  /** Running time, ms. */
  readonly now: number
  /** Reports whether a blob is being downloaded or sent. Such a blob stays. */
  readonly isInUse: (digest: Digest) => boolean
}

export interface EvictionLimits {
  /** Bytes; 0 = no limit. */
  readonly maxSize: number
  /** Running time ms; 0 = keep. */
  readonly maxAge: number
  /** Bytes that the disk lacks of its reserve. As many of them as possible are freed, whatever `maxSize` is. */
  readonly reserveBytes: number
  /** Bytes to free for a write, the reserve included. All of them are freed, or none if that is impossible. */
  readonly needBytes: number
}

/** Sets the steps between two pauses. */
const pauseEvery = 2048

/**
 * Plans an eviction in small steps; the caller may pause between two of them. The order:
 *
 * 1. images that were not used for `maxAge`;
 * 2. while the store is too large, blobs that no repository references;
 * 3. whole images, least recently pulled first;
 * 4. single blobs of the remaining images: those in use, and the most recently pulled one.
 */
export function* planEviction(request: EvictionRequest): Generator<undefined, EvictionPlan> {
  const { repositories, sizes, limits, now, isInUse } = request
  let total = 0
  let removable = 0
  let steps = 0
  for (const [digest, size] of sizes) {
    total += size
    if (limits.needBytes > 0 && !isInUse(digest)) removable += size
    if (++steps % pauseEvery === 0) yield
  }
  const needed = limits.needBytes <= removable ? limits.needBytes : 0
  const goal = Math.max(limits.maxSize > 0 ? total - limits.maxSize : 0, limits.reserveBytes, needed)
  // The references of a large store take time and memory, and most of the time there is nothing to evict.
  if (goal === 0 && !(yield* mayHaveExpired(request))) return { references: [], blobs: [], bytes: 0 }
  const references = yield* collectReferences(repositories)
  const planner = new EvictionPlanner(references, sizes, isInUse)
  const isEnough = () => planner.bytes >= goal
  const unreferenced: Digest[] = []
  for (const digest of sizes.keys()) {
    if (!references.counts.has(digest)) unreferenced.push(digest)
    if (++steps % pauseEvery === 0) yield
  }

  yield
  const byAge = references.all.toSorted((a, b) => a.usedAt - b.usedAt)
  const newest = byAge.findLast(({ kind }) => kind === 'image')
  yield
  const kept: ImageReference[] = []
  for (const reference of byAge) {
    const isExpired = limits.maxAge > 0 && now - reference.usedAt > limits.maxAge
    if (isExpired && !hasContent(reference, isInUse))
      planner.removeReference({ reference, tags: reference.tags, isWhole: true })
    else kept.push(reference)
    if (++steps % pauseEvery === 0) yield
  }
  for (const digest of unreferenced) {
    if (isEnough()) return planner.plan()
    planner.drop(digest)
  }
  yield
  const last: ImageReference[] = []
  for (const reference of kept) {
    if (isEnough()) return planner.plan()
    if (reference === newest || hasContent(reference, isInUse)) last.push(reference)
    else if (hasContent(reference, (digest) => sizes.has(digest)))
      planner.removeReference({ reference, tags: reference.tags, isWhole: true })
    if (++steps % pauseEvery === 0) yield
  }
  for (const digest of orderBlobs(last, sizes)) {
    if (isEnough()) break
    planner.drop(digest)
  }
  return planner.plan()
}

/** Reports whether an entry was not used for `maxAge`, except a manifest that a recently used one names. */
function* mayHaveExpired({ repositories, limits, now }: EvictionRequest): Generator<undefined, boolean> {
  if (limits.maxAge === 0) return false
  const isOld = (entry: { readonly usedAt: number } | undefined) => !entry || now - entry.usedAt > limits.maxAge
  let steps = 0
  for (const repository of repositories) {
    const { manifests, blobs, referrers } = repository
    for (const [digest, manifest] of manifests) {
      if (isOld(manifest) && repository.getParents(digest).every((parent) => isOld(manifests.get(parent)))) return true
      if (++steps % pauseEvery === 0) yield
    }
    for (const entries of [blobs, referrers])
      for (const entry of entries.values()) {
        if (isOld(entry)) return true
        if (++steps % pauseEvery === 0) yield
      }
  }
  return false
}

function hasContent({ contents }: ImageReference, test: (digest: Digest) => boolean): boolean {
  for (const digest of contents) if (test(digest)) return true
  return false
}

/** Returns the blobs of these images in the order of eviction: least recently pulled, then largest; manifests, which are small, last. */
function orderBlobs(references: readonly ImageReference[], sizes: ReadonlyMap<Digest, number>): Digest[] {
  const usedAt = new Map<Digest, number>()
  const manifests = new Set<Digest>()
  for (const reference of references) {
    for (const digest of reference.manifests) manifests.add(digest)
    for (const digest of reference.contents) usedAt.set(digest, Math.max(usedAt.get(digest) ?? 0, reference.usedAt))
  }
  return [...usedAt.keys()].toSorted(
    (a, b) =>
      Number(manifests.has(a)) - Number(manifests.has(b)) ||
      usedAt.get(a)! - usedAt.get(b)! ||
      (sizes.get(b) ?? 0) - (sizes.get(a) ?? 0),
  )
}

/** Describes a plan that has not been applied yet. */
export interface EvictionPlan {
  readonly references: readonly ReferenceRemoval[]
  readonly blobs: readonly Digest[]
  /** Bytes of all these blobs. */
  readonly bytes: number
}

/** Builds a plan: a blob is evicted with its last reference, unless it is in use. Changes the counts of `references`. */
class EvictionPlanner {
  readonly #counts: Map<Digest, number>
  readonly #sizes: ReadonlyMap<Digest, number>
  readonly #isInUse: (digest: Digest) => boolean
  readonly #references: ReferenceRemoval[] = []
  readonly #blobs = new Set<Digest>()
  #bytes = 0

  constructor(references: References, sizes: ReadonlyMap<Digest, number>, isInUse: (digest: Digest) => boolean) {
    this.#counts = references.counts
    this.#sizes = sizes
    this.#isInUse = isInUse
  }

  get bytes(): number {
    return this.#bytes
  }

  removeReference(removal: ReferenceRemoval): void {
    this.#references.push(removal)
    if (!removal.isWhole) return
    for (const digest of removal.reference.contents) {
      const left = (this.#counts.get(digest) ?? 1) - 1
      this.#counts.set(digest, left)
      if (left === 0) this.drop(digest)
    }
  }

  /** Evicts a blob, even if it is referenced. */
  drop(digest: Digest): void {
    const size = this.#sizes.get(digest)
    if (size === undefined || this.#blobs.has(digest) || this.#isInUse(digest)) return
    this.#blobs.add(digest)
    this.#bytes += size
  }

  plan(): EvictionPlan {
    return { references: this.#references, blobs: [...this.#blobs], bytes: this.#bytes }
  }
}

interface RemovalRequest {
  /** Lists the names of images as `listCachedImages` returns them, repositories with their registry, or digests. */
  readonly names: readonly string[]
  readonly repositories: Iterable<Repository>
  readonly sizes: ReadonlyMap<Digest, number>
  readonly isInUse: (digest: Digest) => boolean
}

interface RemovalPlan extends EvictionPlan {
  /** Lists names that matched nothing. */
  readonly unknown: string[]
}

/** Plans the removal of named content, in small steps. An image is removed with its last tag; a blob in use stays on disk. */
export function* planRemoval(request: RemovalRequest): Generator<undefined, RemovalPlan> {
  const { sizes, isInUse } = request
  const references = yield* collectReferences(request.repositories)
  const planner = new EvictionPlanner(references, sizes, isInUse)
  const names = new Set(request.names)
  const matched = new Set<string>()
  const isNamed = (name: string) => names.has(name) && matched.add(name)

  for (const reference of references.all) {
    const isWhole = getWholeNames(reference).filter(isNamed).length > 0
    const tags = reference.tags.filter((tag) => isNamed(toImageName(reference.repository, { tag })))
    if (isWhole) planner.removeReference({ reference, tags: reference.tags, isWhole: true })
    else if (tags.length > 0)
      planner.removeReference({ reference, tags, isWhole: tags.length === reference.tags.length })
  }
  for (const name of names) {
    const digest = matched.has(name) ? undefined : parseDigest(name)
    if (digest === undefined || !sizes.has(digest)) continue
    matched.add(name)
    planner.drop(digest)
  }
  return { ...planner.plan(), unknown: request.names.filter((name) => !matched.has(name)) }
}

/** Returns the names that match all tags of an image. */
function getWholeNames({ repository, digest }: ImageReference): string[] {
  return [`${repository.host}/${repository.name}`, toImageName(repository, { digest }), digest]
}

/** Describes the removal of a reference, or of some of its tags. */
export interface ReferenceRemoval {
  readonly reference: ImageReference
  readonly tags: readonly string[]
  /** Is false when other tags keep the image. */
  readonly isWhole: boolean
}

/** Takes out of `manifests` those that a remaining tag has, or that a remaining manifest names. */
function keepNeeded(repository: Repository, manifests: Set<Digest>, removedTags: ReadonlySet<string>): void {
  const kept: Digest[] = []
  for (const [tag, { digest }] of repository.tags) if (manifests.has(digest) && !removedTags.has(tag)) kept.push(digest)
  for (const digest of manifests)
    if (repository.getParents(digest).some((parent) => parent !== digest && !manifests.has(parent))) kept.push(digest)
  // Extend the list while it is walked: what a kept manifest names stays, too.
  for (const digest of kept) {
    if (!manifests.delete(digest)) continue
    for (const link of repository.getLinks(digest)) if (manifests.has(link.digest)) kept.push(link.digest)
  }
}

/**
 * Returns the operations that remove references from their repository, as it is now. Manifests that another image of the repository names
 * stay.
 */
export function removeReferences(repository: Repository, removals: readonly ReferenceRemoval[]): Operation[] {
  const removedTags = new Set<string>()
  const blobs = new Set<Digest>()
  const manifests = new Set<Digest>()
  /** Holds the subjects of the lists of referrers to remove. */
  const subjects = new Set<Digest>()
  for (const { reference, tags, isWhole } of removals) {
    const { kind, digest } = reference
    for (const tag of tags) if (repository.tags.get(tag)?.digest === digest) removedTags.add(tag)
    if (!isWhole) continue
    if (kind === 'blob' && repository.blobs.has(digest)) blobs.add(digest)
    else if (kind === 'referrers') subjects.add(digest)
    else for (const manifest of reference.manifests) if (repository.manifests.has(manifest)) manifests.add(manifest)
  }
  keepNeeded(repository, manifests, removedTags)
  const isListOfRemoved = ({ subject }: ReferrersPage) => subjects.has(subject) || manifests.has(subject)
  return [
    ...Array.from(removedTags, (tag): Operation => ({ op: 'untag', tag })),
    ...Array.from(manifests, (digest): Operation => ({ op: 'drop-manifest', digest })),
    ...Array.from(blobs, (digest): Operation => ({ op: 'drop-blob', digest })),
    ...[...repository.referrers.values()]
      .filter(isListOfRemoved)
      .map((page): Operation => ({ ...page, op: 'drop-referrers' })),
  ]
}

/** Returns the names of a removed image; empty for a single blob or list. */
export function getRemovedNames({ reference, tags }: ReferenceRemoval): string[] {
  const { repository, digest, kind } = reference
  if (kind !== 'image') return []
  return tags.length > 0 ? tags.map((tag) => toImageName(repository, { tag })) : [toImageName(repository, { digest })]
}

/** Returns the names of the removed images that `listCachedImages` would list: at least one of their blobs is stored. */
export function getRemovedImages(removals: readonly ReferenceRemoval[], sizes: ReadonlyMap<Digest, number>): string[] {
  const isStored = ({ reference }: ReferenceRemoval) =>
    [...reference.contents].some((digest) => (sizes.get(digest) ?? 0) > 0)
  return removals.filter(isStored).flatMap(getRemovedNames)
}
