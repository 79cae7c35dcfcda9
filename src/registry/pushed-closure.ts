import { digestAlgorithm, digestHex, type Digest } from '../oci/digest.ts'
import type { PushedChange, PushedRepository } from '../store/pushed-repository.ts'

/** The manifests that belong to these: what they name, what refers to them (signatures, SBOMs), and so on. */
export function closureOf({ manifests }: PushedRepository, roots: Iterable<Digest>): Set<Digest> {
  const referrers = new Map<Digest, Digest[]>()
  for (const [digest, { subject }] of manifests) {
    if (subject === undefined) continue
    const others = referrers.get(subject)
    if (others) others.push(digest)
    else referrers.set(subject, [digest])
  }
  const reached = new Set<Digest>()
  for (const root of roots) if (manifests.has(root)) reached.add(root)
  // The set grows while it is walked, and never visits a digest twice.
  for (const digest of reached) {
    for (const link of manifests.get(digest)!.links) if (manifests.has(link.digest)) reached.add(link.digest)
    for (const referrer of referrers.get(digest) ?? []) reached.add(referrer)
  }
  return reached
}

/** As old clients name the tags that lists of referrers and signatures hang on. */
const attachedTag = /^sha(?:256|512)-[0-9a-f]{64}/

/** The digest's part of such a tag; undefined for any other tag. */
export function attachedTo(tag: string): string | undefined {
  return attachedTag.exec(tag)?.[0]
}

/**
 * What goes when tags, and manifests with all their tags, are taken away: with them everything that nothing else needs.
 * Manifests that are claimed stay, for a push that is not to be seen yet may be giving them a tag.
 */
export function planForgetting(
  repository: PushedRepository,
  tags: Iterable<string>,
  digests: Iterable<Digest>,
  isClaimed: (digest: Digest) => boolean,
): PushedChange[] {
  const named = new Set(digests)
  const goneTags = new Set(tags)
  for (const [tag, { digest }] of repository.tags) if (named.has(digest)) goneTags.add(tag)
  const stillTagged = new Set(remaining(repository, goneTags))
  const orphaned = new Set(named)
  for (const tag of goneTags) {
    const digest = repository.tags.get(tag)?.digest
    if (digest !== undefined && !stillTagged.has(digest)) orphaned.add(digest)
  }
  const attached = new Set(
    Array.from(orphaned, (digest) => `${digestAlgorithm(digest)}-${digestHex(digest).slice(0, 64)}`),
  )
  for (const tag of repository.tags.keys()) if (attached.has(attachedTo(tag) ?? '')) goneTags.add(tag)

  const roots = [...goneTags].flatMap((tag) => repository.tags.get(tag)?.digest ?? [])
  const reached = closureOf(repository, [...roots, ...named])
  const others = [...repository.manifests.keys()].filter((digest) => !reached.has(digest) || isClaimed(digest))
  const kept = closureOf(repository, [...others, ...remaining(repository, goneTags)])
  const dropped = [...reached].filter((digest) => !isClaimed(digest) && (named.has(digest) || !kept.has(digest)))
  return [
    ...[...goneTags].flatMap((tag) => {
      const pushedAt = repository.tags.get(tag)?.pushedAt
      return pushedAt === undefined ? [] : { op: 'untag' as const, tag, pushedAt }
    }),
    ...dropped.map((digest) => ({ op: 'drop-manifest' as const, digest })),
  ]
}

/** What the tags that stay lead to. */
function remaining({ tags }: PushedRepository, gone: ReadonlySet<string>): Digest[] {
  return [...tags].flatMap(([tag, { digest }]) => (gone.has(tag) ? [] : digest))
}
