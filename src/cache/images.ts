import type { Digest } from '../oci/digest.ts'
import { type ImageRoot, imageRoots } from '../store/image-roots.ts'
import type { RefStore, RepositoryRecord } from '../store/records.ts'

/** Something a user would call an image, of which at least a part is held. */
export interface CachedImage {
  /** `docker.io/library/alpine:3.20`, or `docker.io/library/alpine@sha256:…` for one without a tag. */
  readonly name: string
  readonly host: string
  readonly repository: string
  readonly tag: string | undefined
  readonly digest: Digest
  /** Bytes of it that are held; what images share is counted for each. */
  readonly bytes: number
  readonly pulls: number
  /** Wall clock ms; undefined when it was never pulled. */
  readonly lastPulled: number | undefined
  /** When the upstream last confirmed the tag, wall clock ms. */
  readonly checkedAt: number | undefined
}

/** What is cached, as images: one a tag, and those only ever asked for by digest. Sorted by name. */
export function listImages(refs: Pick<RefStore, 'all'>, sizes: ReadonlyMap<Digest, number>): CachedImage[] {
  const images: CachedImage[] = []
  for (const record of refs.all()) {
    for (const root of imageRoots(record)) {
      let bytes = 0
      for (const digest of root.contents) bytes += sizes.get(digest) ?? 0
      if (bytes > 0) images.push(...describe(root, bytes))
    }
  }
  return images.toSorted((a, b) => (a.name < b.name ? -1 : 1))
}

/** An image's name, by tag or digest. */
export function imageName({ host, name }: RepositoryRecord, reference: { tag: string } | { digest: Digest }): string {
  return 'tag' in reference ? `${host}/${name}:${reference.tag}` : `${host}/${name}@${reference.digest}`
}

function describe({ record, digest, tags }: ImageRoot, bytes: number): CachedImage[] {
  if (tags.length === 0) return [imageOf(record, digest, bytes, undefined, record.manifests.get(digest)!)]
  return tags.map((tag) => imageOf(record, digest, bytes, tag, record.tags.get(tag)!))
}

function imageOf(
  record: RepositoryRecord,
  digest: Digest,
  bytes: number,
  tag: string | undefined,
  { pulls, lastPulled, checkedAt = 0 }: { pulls: number; lastPulled: number; checkedAt?: number },
): CachedImage {
  return {
    name: imageName(record, tag === undefined ? { digest } : { tag }),
    host: record.host,
    repository: record.name,
    tag,
    digest,
    bytes,
    pulls,
    lastPulled: timeOrNever(lastPulled),
    checkedAt: timeOrNever(checkedAt),
  }
}

function timeOrNever(time: number): number | undefined {
  return time > 0 ? time : undefined
}
