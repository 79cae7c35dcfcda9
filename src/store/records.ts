import type { ManifestLink } from '../oci/content.ts'
import type { Digest } from '../oci/reference.ts'
import type { Identity } from '../oci/registry.ts'

/** Estimates the overhead of the parts in a record's file, bytes: names of members, numbers, quotes. */
const [recordBytes, manifestBytes, linkBytes, entryBytes] = [300, 250, 70, 250]

/**
 * Stores what upstreams have confirmed about their repositories: mutable tags of immutable content, and the digests that each
 * repository holds (decision D5). All records are in memory after `open`. Changes are written with a delay, to one JSON file per
 * repository.
 */
export interface RefStore {
  get(host: string, name: string): RepositoryRecord | undefined
  /** Returns the record, and creates it when there is none. */
  ensure(host: string, name: string): RepositoryRecord
  all(): Iterable<RepositoryRecord>
  /** Schedules the write of a changed record. The file of an empty record is removed. */
  touch(record: RepositoryRecord): void
  /** Writes all changes now. */
  flush(): Promise<void>
}

/**
 * Holds the record of one repository. `identity` in its parts: the identity of the credential to which the upstream confirmed the
 * content; see `anonymousIdentity`.
 */
export interface RepositoryRecord {
  readonly host: string
  readonly name: string
  readonly tags: Map<string, TagRecord>
  readonly manifests: ManifestRecords
  /** Holds the blobs that the upstream confirmed individually, without a manifest of this repository that names them. */
  readonly blobs: Map<Digest, BlobRecord>
  /** Holds the latest lists of referrers from the upstream, by subject, identity and query. */
  readonly referrers: Map<string, ReferrersRecord>
}

/** Holds the manifests of a repository by digest, and an index of the content that they name. */
export class ManifestRecords extends Map<Digest, ManifestRecord> {
  /** Holds the digests of the manifests that name a digest, in the order in which they were set. */
  readonly #parents = new Map<Digest, Set<Digest>>()

  constructor(entries: Iterable<readonly [Digest, ManifestRecord]> = []) {
    super()
    for (const [digest, manifest] of entries) this.set(digest, manifest)
  }

  override set(digest: Digest, manifest: ManifestRecord): this {
    this.#removeLinks(digest)
    for (const link of manifest.links) {
      const parents = this.#parents.get(link.digest)
      if (parents) parents.add(digest)
      else this.#parents.set(link.digest, new Set([digest]))
    }
    return super.set(digest, manifest)
  }

  override delete(digest: Digest): boolean {
    this.#removeLinks(digest)
    return super.delete(digest)
  }

  override clear(): void {
    this.#parents.clear()
    super.clear()
  }

  /** Yields the manifests that name this digest. */
  *naming(digest: Digest): Generator<[Digest, ManifestRecord], void> {
    for (const parent of this.#parents.get(digest) ?? []) yield [parent, this.get(parent)!]
  }

  #removeLinks(digest: Digest): void {
    for (const link of this.get(digest)?.links ?? []) {
      const parents = this.#parents.get(link.digest)
      parents?.delete(digest)
      if (parents?.size === 0) this.#parents.delete(link.digest)
    }
  }
}

export interface TagRecord {
  digest: Digest
  identity: Identity
  /** Holds the time of the upstream's last confirmation, wall clock ms; for display. */
  checkedAt: number
  /** Counts the pulls by this tag. */
  pulls: number
  /** Holds the time of the last pull by this tag, wall clock ms, for display; 0 = never. */
  lastPulled: number
}

export interface ManifestRecord {
  readonly mediaType: string
  /** Bytes of the manifest itself. */
  readonly size: number
  identity: Identity
  readonly links: readonly ManifestLink[]
  /** Counts the pulls by digest. */
  pulls: number
  /** Holds the time of the last pull by digest, wall clock ms, for display; 0 = never. */
  lastPulled: number
  /**
   * Holds the time of the last pull (by tag or digest) or the first fetch, in running time ms (see `RunningClock`), for eviction.
   */
  usedAt: number
}

export interface BlobRecord {
  readonly size: number
  identity: Identity
  usedAt: number
}

/** Holds one page of a list of referrers, to serve while the upstream is unavailable. Its body is a blob of the store. */
export interface ReferrersRecord {
  /** Holds the manifest to which the referrers refer. */
  readonly subject: Digest
  readonly identity: Identity
  /** Holds the query of the page; empty for the start of the whole list. */
  readonly query: string
  readonly digest: Digest
  readonly size: number
  /** Holds the query of the next page. */
  readonly next: string | undefined
  /** Holds the value of the header `OCI-Filters-Applied`. */
  readonly filtersApplied: string | undefined
  /** Is true when the upstream has neither a referrers API nor a referrers tag, so that the list is empty. */
  readonly isWithoutApi: boolean
  usedAt: number
}

/** Estimates the size of a record in its file, bytes. In memory it takes about twice as much. */
export function estimateBytes(record: RepositoryRecord): number {
  let bytes = recordBytes
  for (const { weight } of getParts(record)) bytes += weight
  return bytes
}

/** Drops the least recently used parts of these records until they have at most `maxBytes`. Returns the changed records. */
export function dropLeastRecentlyUsed(records: Iterable<RepositoryRecord>, maxBytes: number): Set<RepositoryRecord> {
  const parts = Array.from(records, (record) => [...getParts(record)].map((part) => ({ ...part, record }))).flat()
  let weight = parts.reduce((sum, part) => sum + part.weight, 0)
  const changed = new Set<RepositoryRecord>()
  for (const part of parts.toSorted((a, b) => a.usedAt - b.usedAt)) {
    if (weight <= maxBytes) break
    part.drop()
    weight -= part.weight
    changed.add(part.record)
  }
  return changed
}

interface RecordPart {
  /** Bytes. */
  readonly weight: number
  /** Running time ms. */
  readonly usedAt: number
  drop(): void
}

/** Yields the parts of a record that may be dropped, because they are requested from the upstream again when needed. */
function* getParts({ tags, manifests, blobs, referrers }: RepositoryRecord): Generator<RecordPart, void> {
  for (const [digest, { links, mediaType, usedAt }] of manifests) {
    let weight = manifestBytes + mediaType.length
    for (const link of links) weight += linkBytes + link.digest.length + link.mediaType.length
    yield { weight, usedAt, drop: () => void manifests.delete(digest) }
  }
  for (const [tag, { digest }] of tags)
    yield {
      weight: entryBytes + tag.length,
      usedAt: manifests.get(digest)?.usedAt ?? 0,
      drop: () => void tags.delete(tag),
    }
  for (const [digest, { usedAt }] of blobs) yield { weight: entryBytes, usedAt, drop: () => void blobs.delete(digest) }
  for (const [key, { query, next, filtersApplied, usedAt }] of referrers) {
    const texts = query.length + (next?.length ?? 0) + (filtersApplied?.length ?? 0)
    yield { weight: entryBytes * 2 + texts, usedAt, drop: () => void referrers.delete(key) }
  }
}
