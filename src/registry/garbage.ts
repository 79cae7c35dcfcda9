import { type Digest, getDigestAlgorithm, getDigestHex } from '../oci/reference.ts'
import type { Operation } from '../metadata/metadata.ts'
import { Repositories, toOperations } from '../metadata/repositories.ts'
import { findRemovedImages, ManifestMarker, StoredLinks } from './images.ts'
import type { PushedRepository, PushedStore } from './repositories.ts'

/** Matches tags for signatures and lists of referrers, for registries without the referrers API. */
const attachedTagPattern = /^sha(?:256|512)-[0-9a-f]{64}/

export interface GarbageOptions {
  /**
   * Protects content that was pushed or requested within this time, because a manifest that names it may follow; running time ms.
   */
  readonly grace: number
  /** Collects manifests that no tag leads to as well. */
  readonly untagged: boolean
  readonly dryRun: boolean
  /** Holds the operations that would be committed before, by repository; for a dry run. */
  readonly pendingOperations?: ReadonlyMap<string, readonly Operation[]>
}

/** Reports the removed content; of a dry run, the content that would be removed. */
interface CollectedGarbage {
  /** Holds the names of images, as `listPushedImages` returns them. */
  readonly images: string[]
  readonly manifests: number
  readonly blobs: number
  readonly bytes: number
}

/**
 * Removes unreferenced content: from each repository the blobs that no manifest names, then from the disk the bytes that no
 * repository holds. It runs concurrently with pushes: content that is claimed, or was requested within the grace, stays. Nothing
 * is removed from the disk while a damaged record is in quarantine, because that record may reference any of it. A repository
 * is skipped while one of its manifests cannot be read.
 */
export async function collectGarbage(
  store: PushedStore,
  options: GarbageOptions,
  links = new StoredLinks(store.blobs),
): Promise<CollectedGarbage> {
  await store.blobs.ready
  const { repositories } = store
  await repositories.findDamage()
  const images: string[] = []
  let manifests = 0
  const dryRun = options.dryRun ? new RemovalPreview() : undefined
  for (const current of repositories.all()) {
    const { name } = current
    const pending = options.pendingOperations?.get(name) ?? []
    dryRun?.add(name, pending)
    const repository = withOperations(current, pending)
    if (!repository) continue
    const planning: PlanOptions = {
      ...options,
      links,
      now: () => store.runningClock.now(),
      isClaimed: (digest) => repositories.isClaimed(digest),
    }
    const { operations, readNames } = await planGarbage(repository, planning, async (planned) => {
      const found = { operations: planned, readNames: findRemovedImages(repository, planned) }
      if (!dryRun) await repositories.commit(name, planned)
      return found
    })
    dryRun?.add(name, operations)
    for (const { op } of operations) if (op === 'drop-manifest') manifests += 1
    images.push(...(await readNames(links)))
  }
  let blobs = 0
  let bytes = 0
  if (repositories.isIncomplete) return { images: images.toSorted(), manifests, blobs, bytes }
  const wouldRemove = dryRun?.findRemoved(repositories.all())
  for (const [digest, size] of store.blobs.entries()) {
    if (repositories.isHeld(digest) && !(wouldRemove?.has(digest) && !repositories.isClaimed(digest))) continue
    // Remove it at once: a push of the same content that starts now publishes it after this removal.
    if (!dryRun) await store.blobs.remove(digest)
    blobs += 1
    bytes += size
  }
  return { images: images.toSorted(), manifests, blobs, bytes }
}

/** Returns a copy of the repository after these operations, or the repository when there are none; undefined when it would be empty. */
function withOperations(repository: PushedRepository, operations: readonly Operation[]): PushedRepository | undefined {
  if (operations.length === 0) return repository
  const { host, name } = repository
  const copy = new Repositories(false)
  for (const list of [toOperations(repository), operations])
    for (const operation of list) copy.apply(host, name, operation)
  return copy.get(host, name)
}

/** Finds the content that no repository would hold after a dry run. */
class RemovalPreview {
  /** Holds the planned removals by repository. */
  readonly #dropped = new Map<string, Record<'drop-blob' | 'drop-manifest', Set<Digest>>>()
  readonly #removed = new Set<Digest>()

  add(repository: string, operations: readonly Operation[]): void {
    for (const operation of operations) {
      if (operation.op !== 'drop-blob' && operation.op !== 'drop-manifest') continue
      const dropped = this.#dropped.get(repository) ?? { 'drop-blob': new Set(), 'drop-manifest': new Set() }
      this.#dropped.set(repository, dropped)
      dropped[operation.op].add(operation.digest)
      this.#removed.add(operation.digest)
    }
  }

