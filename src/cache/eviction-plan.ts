import { type Digest, parseDigest } from '../oci/digest.ts'
import type { RepositoryRecord } from '../store/records.ts'
import { type ImageReference, type References, toImageName, findImageRoots, collectReferences } from './images.ts'

export interface EvictionRequest {
  readonly records: Iterable<RepositoryRecord>
  /** Published blobs. */
  readonly sizes: ReadonlyMap<Digest, number>
  readonly limits: EvictionLimits
  /** Running time, ms. */
  readonly now: number
  /** Whether a blob is being fetched or sent; such a one stays. */
  readonly isInUse: (digest: Digest) => boolean
}

export interface EvictionLimits {
  /** Bytes; 0 = no limit. */
  readonly maxSize: number
  /** Running time ms; 0 = keep. */
  readonly maxAge: number
  /** Bytes that the disk lacks of its reserve: freed whatever the size is, or as many of them as can be. */
  readonly reserveBytes: number
  /** Bytes to be freed for something to be written, the reserve's included: all of them, or none when they are too many. */
  readonly needBytes: number
}

const pauseEvery = 2048

/**
 * Decides what goes, in small steps; between two of them the caller may pause. First images unused for too long. Then,
 * while there is too much: blobs that nobody names; whole images, least recently pulled first; at last single blobs of the
 * images that stay: those in use, and the one pulled last, of which as much is kept as the limit allows.
 */
export function* planEviction(request: EvictionRequest): Generator<undefined, EvictionPlan> {
  const { records, sizes, limits, now, isInUse } = request
  const holdings = yield* collectReferences(records)
  const planner = new EvictionPlanner(holdings, sizes, isInUse)
  let total = 0
  let removable = 0
  const unnamed: Digest[] = []
  let steps = 0
  for (const [digest, size] of sizes) {
    total += size
    if (limits.needBytes > 0 && !isInUse(digest)) removable += size
    if (!holdings.counts.has(digest)) unnamed.push(digest)
    if (++steps % pauseEvery === 0) yield
  }
  const needed = limits.needBytes <= removable ? limits.needBytes : 0
  const goal = Math.max(limits.maxSize > 0 ? total - limits.maxSize : 0, limits.reserveBytes, needed)
  const isEnough = () => planner.bytes >= goal

  yield
  const byAge = holdings.all.toSorted((a, b) => a.usedAt - b.usedAt)
  const newest = byAge.findLast(({ kind }) => kind === 'image')
  yield
  const kept: ImageReference[] = []
  for (const holding of byAge) {
    const isExpired = limits.maxAge > 0 && now - holding.usedAt > limits.maxAge
    if (isExpired && !someContent(holding, isInUse))
      planner.removeReference({ reference: holding, tags: holding.tags, whole: true })
    else kept.push(holding)
    if (++steps % pauseEvery === 0) yield
  }
  for (const digest of unnamed) {
    if (isEnough()) return planner.plan()
    planner.drop(digest)
  }
  yield
  const last: ImageReference[] = []
  for (const holding of kept) {
    if (isEnough()) return planner.plan()
    if (holding === newest || someContent(holding, isInUse)) last.push(holding)
    else if (someContent(holding, (digest) => sizes.has(digest)))
      planner.removeReference({ reference: holding, tags: holding.tags, whole: true })
    if (++steps % pauseEvery === 0) yield
  }
  for (const digest of orderBlobs(last, sizes)) {
    if (isEnough()) break
    planner.drop(digest)
  }
  return planner.plan()
}

function someContent({ contents }: ImageReference, test: (digest: Digest) => boolean): boolean {
  for (const digest of contents) if (test(digest)) return true
  return false
}

/** Blobs of these holdings: of the least recently pulled first, then the largest; manifests, worth most a byte, at the end. */
function orderBlobs(holdings: readonly ImageReference[], sizes: ReadonlyMap<Digest, number>): Digest[] {
  const usedAt = new Map<Digest, number>()
  const manifests = new Set<Digest>()
  for (const holding of holdings) {
    for (const digest of holding.manifests) manifests.add(digest)
    for (const digest of holding.contents) usedAt.set(digest, Math.max(usedAt.get(digest) ?? 0, holding.usedAt))
  }
  return [...usedAt.keys()].toSorted(
    (a, b) =>
      Number(manifests.has(a)) - Number(manifests.has(b)) ||
      usedAt.get(a)! - usedAt.get(b)! ||
      (sizes.get(b) ?? 0) - (sizes.get(a) ?? 0),
  )
}

/** What shall go. Nothing has happened yet. */
export interface EvictionPlan {
  readonly references: readonly RemovedReference[]
  readonly blobs: readonly Digest[]
  /** Sum of the blobs. */
  readonly bytes: number
}

/** Gathers a plan: a blob goes with the last holding that names it, unless it is in use. Uses the survey up. */
class EvictionPlanner {
  readonly #counts: Map<Digest, number>
  readonly #sizes: ReadonlyMap<Digest, number>
  readonly #isInUse: (digest: Digest) => boolean
  readonly #references: RemovedReference[] = []
  readonly #blobs = new Set<Digest>()
  #bytes = 0

