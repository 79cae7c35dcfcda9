import type { Digest } from '../oci/digest.ts'
import { imageRoots, type ImageRoot } from './image-roots.ts'
import type { ReferrersRecord, RepositoryRecord } from './records.ts'

/**
 * A reason to keep content: an image of a repository, a blob that was confirmed by itself, or lists of what refers to an image
 * that is not held (those of a held image are part of it).
 */
export interface Holding extends ImageRoot {
  readonly kind: 'image' | 'blob' | 'referrers'
}

/** Every reason there is, and how many of them each digest has. */
export interface Holdings {
  readonly all: Holding[]
  readonly holders: Map<Digest, number>
}

const pauseEvery = 256

/** Surveys the records in small steps; between two of them the caller may pause. */
export function* surveyHoldings(records: Iterable<RepositoryRecord>): Generator<undefined, Holdings> {
  const all: Holding[] = []
  const holders = new Map<Digest, number>()
  for (const record of records) {
    for (const holding of holdingsOf(record)) {
      all.push(holding)
      for (const digest of holding.contents) holders.set(digest, (holders.get(digest) ?? 0) + 1)
      if (all.length % pauseEvery === 0) yield
    }
  }
  return { all, holders }
}

function* holdingsOf(record: RepositoryRecord): Generator<Holding> {
  for (const root of imageRoots(record)) yield { kind: 'image', ...root }
  for (const [digest, { usedAt }] of record.blobs)
    yield { kind: 'blob', record, digest, tags: [], manifests: [], contents: new Set([digest]), usedAt }
  for (const [subject, lists] of listsOfOthers(record))
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

/** Lists of what refers to manifests that the record does not have, by subject. */
function listsOfOthers(record: RepositoryRecord): Map<Digest, ReferrersRecord[]> {
  const lists = new Map<Digest, ReferrersRecord[]>()
  for (const list of record.referrers.values())
    if (!record.manifests.has(list.subject)) lists.set(list.subject, [...(lists.get(list.subject) ?? []), list])
  return lists
}
