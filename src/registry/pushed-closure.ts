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

/** What goes when tags, and manifests with all their tags, are taken away: with them everything that nothing else needs. */
export function planForgetting(
  repository: PushedRepository,
  tags: Iterable<string>,
  digests: Iterable<Digest>,
): PushedChange[] {
  const named = new Set(digests)
  const goneTags = new Set(tags)
  const remain = () => [...repository.tags].filter(([tag]) => !goneTags.has(tag))
  for (const [tag, { digest }] of repository.tags) if (named.has(digest)) goneTags.add(tag)
  const orphaned = new Set(named)
  for (const tag of goneTags) {
    const digest = repository.tags.get(tag)?.digest
    if (digest !== undefined && !remain().some(([, other]) => other.digest === digest)) orphaned.add(digest)
  }
  // Signatures of old clients hang on tags made of the digest.
  for (const [tag] of repository.tags)
    for (const digest of orphaned)
      if (tag.startsWith(`${digestAlgorithm(digest)}-${digestHex(digest).slice(0, 64)}`)) goneTags.add(tag)

  const roots = [...goneTags].flatMap((tag) => repository.tags.get(tag)?.digest ?? [])
  const reached = closureOf(repository, [...roots, ...named])
  const others = [...repository.manifests.keys()].filter((digest) => !reached.has(digest))
  const kept = closureOf(repository, [...others, ...remain().map(([, { digest }]) => digest)])
  const dropped = [...reached].filter((digest) => named.has(digest) || !kept.has(digest))
  return [
    ...Array.from(goneTags, (tag) => ({ op: 'untag' as const, tag })),
    ...dropped.map((digest) => ({ op: 'drop-manifest' as const, digest })),
  ]
}
