import type { Digest } from '../oci/reference.ts'
import type { ReferrersRecord, RefStore, RepositoryRecord } from '../store/records.ts'

/** References between two pauses. */
const pauseEvery = 256

/** Describes an image of which at least one blob is stored. */
interface CachedImage {
  /** `docker.io/library/alpine:3.20`, or `docker.io/library/alpine@sha256:…` for one without a tag. */
  readonly name: string
  readonly host: string
  readonly repository: string
  readonly tag: string | undefined
  readonly digest: Digest
  /** Stored bytes; content that images share counts for each of them. */
  readonly bytes: number
  readonly pulls: number
  /** Wall clock ms; undefined when it was never pulled. */
  readonly lastPulled: number | undefined
  /** Holds the time when the upstream last confirmed the tag, wall clock ms. */
  readonly checkedAt: number | undefined
}

/** Lists the cached images: one per tag, and those that were only pulled by digest. Sorted by name. */
export function listCachedImages(refs: Pick<RefStore, 'all'>, sizes: ReadonlyMap<Digest, number>): CachedImage[] {
  const images: CachedImage[] = []
  for (const record of refs.all()) {
    for (const root of findImageRoots(record)) {
      let bytes = 0
      for (const digest of root.contents) bytes += sizes.get(digest) ?? 0
      if (bytes > 0) images.push(...toCachedImages(root, bytes))
    }
  }
  return images.toSorted((a, b) => (a.name < b.name ? -1 : 1))
}

/** Formats the name of an image: `<registry>/<repository>:<tag>` or `<registry>/<repository>@<digest>`. */
export function toImageName({ host, name }: RepositoryRecord, reference: { tag: string } | { digest: Digest }): string {
  return 'tag' in reference ? `${host}/${name}:${reference.tag}` : `${host}/${name}@${reference.digest}`
}

function toCachedImages({ record, digest, tags }: ImageRoot, bytes: number): CachedImage[] {
  if (tags.length === 0) return [toCachedImage(record, digest, bytes, undefined, record.manifests.get(digest)!)]
  return tags.map((tag) => toCachedImage(record, digest, bytes, tag, record.tags.get(tag)!))
}

function toCachedImage(
  record: RepositoryRecord,
  digest: Digest,
  bytes: number,
  tag: string | undefined,
  { pulls, lastPulled, checkedAt = 0 }: { pulls: number; lastPulled: number; checkedAt?: number },
): CachedImage {
  return {
    name: toImageName(record, tag === undefined ? { digest } : { tag }),
    host: record.host,
    repository: record.name,
    tag,
    digest,
    bytes,
    pulls,
    lastPulled: toOptionalTime(lastPulled),
    checkedAt: toOptionalTime(checkedAt),
  }
}

function toOptionalTime(time: number): number | undefined {
  return time > 0 ? time : undefined
}

/** Describes the root manifest of an image: one with tags, or one that no other manifest of its repository names. */
interface ImageRoot {
  readonly record: RepositoryRecord
  readonly digest: Digest
  readonly tags: readonly string[]
  /** Holds the recorded manifests of the image, the root first. */
  readonly manifests: readonly Digest[]
  /** Lists all digests of the image: its manifests, its blobs, and the lists of its referrers. */
  readonly contents: ReadonlySet<Digest>
  /** Holds the latest use of any of its manifests, running time ms. */
  readonly usedAt: number
}

/** Finds the images of a repository, one at a time, so that the caller can pause in between. */
export function* findImageRoots(record: RepositoryRecord): Generator<ImageRoot, void> {
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

/**
 * Describes a reference that keeps content in the store: an image, a blob with a grant of its own, or the lists of referrers of a
 * manifest without a record (the lists of a recorded manifest are part of its image).
 */
export interface ImageReference extends ImageRoot {
  readonly kind: 'image' | 'blob' | 'referrers'
}

/** Holds all references to stored content. */
export interface References {
  readonly all: ImageReference[]
  /** Counts the references to each digest. */
  readonly counts: Map<Digest, number>
}

/** Collects the references of all records in small steps; the caller may pause between two of them. */
export function* collectReferences(records: Iterable<RepositoryRecord>): Generator<undefined, References> {
  const all: ImageReference[] = []
  const counts = new Map<Digest, number>()
  for (const record of records) {
    for (const reference of collectFromRecord(record)) {
      all.push(reference)
      for (const digest of reference.contents) counts.set(digest, (counts.get(digest) ?? 0) + 1)
      if (all.length % pauseEvery === 0) yield
    }
  }
  return { all, counts }
}

function* collectFromRecord(record: RepositoryRecord): Generator<ImageReference> {
  for (const root of findImageRoots(record)) yield { kind: 'image', ...root }
  for (const [digest, { usedAt }] of record.blobs)
    yield { kind: 'blob', record, digest, tags: [], manifests: [], contents: new Set([digest]), usedAt }
  for (const [subject, lists] of groupOrphanLists(record))
    yield {
      kind: 'referrers',
      record,
      digest: subject,
      tags: [],
      manifests: [],
      contents: new Set(lists.map(({ digest }) => digest)),
      usedAt: Math.max(...lists.map(({ usedAt }) => usedAt)),
    }
}

/** Groups the lists of referrers of manifests that the record does not have, by subject. */
function groupOrphanLists(record: RepositoryRecord): Map<Digest, ReferrersRecord[]> {
  const lists = new Map<Digest, ReferrersRecord[]>()
  for (const list of record.referrers.values())
    if (!record.manifests.has(list.subject)) lists.set(list.subject, [...(lists.get(list.subject) ?? []), list])
  return lists
}
