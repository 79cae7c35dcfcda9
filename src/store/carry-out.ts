import { errnoOf } from '../lib/errors.ts'
import type { Clock } from '../lib/time.ts'
import type { Logger } from '../lib/logger.ts'
import type { Digest } from '../oci/digest.ts'
import type { EvictionPlan } from './eviction-plan.ts'
import type { FileBlobStore } from './file-blob-store.ts'
import { forget, removedImages, type Forgotten } from './forget.ts'
import type { FreshClaims } from './fresh-claims.ts'
import { createPauses } from '../lib/async.ts'
import type { RepositoryRecord } from './records.ts'

/** What went, or would go. */
export interface Removed {
  /** Names of images. */
  readonly images: string[]
  readonly blobs: number
  readonly bytes: number
}

export interface CarryOutOptions {
  readonly blobs: FileBlobStore
  /** What is wanted again since the plan was begun; such content stays. */
  readonly claims: FreshClaims
  readonly isInUse: (digest: Digest) => boolean
  /** Images go even if they were pulled a moment ago. */
  readonly isForced: boolean
  /** Hears of each blob that the disk does not let go. */
  readonly onRefused?: (error: unknown) => void
  readonly logger: Logger
  readonly clock: Clock
  readonly signal: AbortSignal
}

/** Does what the plan says, records before blobs, looking again before each step. */
export async function carryOut(plan: EvictionPlan, options: CarryOutOptions): Promise<Removed> {
  const { blobs, claims, isInUse, logger, signal } = options
  const pause = createPauses(options.clock)
  const images: string[] = []
  for (const [record, planned] of byRecord(plan.forget)) {
    if (signal.aborted) break
    const gone: Forgotten[] = []
    for (const forgotten of planned)
      if (options.isForced || !isWantedAgain(forgotten, isInUse)) gone.push(forgotten)
      else claims.add(forgotten.holding.contents)
    if (gone.length === 0) continue
    forget(record, gone)
    claims.touchAsOurs(record)
    images.push(...removedImages(gone, blobs.sizes))
    await pause()
  }
  let count = 0
  let bytes = 0
  for (const digest of plan.blobs) {
    if (signal.aborted) break
    const size = blobs.sizes.get(digest)
    if (size === undefined || isInUse(digest) || claims.has(digest)) continue
    try {
      await blobs.remove(digest)
      count += 1
      bytes += size
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
      logger.error({ digest, error: String(error) }, 'could not remove a blob')
      options.onRefused?.(error)
    }
    await pause()
  }
  return { images: images.toSorted(), blobs: count, bytes }
}

/** What `carryOut` would say if nothing else happened. */
export function preview(plan: EvictionPlan, sizes: ReadonlyMap<Digest, number>): Removed {
  const images = removedImages(plan.forget, sizes).toSorted()
  return { images, blobs: plan.blobs.length, bytes: plan.bytes }
}

function byRecord(all: readonly Forgotten[]): Map<RepositoryRecord, Forgotten[]> {
  const groups = new Map<RepositoryRecord, Forgotten[]>()
  for (const forgotten of all) {
    const group = groups.get(forgotten.holding.record)
    if (group) group.push(forgotten)
    else groups.set(forgotten.holding.record, [forgotten])
  }
  return groups
}

function isWantedAgain({ holding }: Forgotten, isInUse: (digest: Digest) => boolean): boolean {
  const { record, kind, digest, manifests, contents, usedAt } = holding
  if (kind === 'blob') return (record.blobs.get(digest)?.usedAt ?? 0) > usedAt || isInUse(digest)
  if (kind === 'referrers')
    return [...record.referrers.values()].some((list) => list.subject === digest && list.usedAt > usedAt)
  if (manifests.some((manifest) => (record.manifests.get(manifest)?.usedAt ?? 0) > usedAt)) return true
  for (const content of contents) if (isInUse(content)) return true
  return false
}
