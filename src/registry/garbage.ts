import { type Digest, digestAlgorithm, digestHex } from '../oci/digest.ts'
import { ManifestMarker, getRemovedImageNames, StoredLinks } from './images.ts'
import type { PushedStore } from './repositories.ts'
import { withChanges, copyRepository, type PushedChange, type PushedRepository } from './repository.ts'

export interface GarbageOptions {
  /** What came, or was asked for, within this running time stays: a manifest that names it may be on its way. ms */
  readonly grace: number
  /** Manifests that no tag leads to are garbage too. */
  readonly untagged: boolean
  readonly dryRun: boolean
  /** Of a dry run: what would be done before, by repository. */
  readonly pendingChanges?: ReadonlyMap<string, readonly PushedChange[]>
}

/** What went, or would go. */
interface CollectedGarbage {
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
 * damaged journal is set aside, because that may name what is on it. A repository is left alone while one of its manifests cannot
 * be read.
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
  /** What the plans leave; looked up once for each blob, where asking every repository would take long. */
  const stillHeld = new Set<Digest>()
  for (const now of repositories.all()) {
    const repository = withChanges(now, options.pendingChanges?.get(now.name) ?? [])
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
    const gone = new Set<Digest>()
    for (const change of changes) {
      if (!('digest' in change)) continue
      gone.add(change.digest)
      if (change.op === 'drop-manifest') manifests += 1
    }
    images.push(...(await getRemovedImageNames(before, changes, links)))
    for (const held of [before.blobs, before.manifests])
      for (const digest of held.keys()) if (!gone.has(digest)) stillHeld.add(digest)
  }
  let blobs = 0
  let bytes = 0
  if (repositories.isIncomplete) return { images: images.toSorted(), manifests, blobs, bytes }
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
  readonly links: StoredLinks
  /** Running time, ms. */
  readonly now: () => number
  readonly isClaimed: (digest: Digest) => boolean
}

/** Calls `use` with what may go of a repository, while that is true: pushes go on before and as soon as it returns. */
async function planGarbage<T>(
  repository: PushedRepository,
  { grace, untagged, now, isClaimed, links }: PlanOptions,
  use: (changes: PushedChange[]) => T,
): Promise<Awaited<T>> {
  const { tags, manifests, blobs } = repository
  const isYoung = (heldSince: number) => now() - heldSince < grace
  const isFree = (digest: Digest, held: { readonly heldSince: number } | undefined) =>
    held !== undefined && !isYoung(held.heldSince) && !isClaimed(digest)
  /** Blobs that nobody has asked for of late, and that no manifest is known to name. */
  const unnamed = new Set<Digest>()
  for (const [digest, blob] of blobs) if (isFree(digest, blob)) unnamed.add(digest)
  const roots = function* (): Generator<Digest> {
    for (const { digest } of tags.values()) yield digest
    for (const [digest, manifest] of manifests) if (!untagged || !isFree(digest, manifest)) yield digest
  }
  const kept = new ManifestMarker(repository, { links, onLink: (digest) => void unnamed.delete(digest) })
  if (untagged || unnamed.size > 0)
    for (let found = kept.findUnmarked(roots()); found.length > 0; found = kept.findUnmarked(roots()))
      await kept.mark(found)
  if (kept.isIncomplete) return await use([])
  const dropped = untagged ? [...manifests.keys()].filter((digest) => !kept.marked.has(digest)) : []
  return await use([
    ...dropped.map((digest) => ({ op: 'drop-manifest' as const, digest })),
    ...[...unnamed]
      .filter((digest) => isFree(digest, blobs.get(digest)))
      .map((digest) => ({ op: 'drop-blob' as const, digest })),
  ])
}

/** As old clients name the tags that lists of referrers and signatures hang on. */
const attachedTagPattern = /^sha(?:256|512)-[0-9a-f]{64}/

/** The digest's part of such a tag; undefined for any other tag. */
export function parseAttachedTag(tag: string): string | undefined {
  return attachedTagPattern.exec(tag)?.[0]
}

interface RemovalPlanOptions {
  readonly tags: readonly string[]
  /** Manifests, with all their tags. */
  readonly digests: readonly Digest[]
  readonly links: StoredLinks
  readonly isClaimed: (digest: Digest) => boolean
}

/**
 * What goes when tags, and manifests with all their tags, are taken away: with them everything that nothing else needs.
 * Manifests that are claimed stay, because a push that is not to be seen yet may be giving them a tag. When a manifest that
 * stays cannot be read, only the named ones go. `use` is called while the plan is true: pushes go on as soon as it returns.
 */
export async function planRemovals<T>(
  repository: PushedRepository,
  { tags, digests, links, isClaimed }: RemovalPlanOptions,
  use: (changes: PushedChange[]) => T,
): Promise<T> {
  const asked = new Map(tags.map((tag) => [tag, repository.tags.get(tag)?.pushedAt]))
  const named = new Set(digests)
  const gone = new ManifestMarker(repository, { links })
  const kept = new ManifestMarker(repository, { links })
  for (;;) {
    const goneTags = selectRemovedTags(repository, asked, named)
    const roots = [...goneTags].flatMap((tag) => repository.tags.get(tag)?.digest ?? [])
    const going = gone.findUnmarked([...roots, ...named])
    if (going.length > 0) {
      await gone.mark(going)
      continue
    }
    const others = [...repository.manifests.keys()].filter((digest) => !gone.marked.has(digest) || isClaimed(digest))
    const staying = kept.findUnmarked([...others, ...getRemainingRoots(repository, goneTags)])
    if (staying.length > 0) {
      await kept.mark(staying)
      continue
    }
    const isKept = (digest: Digest) => kept.isIncomplete || kept.marked.has(digest)
    const dropped = [...gone.marked].filter(
      (digest) => repository.manifests.has(digest) && !isClaimed(digest) && (named.has(digest) || !isKept(digest)),
    )
    return use([
      ...[...goneTags].flatMap((tag) => {
        const pushedAt = repository.tags.get(tag)?.pushedAt
        return pushedAt === undefined ? [] : { op: 'untag' as const, tag, pushedAt }
      }),
      ...dropped.map((digest) => ({ op: 'drop-manifest' as const, digest })),
    ])
  }
}

/** The tags that were asked for, unless they were pushed since; those of the named manifests; and what is attached to either. */
function selectRemovedTags(
  repository: PushedRepository,
  asked: ReadonlyMap<string, number | undefined>,
  named: ReadonlySet<Digest>,
): Set<string> {
  const gone = new Set<string>()
  for (const [tag, { digest, pushedAt }] of repository.tags)
    if (asked.get(tag) === pushedAt || named.has(digest)) gone.add(tag)
  const stillTagged = new Set(getRemainingRoots(repository, gone))
  const orphaned = new Set(named)
  for (const tag of gone) {
    const digest = repository.tags.get(tag)?.digest
    if (digest !== undefined && !stillTagged.has(digest)) orphaned.add(digest)
  }
  const attached = new Set(
    Array.from(orphaned, (digest) => `${digestAlgorithm(digest)}-${digestHex(digest).slice(0, 64)}`),
  )
  for (const tag of repository.tags.keys()) if (attached.has(parseAttachedTag(tag) ?? '')) gone.add(tag)
  return gone
}

/** What the tags that stay lead to. */
function getRemainingRoots({ tags }: PushedRepository, gone: ReadonlySet<string>): Digest[] {
  return [...tags].flatMap(([tag, { digest }]) => (gone.has(tag) ? [] : digest))
}
