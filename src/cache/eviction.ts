import type { Digest } from '../oci/digest.ts'
import { type EvictionPlan, EvictionPlanner } from '../store/eviction-plan.ts'
import { type Holding, surveyHoldings } from '../store/holdings.ts'
import type { RepositoryRecord } from '../store/records.ts'

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
  const holdings = yield* surveyHoldings(records)
  const planner = new EvictionPlanner(holdings, sizes, isInUse)
  let total = 0
  let removable = 0
  const unnamed: Digest[] = []
  let steps = 0
  for (const [digest, size] of sizes) {
    total += size
    if (limits.needBytes > 0 && !isInUse(digest)) removable += size
    if (!holdings.holders.has(digest)) unnamed.push(digest)
    if (++steps % pauseEvery === 0) yield
  }
  const needed = limits.needBytes <= removable ? limits.needBytes : 0
  const goal = Math.max(limits.maxSize > 0 ? total - limits.maxSize : 0, limits.reserveBytes, needed)
  const isEnough = () => planner.bytes >= goal

  yield
  const byAge = holdings.all.toSorted((a, b) => a.usedAt - b.usedAt)
  const newest = byAge.findLast(({ kind }) => kind === 'image')
  yield
  const kept: Holding[] = []
  for (const holding of byAge) {
    const isExpired = limits.maxAge > 0 && now - holding.usedAt > limits.maxAge
    if (isExpired && !some(holding, isInUse)) planner.forget({ holding, tags: holding.tags, whole: true })
    else kept.push(holding)
    if (++steps % pauseEvery === 0) yield
  }
  for (const digest of unnamed) {
    if (isEnough()) return planner.plan()
    planner.drop(digest)
  }
  yield
  const last: Holding[] = []
  for (const holding of kept) {
    if (isEnough()) return planner.plan()
    if (holding === newest || some(holding, isInUse)) last.push(holding)
    else if (some(holding, (digest) => sizes.has(digest))) planner.forget({ holding, tags: holding.tags, whole: true })
    if (++steps % pauseEvery === 0) yield
  }
  for (const digest of leastMissed(last, sizes)) {
    if (isEnough()) break
    planner.drop(digest)
  }
  return planner.plan()
}

function some({ contents }: Holding, test: (digest: Digest) => boolean): boolean {
  for (const digest of contents) if (test(digest)) return true
  return false
}

/** Blobs of these holdings: of the least recently pulled first, then the largest; manifests, worth most a byte, at the end. */
function leastMissed(holdings: readonly Holding[], sizes: ReadonlyMap<Digest, number>): Digest[] {
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