  constructor(holdings: References, sizes: ReadonlyMap<Digest, number>, isInUse: (digest: Digest) => boolean) {
    this.#counts = holdings.counts
    this.#sizes = sizes
    this.#isInUse = isInUse
  }

  get bytes(): number {
    return this.#bytes
  }

  removeReference(forgotten: RemovedReference): void {
    this.#references.push(forgotten)
    if (!forgotten.whole) return
    for (const digest of forgotten.reference.contents) {
      const left = (this.#counts.get(digest) ?? 1) - 1
      this.#counts.set(digest, left)
      if (left === 0) this.drop(digest)
    }
  }

  /** Lets a blob go, whoever names it. */
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
  /** Images as they are listed, repositories with their registry, or digests. */
  readonly names: readonly string[]
  readonly records: Iterable<RepositoryRecord>
  readonly sizes: ReadonlyMap<Digest, number>
  readonly isInUse: (digest: Digest) => boolean
}

interface RemovalPlan extends EvictionPlan {
  /** Names that matched nothing. */
  readonly unknown: string[]
}

/** What goes when a user names it, in small steps. An image goes with its last tag; a blob in use stays on the disk for now. */
export function* planRemoval(request: RemovalRequest): Generator<undefined, RemovalPlan> {
  const { sizes, isInUse } = request
  const holdings = yield* collectReferences(request.records)
  const planner = new EvictionPlanner(holdings, sizes, isInUse)
  const names = new Set(request.names)
  const matched = new Set<string>()
  const isNamed = (name: string) => names.has(name) && matched.add(name)

  for (const holding of holdings.all) {
    const isWhole = getWholeNames(holding).filter(isNamed).length > 0
    const tags = holding.tags.filter((tag) => isNamed(toImageName(holding.record, { tag })))
    if (isWhole) planner.removeReference({ reference: holding, tags: holding.tags, whole: true })
    else if (tags.length > 0)
      planner.removeReference({ reference: holding, tags, whole: tags.length === holding.tags.length })
  }
  for (const name of names) {
    const digest = matched.has(name) ? undefined : parseDigest(name)
    if (digest === undefined || !sizes.has(digest)) continue
    matched.add(name)
    planner.drop(digest)
  }
  return { ...planner.plan(), unknown: request.names.filter((name) => !matched.has(name)) }
}

/** The names that mean all of a holding. */
function getWholeNames({ record, digest }: ImageReference): string[] {
  return [`${record.host}/${record.name}`, toImageName(record, { digest }), digest]
}

/** A holding to be let go of, or only some of its tags. */
export interface RemovedReference {
  readonly reference: ImageReference
  readonly tags: readonly string[]
  /** False when other tags keep the image. */
  readonly whole: boolean
}

/** Takes holdings of one repository out of its record; manifests that another of its images names stay. */
export function removeReferences(record: RepositoryRecord, gone: readonly RemovedReference[]): void {
  const roots = new Set<Digest>()
  for (const { reference: holding, tags, whole } of gone) {
    for (const tag of tags) if (record.tags.get(tag)?.digest === holding.digest) record.tags.delete(tag)
    if (whole && holding.kind === 'blob') record.blobs.delete(holding.digest)
    else if (whole && holding.kind === 'referrers') removeLists(record, new Set([holding.digest]))
    else if (whole) roots.add(holding.digest)
  }
  if (roots.size === 0) return
  const kept = new Set<Digest>()
  for (const root of findImageRoots(record))
    if (root.tags.length > 0 || !roots.has(root.digest)) for (const digest of root.manifests) kept.add(digest)
  const dropped = new Set<Digest>()
  for (const { reference: holding, whole } of gone)
    if (whole)
      for (const digest of holding.manifests)
        if (!kept.has(digest) && record.manifests.delete(digest)) dropped.add(digest)
  removeLists(record, dropped)
}

/** The lists of what refers to an image go with it. */
function removeLists({ referrers }: RepositoryRecord, subjects: ReadonlySet<Digest>): void {
  for (const [key, { subject }] of referrers) if (subjects.has(subject)) referrers.delete(key)
}

/** What a user calls it; a blob or a list by itself has no name. */
export function getRemovedNames({ reference: holding, tags }: RemovedReference): string[] {
  const { record, digest, kind } = holding
  if (kind !== 'image') return []
  return tags.length > 0 ? tags.map((tag) => toImageName(record, { tag })) : [toImageName(record, { digest })]
}

/** The same of what is listed as an image: something of it must be held, which a HEAD alone does not bring. */
export function getRemovedImages(gone: readonly RemovedReference[], sizes: ReadonlyMap<Digest, number>): string[] {
  const isHeld = ({ reference: holding }: RemovedReference) =>
    [...holding.contents].some((digest) => (sizes.get(digest) ?? 0) > 0)
  return gone.filter(isHeld).flatMap(getRemovedNames)
}
