import type { RepositoryRecord } from './records.ts'

/** Bytes of a record's file besides what is counted: names of members, numbers, quotes. */
const [recordBytes, manifestBytes, linkBytes, entryBytes] = [300, 250, 70, 250]

/** About how many bytes a record takes in its file; in memory it takes about twice as many. */
export function weightOf(record: RepositoryRecord): number {
  let bytes = recordBytes
  for (const { weight } of partsOf(record)) bytes += weight
  return bytes
}

/** Drops what was used the longest ago of these records until they weigh less than `most`; those that were changed. */
export function lighten(records: Iterable<RepositoryRecord>, most: number): Set<RepositoryRecord> {
  const parts = Array.from(records, (record) => [...partsOf(record)].map((part) => ({ ...part, record }))).flat()
  let weight = parts.reduce((sum, part) => sum + part.weight, 0)
  const changed = new Set<RepositoryRecord>()
  for (const part of parts.toSorted((a, b) => a.usedAt - b.usedAt)) {
    if (weight <= most) break
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
function* partsOf({ tags, manifests, blobs, referrers }: RepositoryRecord): Generator<RecordPart, void> {
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
