import type { ManifestLink } from '../oci/content.ts'
import type { Digest } from '../oci/digest.ts'
import type { Identity } from '../oci/registry.ts'

/**
 * What an upstream has told us of its repositories: mutable tags over immutable content, and its word on what each repository
 * holds (decision D5). Everything is in memory after `open`; changes are written behind, one JSON file a repository.
 */
export interface RefStore {
  get(host: string, name: string): RepositoryRecord | undefined
  /** The record, made when there is none. */
  ensure(host: string, name: string): RepositoryRecord
  all(): Iterable<RepositoryRecord>
  /** Says that a record was changed; it is written soon. An empty record's file is removed. */
  touch(record: RepositoryRecord): void
  /** Writes all changes now. */
  flush(): Promise<void>
}

/** `identity` throughout: whose credential the upstream gave its word to; see `anonymousIdentity`. */
export interface RepositoryRecord {
  readonly host: string
  readonly name: string
  readonly tags: Map<string, TagRecord>
  readonly manifests: Map<Digest, ManifestRecord>
  /** Blobs confirmed one by one, without a manifest of this repository that names them. */
  readonly blobs: Map<Digest, BlobRecord>
  /** The last lists of referrers that the upstream sent, by subject, identity and query. */
  readonly referrers: Map<string, ReferrersRecord>
}

export interface TagRecord {
  digest: Digest
  identity: Identity
  /** When the upstream last confirmed it, wall clock ms; for display. */
  checkedAt: number
  /** How often it was pulled by this tag. */
  pulls: number
  /** Last pull by this tag: wall clock ms, for display; 0 = never. */
  lastPulled: number
}

export interface ManifestRecord {
  readonly mediaType: string
  /** Bytes of the manifest itself. */
  readonly size: number
  identity: Identity
  readonly links: readonly ManifestLink[]
  /** How often it was pulled by digest alone. */
  pulls: number
  /** Last pull by digest alone: wall clock ms, for display; 0 = never. */
  lastPulled: number
  /** Last pull (by any name) or first fetch in running time ms (see `RunningClock`), for eviction. */
  usedAt: number
}

export interface BlobRecord {
  readonly size: number
  identity: Identity
  usedAt: number
}

/** One page of a list of referrers, to stand in for the upstream while it is out. Its body is a blob of the store. */
export interface ReferrersRecord {
  /** The manifest that is referred to. */
  readonly subject: Digest
  readonly identity: Identity
  /** The query it answers; empty for the beginning of the whole list. */
  readonly query: string
  readonly digest: Digest
  readonly size: number
  /** The query of the next page. */
  readonly next: string | undefined
  /** `OCI-Filters-Applied`. */
  readonly filtersApplied: string | undefined
  /** The upstream has no API of referrers, and no tag with a list of them either: nothing refers to the subject. */
  readonly isWithoutApi: boolean
  usedAt: number
}

/** Bytes of a record's file besides what is counted: names of members, numbers, quotes. */
const [recordBytes, manifestBytes, linkBytes, entryBytes] = [300, 250, 70, 250]

/** About how many bytes a record takes in its file; in memory it takes about twice as many. */
export function estimateBytes(record: RepositoryRecord): number {
  let bytes = recordBytes
  for (const { weight } of getParts(record)) bytes += weight
  return bytes
}

/** Drops what was used the longest ago of these records until they weigh less than `most`; those that were changed. */
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

/** What may be dropped, and is asked for again when it is wanted. */
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
