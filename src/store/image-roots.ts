import type { Digest } from '../oci/digest.ts'
import type { RepositoryRecord } from './records.ts'

/** A manifest that somebody asks for by name: one with tags, or one that no other manifest of its repository names. */
export interface ImageRoot {
  readonly record: RepositoryRecord
  readonly digest: Digest
  readonly tags: readonly string[]
  /** The recorded manifests of the image, its own first. */
  readonly manifests: readonly Digest[]
  /** Every digest of the image: manifests, blobs, and the lists of what refers to it. */
  readonly contents: ReadonlySet<Digest>
  /** The latest use of any of its manifests, running time ms. */
  readonly usedAt: number
}

/** The images of a repository, one at a time, so that a caller can pause in between. */
export function* imageRoots(record: RepositoryRecord): Generator<ImageRoot, void> {
  const tags = new Map<Digest, string[]>()
  for (const [tag, { digest }] of record.tags) {
    const others = tags.get(digest)
    if (others) others.push(tag)
    else tags.set(digest, [tag])
  }
  const children = new Set<Digest>()
  for (const [digest, { links }] of record.manifests)
    for (const link of links) if (link.kind === 'manifest' && link.digest !== digest) children.add(link.digest)
  const lists = new Map<Digest, Digest[]>()
  for (const { subject, digest } of record.referrers.values())
    lists.set(subject, [...(lists.get(subject) ?? []), digest])
  for (const [digest, names] of tags) yield describeRoot(record, lists, digest, names)
  for (const digest of record.manifests.keys())
    if (!tags.has(digest) && !children.has(digest)) yield describeRoot(record, lists, digest, [])
}

function describeRoot(
  record: RepositoryRecord,
  lists: ReadonlyMap<Digest, readonly Digest[]>,
  digest: Digest,
  tags: string[],
): ImageRoot {
  const manifests: Digest[] = []
  const contents = new Set<Digest>([digest])
  let usedAt = 0
  // The set grows while it is walked, and never visits a digest twice.
  for (const at of contents) {
    const manifest = record.manifests.get(at)
    if (!manifest) continue
    manifests.push(at)
    usedAt = Math.max(usedAt, manifest.usedAt)
    for (const link of manifest.links) contents.add(link.digest)
    for (const list of lists.get(at) ?? []) contents.add(list)
  }
  return { record, digest, tags, manifests, contents, usedAt }
}
