import { type Digest, getDigestAlgorithm, getDigestHex } from '../oci/reference.ts'
import { ManifestMarker, getRemovedImageNames, StoredLinks } from './images.ts'
import type { PushedStore } from './repositories.ts'
import { withChanges, copyRepository, type PushedChange, type PushedRepository } from './repository.ts'

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
  /** Holds the changes that would be made before, by repository; for a dry run. */
  readonly pendingChanges?: ReadonlyMap<string, readonly PushedChange[]>
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
 * is removed from the disk while a damaged journal is in quarantine, because that journal may reference any of it. A repository
 * is skipped while one of its manifests cannot be read.
 */
export async function collectGarbage(
  store: PushedStore,
  options: GarbageOptions,
  links = new StoredLinks(store.blobs),
): Promise<CollectedGarbage> {
  await store.blobs.ready
  const { repositories } = store
  await repositories.findCopies()
  const images: string[] = []
  let manifests = 0
  /** Holds the content that the plans leave: one lookup per blob instead of one per blob and repository. */
  const stillHeld = new Set<Digest>()
  for (const current of repositories.all()) {
    const repository = withChanges(current, options.pendingChanges?.get(current.name) ?? [])
    const planning: PlanOptions = {
      ...options,
      links,
      now: () => store.runningClock.now(),
      isClaimed: (digest) => repositories.isClaimed(digest),
    }
    const { changes, before } = await planGarbage(repository, planning, async (planned) => {
      const found = { changes: planned, before: planned.length === 0 ? repository : copyRepository(repository) }
      if (!options.dryRun && planned.length > 0) await repositories.commit(repository.name, planned)
      return found
    })
    const removed = new Set<Digest>()
    for (const change of changes) {
      if (!('digest' in change)) continue
      removed.add(change.digest)
      if (change.op === 'drop-manifest') manifests += 1
    }
    images.push(...(await getRemovedImageNames(before, changes, links)))
    for (const held of [before.blobs, before.manifests])
      for (const digest of held.keys()) if (!removed.has(digest)) stillHeld.add(digest)
  }
  let blobs = 0
  let bytes = 0
  if (repositories.isIncomplete) return { images: images.toSorted(), manifests, blobs, bytes }
  for (const [digest, size] of store.blobs.entries()) {
    if (stillHeld.has(digest)) continue
    // Keep content that was pushed since. In a dry run repositories still hold the content that would be removed.
    if (options.dryRun ? repositories.isClaimed(digest) : repositories.isHeld(digest)) continue
    // Remove it at once: a push of the same content that starts now publishes it after this removal.
    if (!options.dryRun) await store.blobs.remove(digest)
    blobs += 1
    bytes += size
  }
  return { images: images.toSorted(), manifests, blobs, bytes }
}

interface PlanOptions extends GarbageOptions {
  readonly links: StoredLinks
  /** Returns the running time, ms. */
  readonly now: () => number
  readonly isClaimed: (digest: Digest) => boolean
}

/** Calls `apply` synchronously with the planned changes, while they are valid: pushes continue before and after that call. */
async function planGarbage<T>(
  repository: PushedRepository,
  { grace, untagged, now, isClaimed, links }: PlanOptions,
  apply: (changes: PushedChange[]) => T,
): Promise<Awaited<T>> {
  const { tags, manifests, blobs } = repository
  const isYoung = (heldSince: number) => now() - heldSince < grace
  const isFree = (digest: Digest, held: { readonly heldSince: number } | undefined) =>
    held !== undefined && !isYoung(held.heldSince) && !isClaimed(digest)
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
  apply: (changes: PushedChange[]) => T,
): Promise<T> {
  const requested = new Map(tags.map((tag) => [tag, repository.tags.get(tag)?.pushedAt]))
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
        const pushedAt = repository.tags.get(tag)?.pushedAt
        return pushedAt === undefined ? [] : { op: 'untag' as const, tag, pushedAt }
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
  for (const [tag, { digest, pushedAt }] of repository.tags)
    if (requested.get(tag) === pushedAt || named.has(digest)) removed.add(tag)
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
