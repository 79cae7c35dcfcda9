import type { Metadata, ReferrersPage, Repository, Tag } from '../metadata/metadata.ts'
import type { Digest } from '../oci/reference.ts'

/** References between two pauses. */
const pauseEvery = 256

/** Describes an image of which at least one blob is stored. */
export interface CachedImage {
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
  /** Holds the latest use, running time ms: the image with the lowest value is evicted first. */
  readonly usedAt: number
}

/**
 * Lists the cached images: one per tag, and those that were only pulled by digest. Sorted by name. `pause` is called between two of them, so
 * that requests are answered meanwhile.
 */
export async function listCachedImages(
  metadata: Pick<Metadata, 'all'>,
  sizes: ReadonlyMap<Digest, number>,
  pause: () => Promise<void>,
): Promise<CachedImage[]> {
  const images: CachedImage[] = []
  let roots = 0
  for (const repository of metadata.all()) {
    for (const root of findImageRoots(repository)) {
      let bytes = 0
      for (const digest of root.contents) bytes += sizes.get(digest) ?? 0
      if (bytes > 0) images.push(...toCachedImages(root, bytes))
      if (++roots % pauseEvery === 0) await pause()
    }
  }
  return images.toSorted((a, b) => (a.name < b.name ? -1 : 1))
}

/** Formats the name of an image: `<registry>/<repository>:<tag>` or `<registry>/<repository>@<digest>`. */
export function toImageName({ host, name }: Repository, reference: { tag: string } | { digest: Digest }): string {
  return 'tag' in reference ? `${host}/${name}:${reference.tag}` : `${host}/${name}@${reference.digest}`
}

function toCachedImages({ repository, digest, tags, usedAt }: ImageRoot, bytes: number): CachedImage[] {
  const manifest = repository.manifests.get(digest)
  if (tags.length === 0)
    return manifest
      ? [toCachedImage(repository, digest, undefined, { bytes, usedAt }, { ...manifest, updatedAt: 0 })]
      : []
  return tags.flatMap((tag) => {
    const value = repository.tags.get(tag)
    return value ? toCachedImage(repository, digest, tag, { bytes, usedAt }, value) : []
  })
}

function toCachedImage(
  repository: Repository,
  digest: Digest,
  tag: string | undefined,
  { bytes, usedAt }: Pick<CachedImage, 'bytes' | 'usedAt'>,
  { pulls, lastPulled, updatedAt }: Pick<Tag, 'pulls' | 'lastPulled' | 'updatedAt'>,
): CachedImage {
  return {
    name: toImageName(repository, tag === undefined ? { digest } : { tag }),
    host: repository.host,
    repository: repository.name,
    tag,
    digest,
    bytes,
    pulls,
    lastPulled: toOptionalTime(lastPulled),
    checkedAt: toOptionalTime(updatedAt),
    usedAt,
  }
}

function toOptionalTime(time: number): number | undefined {
  return time > 0 ? time : undefined
}

/** Describes the root manifest of an image: one with tags, or one that no other manifest of its repository names. */
interface ImageRoot {
  /** Is empty when the repository lost its last entry since; then another object may stand for it. */
  readonly repository: Repository
  readonly digest: Digest
  readonly tags: readonly string[]
  /** Holds the recorded manifests of the image, the root first. */
  readonly manifests: readonly Digest[]
  /** Lists all digests of the image: its manifests, its blobs, and the lists of its referrers. */
  readonly contents: ReadonlySet<Digest>
  /** Holds the latest use of any of its manifests, running time ms. */
  readonly usedAt: number
}

/**
 * Finds the images of a repository without some of its tags, one at a time, so that the caller can pause in between. May omit images that
 * are removed in a pause.
 */
export function* findImageRoots(
  repository: Repository,
  withoutTags: ReadonlySet<string> = new Set(),
): Generator<ImageRoot, void> {
  const tags = new Map<Digest, string[]>()
  for (const [tag, { digest }] of repository.tags) {
    if (withoutTags.has(tag)) continue
    const others = tags.get(digest)
    if (others) others.push(tag)
    else tags.set(digest, [tag])
  }
  const lists = new Map<Digest, Digest[]>()
  for (const { subject, digest } of repository.referrers.values())
    lists.set(subject, [...(lists.get(subject) ?? []), digest])
  for (const [digest, names] of tags) yield describeRoot(repository, lists, digest, names)
  for (const digest of repository.manifests.keys())
    if (!tags.has(digest) && !isChild(repository, digest)) yield describeRoot(repository, lists, digest, [])
}

function isChild(repository: Repository, digest: Digest): boolean {
  return repository.getParents(digest).some((parent) => parent !== digest)
}

function describeRoot(
  repository: Repository,
  lists: ReadonlyMap<Digest, readonly Digest[]>,
  digest: Digest,
  tags: string[],
): ImageRoot {
  const manifests: Digest[] = []
  const contents = new Set<Digest>([digest])
  let usedAt = 0
  // The set grows while it is walked, and never visits a digest twice.
  for (const at of contents) {
    const manifest = repository.manifests.get(at)
    if (!manifest) continue
    manifests.push(at)
    usedAt = Math.max(usedAt, manifest.usedAt)
    for (const link of repository.getLinks(at)) contents.add(link.digest)
    for (const list of lists.get(at) ?? []) contents.add(list)
  }
  return { repository, digest, tags, manifests, contents, usedAt }
}

/**
 * Describes a reference that keeps content in the store: an image, a blob with a grant of its own, or the lists of referrers of a
 * manifest that is not recorded (the lists of a recorded manifest are part of its image).
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

/** Collects the references of all repositories in small steps; the caller may pause between two of them. */
export function* collectReferences(repositories: Iterable<Repository>): Generator<undefined, References> {
  const all: ImageReference[] = []
  const counts = new Map<Digest, number>()
  for (const repository of repositories) {
    for (const reference of collectFromRepository(repository)) {
      all.push(reference)
      for (const digest of reference.contents) counts.set(digest, (counts.get(digest) ?? 0) + 1)
      if (all.length % pauseEvery === 0) yield
    }
  }
  return { all, counts }
}

function* collectFromRepository(repository: Repository): Generator<ImageReference> {
  for (const root of findImageRoots(repository)) yield { kind: 'image', ...root }
  for (const [digest, { usedAt }] of repository.blobs)
    yield { kind: 'blob', repository, digest, tags: [], manifests: [], contents: new Set([digest]), usedAt }
  for (const [subject, lists] of groupOrphanLists(repository))
    yield {
      kind: 'referrers',
      repository,
      digest: subject,
      tags: [],
      manifests: [],
      contents: new Set(lists.map(({ digest }) => digest)),
      usedAt: Math.max(...lists.map(({ usedAt }) => usedAt)),
    }
}

/** Groups the lists of referrers of manifests that the repository does not have, by subject. */
function groupOrphanLists(repository: Repository): Map<Digest, ReferrersPage[]> {
  const lists = new Map<Digest, ReferrersPage[]>()
  for (const list of repository.referrers.values())
    if (!repository.manifests.has(list.subject)) lists.set(list.subject, [...(lists.get(list.subject) ?? []), list])
  return lists
}
