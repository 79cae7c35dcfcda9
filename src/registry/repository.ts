import type { Digest } from '../oci/digest.ts'

/** What one repository of the local registry holds. Other repositories may hold the same bytes: that is no business of this one. */
export interface PushedRepository {
  readonly name: string
  readonly tags: ReadonlyMap<string, PushedTag>
  readonly manifests: ReadonlyMap<Digest, PushedManifest>
  readonly blobs: ReadonlyMap<Digest, PushedBlob>
}

interface PushedTag {
  readonly digest: Digest
  /** Wall clock ms. */
  readonly pushedAt: number
}

/** What is known of a manifest without reading it. What it names and its annotations stand in the manifest alone. */
export interface PushedManifest {
  readonly mediaType: string
  /** Bytes. */
  readonly size: number
  readonly subject?: Digest | undefined
  /** Of a referrer, what its artifact type is found by: see `artifactTypeKey`. */
  readonly artifactType?: string | undefined
  /** Wall clock ms. */
  readonly pushedAt: number
  /** Running time ms (see `RunningClock`). */
  readonly heldSince: number
}

export interface PushedBlob {
  /** Bytes. */
  readonly size: number
  /** Running time ms: when a client last learned that the repository holds it. */
  readonly heldSince: number
}

/** One step in the life of a repository, as its journal keeps it. */
export type PushedChange =
  | ({ readonly op: 'tag'; readonly tag: string } & PushedTag)
  /** With the time of a push, only what that push has set: a tag that was pushed since stays. */
  | { readonly op: 'untag'; readonly tag: string; readonly pushedAt?: number }
  | ({ readonly op: 'manifest'; readonly digest: Digest } & PushedManifest)
  | { readonly op: 'drop-manifest'; readonly digest: Digest }
  | ({ readonly op: 'blob'; readonly digest: Digest } & PushedBlob)
  | { readonly op: 'drop-blob'; readonly digest: Digest }

/** A repository as its journal builds it. */
export interface MutableRepository extends PushedRepository {
  readonly tags: Map<string, PushedTag>
  readonly manifests: Map<Digest, PushedManifest>
  readonly blobs: Map<Digest, PushedBlob>
}

export function createEmptyRepository(name: string): MutableRepository {
  return { name, tags: new Map(), manifests: new Map(), blobs: new Map() }
}

export function isEmptyRepository({ tags, manifests, blobs }: PushedRepository): boolean {
  return tags.size + manifests.size + blobs.size === 0
}

export function applyChange(repository: MutableRepository, change: PushedChange): void {
  switch (change.op) {
    case 'tag': {
      const { tag, digest, pushedAt } = change
      repository.tags.set(tag, { digest, pushedAt })
      return
    }
    case 'untag': {
      const { tag, pushedAt } = change
      if (pushedAt === undefined || repository.tags.get(tag)?.pushedAt === pushedAt) repository.tags.delete(tag)
      return
    }
    case 'manifest':
      repository.manifests.set(change.digest, toManifestEntry(change))
      return
    case 'drop-manifest':
      repository.manifests.delete(change.digest)
      return
    case 'blob': {
      const { digest, size, heldSince } = change
      repository.blobs.set(digest, { size, heldSince })
      return
    }
    case 'drop-blob':
      repository.blobs.delete(change.digest)
  }
}

/** A manifest's record without whatever else the object has: its caller may have read the whole manifest. */
function toManifestEntry({
  mediaType,
  size,
  subject,
  artifactType,
  pushedAt,
  heldSince,
}: PushedManifest): PushedManifest {
  return {
    mediaType,
    size,
    ...(subject === undefined ? {} : { subject }),
    ...(artifactType === undefined ? {} : { artifactType }),
    pushedAt,
    heldSince,
  }
}

/** What the repository would be after these changes; itself when there are none. */
export function withChanges(repository: PushedRepository, changes: readonly PushedChange[]): PushedRepository {
  if (changes.length === 0) return repository
  const copy = copyRepository(repository)
  for (const change of changes) applyChange(copy, change)
  return copy
}

/** The repository as it is now, whatever becomes of it. */
export function copyRepository({ name, tags, manifests, blobs }: PushedRepository): MutableRepository {
  return { name, tags: new Map(tags), manifests: new Map(manifests), blobs: new Map(blobs) }
}

/** The shortest history that ends in this state. Entries that go while it is read may be left out. */
export function* toChanges({ tags, manifests, blobs }: PushedRepository): Generator<PushedChange, void> {
  for (const [digest, blob] of blobs) yield { op: 'blob', digest, ...blob }
  for (const [digest, manifest] of manifests) yield { op: 'manifest', digest, ...manifest }
  for (const [tag, value] of tags) yield { op: 'tag', tag, ...value }
}

/** Whether a change takes something away. */
export function isRemoval({ op }: PushedChange): boolean {
  return op === 'untag' || op === 'drop-manifest' || op === 'drop-blob'
}
