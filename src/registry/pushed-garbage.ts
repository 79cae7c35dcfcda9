import type { Digest } from '../oci/digest.ts'
import { changedCopy, type PushedChange, type PushedRepository } from '../store/pushed-repository.ts'
import type { PushedStore } from '../store/pushed-store.ts'
import { closureOf } from './pushed-closure.ts'
import { removedImages } from './pushed-images.ts'

export interface GarbageOptions {
  /** What came, or was asked for, within this running time stays: a manifest that names it may be on its way. ms */
  readonly grace: number
  /** Manifests that no tag leads to are garbage too. */
  readonly untagged: boolean
  readonly dryRun: boolean
  /** Of a dry run: what would be done before, by repository. */
  readonly before?: ReadonlyMap<string, readonly PushedChange[]>
}

/** What went, or would go. */
export interface Collected {
  /** Names of images, as they are listed. */
  readonly images: string[]
  /** How many manifests. */
  readonly manifests: number
  readonly blobs: number
  readonly bytes: number
}

/**
 * Takes away what nothing leads to: in each repository blobs that no manifest names, then from the disk what no repository
 * holds. It runs beside pushes: what is claimed, or was learned of within the grace, stays. The disk is left alone while a
 * damaged journal is set aside, for with it would go all that it held.
 */
export async function collectGarbage(store: PushedStore, options: GarbageOptions): Promise<Collected> {
  await store.blobs.ready
  const { repositories } = store
  const images: string[] = []
  let manifests = 0
  /** What the plans leave; looked up once for each blob, where asking every repository would take long. */
  const stillHeld = new Set<Digest>()
  for (const now of repositories.all()) {
    const repository = changedCopy(now, options.before?.get(now.name) ?? [])
    const changes = planGarbage(repository, {
      ...options,
      now: store.runningClock.now(),
      isClaimed: (digest) => repositories.isClaimed(digest),
    })
    const gone = new Set<Digest>()
    for (const change of changes) {
      if (!('digest' in change)) continue
      gone.add(change.digest)
      if (change.op === 'drop-manifest') manifests += 1
    }
    images.push(...removedImages(repository, changes))
    for (const held of [repository.blobs, repository.manifests])
      for (const digest of held.keys()) if (!gone.has(digest)) stillHeld.add(digest)
    if (!options.dryRun && changes.length > 0) await repositories.commit(repository.name, changes)
  }
  let blobs = 0
  let bytes = 0
  if (repositories.hasGaps) return { images: images.toSorted(), manifests, blobs, bytes }
  for (const [digest, size] of store.blobs.entries()) {
    if (stillHeld.has(digest)) continue
    // It may have come since; of a dry run, what is to go is still held.
    if (options.dryRun ? repositories.isClaimed(digest) : repositories.isHeld(digest)) continue
    // A push of the same content that begins now publishes after this has ended.
    if (!options.dryRun) await store.blobs.remove(digest)
    blobs += 1
    bytes += size
  }
  return { images: images.toSorted(), manifests, blobs, bytes }
}

interface PlanOptions extends GarbageOptions {
  /** Running time, ms. */
  readonly now: number
  readonly isClaimed: (digest: Digest) => boolean
}

function planGarbage(repository: PushedRepository, options: PlanOptions): PushedChange[] {
  const { grace, now, isClaimed } = options
  const isYoung = (heldSince: number) => now - heldSince < grace
  let kept: Iterable<Digest> = repository.manifests.keys()
  const dropped: Digest[] = []
  if (options.untagged) {
    const roots = Array.from(repository.tags.values(), ({ digest }) => digest)
    for (const [digest, { heldSince }] of repository.manifests)
      if (isYoung(heldSince) || isClaimed(digest)) roots.push(digest)
    const reached = closureOf(repository, roots)
    kept = reached
    for (const digest of repository.manifests.keys()) if (!reached.has(digest)) dropped.push(digest)
  }
  const named = new Set<Digest>()
  for (const digest of kept) for (const link of repository.manifests.get(digest)!.links) named.add(link.digest)
  const blobs = [...repository.blobs].filter(
    ([digest, { heldSince }]) => !named.has(digest) && !isYoung(heldSince) && !isClaimed(digest),
  )
  return [
    ...dropped.map((digest) => ({ op: 'drop-manifest' as const, digest })),
    ...blobs.map(([digest]) => ({ op: 'drop-blob' as const, digest })),
  ]
}
