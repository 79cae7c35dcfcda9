import type { Digest } from '../oci/digest.ts'
import type { Holding } from './holdings.ts'
import { imageRoots } from './image-roots.ts'
import { imageName } from '../cache/images.ts'
import type { RepositoryRecord } from './records.ts'

/** A holding to be let go of, or only some of its tags. */
export interface Forgotten {
  readonly holding: Holding
  readonly tags: readonly string[]
  /** False when other tags keep the image. */
  readonly whole: boolean
}

/** Takes holdings of one repository out of its record; manifests that another of its images names stay. */
export function forget(record: RepositoryRecord, gone: readonly Forgotten[]): void {
  const roots = new Set<Digest>()
  for (const { holding, tags, whole } of gone) {
    for (const tag of tags) if (record.tags.get(tag)?.digest === holding.digest) record.tags.delete(tag)
    if (whole && holding.kind === 'blob') record.blobs.delete(holding.digest)
    else if (whole && holding.kind === 'referrers') dropLists(record, new Set([holding.digest]))
    else if (whole) roots.add(holding.digest)
  }
  if (roots.size === 0) return
  const kept = new Set<Digest>()
  for (const root of imageRoots(record))
    if (root.tags.length > 0 || !roots.has(root.digest)) for (const digest of root.manifests) kept.add(digest)
  const dropped = new Set<Digest>()
  for (const { holding, whole } of gone)
    if (whole)
      for (const digest of holding.manifests)
        if (!kept.has(digest) && record.manifests.delete(digest)) dropped.add(digest)
  dropLists(record, dropped)
}

/** The lists of what refers to an image go with it. */
function dropLists({ referrers }: RepositoryRecord, subjects: ReadonlySet<Digest>): void {
  for (const [key, { subject }] of referrers) if (subjects.has(subject)) referrers.delete(key)
}

/** What a user calls it; a blob or a list by itself has no name. */
export function forgottenNames({ holding, tags }: Forgotten): string[] {
  const { record, digest, kind } = holding
  if (kind !== 'image') return []
  return tags.length > 0 ? tags.map((tag) => imageName(record, { tag })) : [imageName(record, { digest })]
}

/** The same of what is listed as an image: something of it must be held, which a HEAD alone does not bring. */
export function removedImages(gone: readonly Forgotten[], sizes: ReadonlyMap<Digest, number>): string[] {
  const isHeld = ({ holding }: Forgotten) => [...holding.contents].some((digest) => (sizes.get(digest) ?? 0) > 0)
  return gone.filter(isHeld).flatMap(forgottenNames)
}