  /** Finds the removed content that is not held elsewhere: by another repository, or by an entry of the other kind. */
  findRemoved(repositories: Iterable<PushedRepository>): ReadonlySet<Digest> {
    const removed = new Set(this.#removed)
    if (removed.size === 0) return removed
    for (const { name, blobs, manifests } of repositories) {
      const dropped = this.#dropped.get(name)
      for (const digest of blobs.keys()) if (!dropped?.['drop-blob'].has(digest)) removed.delete(digest)
      for (const digest of manifests.keys()) if (!dropped?.['drop-manifest'].has(digest)) removed.delete(digest)
    }
    return removed
  }
}

interface PlanOptions extends GarbageOptions {
  readonly links: StoredLinks
  /** Returns the running time, ms. */
  readonly now: () => number
  readonly isClaimed: (digest: Digest) => boolean
}

/** Calls `apply` synchronously with the planned operations, while they are valid: pushes continue before and after that call. */
async function planGarbage<T>(
  repository: PushedRepository,
  { grace, untagged, now, isClaimed, links }: PlanOptions,
  apply: (operations: Operation[]) => T,
): Promise<Awaited<T>> {
  const { tags, manifests, blobs } = repository
  const isYoung = (usedAt: number) => now() - usedAt < grace
  const isFree = (digest: Digest, held: { readonly usedAt: number } | undefined) =>
    held !== undefined && !isYoung(held.usedAt) && !isClaimed(digest)
  /** Holds the blobs outside the grace that no manifest is known to name. */
  const unreferenced = new Set<Digest>()
  for (const [digest, blob] of blobs) if (isFree(digest, blob)) unreferenced.add(digest)
  const listRoots = function* (): Generator<Digest> {
    for (const { digest } of tags.values()) yield digest
    for (const [digest, manifest] of manifests) if (!untagged || !isFree(digest, manifest)) yield digest
  }
  const kept = new ManifestMarker(repository, { links, onLink: (digest) => void unreferenced.delete(digest) })
  if (untagged || unreferenced.size > 0)
    for (let found = kept.findUnmarked(listRoots()); found.length > 0; found = kept.findUnmarked(listRoots()))
      await kept.mark(found)
  if (kept.isIncomplete) return await apply([])
  const dropped = untagged ? [...manifests.keys()].filter((digest) => !kept.marked.has(digest)) : []
  return await apply([
    ...dropped.map((digest) => ({ op: 'drop-manifest' as const, digest })),
    ...[...unreferenced]
      .filter((digest) => isFree(digest, blobs.get(digest)))
      .map((digest) => ({ op: 'drop-blob' as const, digest })),
  ])
}

/** Parses the part of a tag that names another manifest's digest, `sha256-<hex>`; undefined for any other tag. */
export function parseAttachedTag(tag: string): string | undefined {
  return attachedTagPattern.exec(tag)?.[0]
}

interface RemovalPlanOptions {
  readonly tags: readonly string[]
  /** Lists the manifests to remove with all their tags. */
  readonly digests: readonly Digest[]
  readonly links: StoredLinks
  readonly isClaimed: (digest: Digest) => boolean
}

/**
 * Plans the removal of tags, and of manifests with all their tags, together with all manifests that nothing else needs. Claimed
 * manifests stay, because a running push may be tagging them. When a manifest that stays cannot be read, only the named ones are
 * removed. Calls `apply` synchronously while the plan is valid: pushes go on as soon as it returns.
 */
export async function planRemovals<T>(
  repository: PushedRepository,
  { tags, digests, links, isClaimed }: RemovalPlanOptions,
  apply: (operations: Operation[]) => T,
): Promise<T> {
  const requested = new Map(tags.map((tag) => [tag, repository.tags.get(tag)?.updatedAt]))
  const named = new Set(digests)
  const removed = new ManifestMarker(repository, { links })
  const kept = new ManifestMarker(repository, { links })
  for (;;) {
    const removedTags = selectRemovedTags(repository, requested, named)
    const roots = [...removedTags].flatMap((tag) => repository.tags.get(tag)?.digest ?? [])
    const unmarkedRemoved = removed.findUnmarked([...roots, ...named])
    if (unmarkedRemoved.length > 0) {
      await removed.mark(unmarkedRemoved)
      continue
    }
    const others = [...repository.manifests.keys()].filter((digest) => !removed.marked.has(digest) || isClaimed(digest))
    const unmarkedKept = kept.findUnmarked([...others, ...getRemainingRoots(repository, removedTags)])
    if (unmarkedKept.length > 0) {
      await kept.mark(unmarkedKept)
      continue
    }
    const isKept = (digest: Digest) => kept.isIncomplete || kept.marked.has(digest)
    const dropped = [...removed.marked].filter(
      (digest) => repository.manifests.has(digest) && !isClaimed(digest) && (named.has(digest) || !isKept(digest)),
    )
    return apply([
      ...[...removedTags].flatMap((tag) => {
        const updatedAt = repository.tags.get(tag)?.updatedAt
        return updatedAt === undefined ? [] : { op: 'untag' as const, tag, updatedAt }
      }),
      ...dropped.map((digest) => ({ op: 'drop-manifest' as const, digest })),
    ])
  }
}

/**
 * Selects the requested tags unless they were pushed again since, the tags of the named manifests, and the tags attached to either.
 */
function selectRemovedTags(
  repository: PushedRepository,
  requested: ReadonlyMap<string, number | undefined>,
  named: ReadonlySet<Digest>,
): Set<string> {
  const removed = new Set<string>()
  for (const [tag, { digest, updatedAt }] of repository.tags)
    if (requested.get(tag) === updatedAt || named.has(digest)) removed.add(tag)
  const stillTagged = new Set(getRemainingRoots(repository, removed))
  const orphaned = new Set(named)
  for (const tag of removed) {
    const digest = repository.tags.get(tag)?.digest
    if (digest !== undefined && !stillTagged.has(digest)) orphaned.add(digest)
  }
  const attached = new Set(
    Array.from(orphaned, (digest) => `${getDigestAlgorithm(digest)}-${getDigestHex(digest).slice(0, 64)}`),
  )
  for (const tag of repository.tags.keys()) if (attached.has(parseAttachedTag(tag) ?? '')) removed.add(tag)
  return removed
}

/** Returns the digests of the tags that stay. */
function getRemainingRoots({ tags }: PushedRepository, removed: ReadonlySet<string>): Digest[] {
  return [...tags].flatMap(([tag, { digest }]) => (removed.has(tag) ? [] : digest))
}
