import { digestAlgorithm, digestHex, type Digest } from '../oci/digest.ts'
import type { PushedChange, PushedRepository } from './repository.ts'
import { Marking, type StoredLinks } from './images.ts'

/** As old clients name the tags that lists of referrers and signatures hang on. */
const attachedTag = /^sha(?:256|512)-[0-9a-f]{64}/

/** The digest's part of such a tag; undefined for any other tag. */
export function attachedTo(tag: string): string | undefined {
  return attachedTag.exec(tag)?.[0]
}

export interface ForgettingOptions {
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
export async function planForgetting<T>(
  repository: PushedRepository,
  { tags, digests, links, isClaimed }: ForgettingOptions,
  use: (changes: PushedChange[]) => T,
): Promise<T> {
  const asked = new Map(tags.map((tag) => [tag, repository.tags.get(tag)?.pushedAt]))
  const named = new Set(digests)
  const gone = new Marking(repository, { links })
  const kept = new Marking(repository, { links })
  for (;;) {
    const goneTags = tagsToGo(repository, asked, named)
    const roots = [...goneTags].flatMap((tag) => repository.tags.get(tag)?.digest ?? [])
    const going = gone.missing([...roots, ...named])
    if (going.length > 0) {
      await gone.follow(going)
      continue
    }
    const others = [...repository.manifests.keys()].filter((digest) => !gone.marked.has(digest) || isClaimed(digest))
    const staying = kept.missing([...others, ...remaining(repository, goneTags)])
    if (staying.length > 0) {
      await kept.follow(staying)
      continue
    }
    const isKept = (digest: Digest) => kept.isUnsure || kept.marked.has(digest)
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
function tagsToGo(
  repository: PushedRepository,
  asked: ReadonlyMap<string, number | undefined>,
  named: ReadonlySet<Digest>,
): Set<string> {
  const gone = new Set<string>()
  for (const [tag, { digest, pushedAt }] of repository.tags)
    if (asked.get(tag) === pushedAt || named.has(digest)) gone.add(tag)
  const stillTagged = new Set(remaining(repository, gone))
  const orphaned = new Set(named)
  for (const tag of gone) {
    const digest = repository.tags.get(tag)?.digest
    if (digest !== undefined && !stillTagged.has(digest)) orphaned.add(digest)
  }
  const attached = new Set(
    Array.from(orphaned, (digest) => `${digestAlgorithm(digest)}-${digestHex(digest).slice(0, 64)}`),
  )
  for (const tag of repository.tags.keys()) if (attached.has(attachedTo(tag) ?? '')) gone.add(tag)
  return gone
}

/** What the tags that stay lead to. */
function remaining({ tags }: PushedRepository, gone: ReadonlySet<string>): Digest[] {
  return [...tags].flatMap(([tag, { digest }]) => (gone.has(tag) ? [] : digest))
}
