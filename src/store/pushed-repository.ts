import type { ManifestLink } from '../oci/descriptor.ts'
import type { Digest } from '../oci/digest.ts'

/** What one repository of the local registry holds. Other repositories may hold the same bytes: that is no business of this one. */
export interface PushedRepository {
  readonly name: string
  readonly tags: ReadonlyMap<string, PushedTag>
  readonly manifests: ReadonlyMap<Digest, PushedManifest>
  readonly blobs: ReadonlyMap<Digest, PushedBlob>
}

export interface PushedTag {
  readonly digest: Digest
  /** Wall clock ms. */
  readonly pushedAt: number
}

export interface PushedManifest {
  readonly mediaType: string
  /** Bytes. */
  readonly size: number
  readonly links: readonly ManifestLink[]
  readonly subject?: Digest | undefined
  /** As a list of referrers gives it: of an image without one, its config's media type. */
  readonly artifactType?: string | undefined
  readonly annotations?: Readonly<Record<string, string>> | undefined
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
export interface GrowingRepository extends PushedRepository {
  readonly tags: Map<string, PushedTag>
  readonly manifests: Map<Digest, PushedManifest>
  readonly blobs: Map<Digest, PushedBlob>
}

export function emptyRepository(name: string): GrowingRepository {
  return { name, tags: new Map(), manifests: new Map(), blobs: new Map() }
}

export function applyChange(repository: GrowingRepository, change: PushedChange): void {
  switch (change.op) {
    case 'tag': {
      const { op: _op, tag, ...value } = change
      repository.tags.set(tag, value)
      return
    }
    case 'untag': {
      const { tag, pushedAt } = change
      if (pushedAt === undefined || repository.tags.get(tag)?.pushedAt === pushedAt) repository.tags.delete(tag)
      return
    }
    case 'manifest': {
      const { op: _op, digest, ...value } = change
      repository.manifests.set(digest, value)
      return
    }
    case 'drop-manifest':
      repository.manifests.delete(change.digest)
      return
    case 'blob': {
      const { op: _op, digest, ...value } = change
      repository.blobs.set(digest, value)
      return
    }
    case 'drop-blob':
      repository.blobs.delete(change.digest)
  }
}

/** What the repository would be after these changes; itself when there are none. */
export function changedCopy(repository: PushedRepository, changes: readonly PushedChange[]): PushedRepository {
  if (changes.length === 0) return repository
  const { name, tags, manifests, blobs } = repository
  const copy = { name, tags: new Map(tags), manifests: new Map(manifests), blobs: new Map(blobs) }
  for (const change of changes) applyChange(copy, change)
  return copy
}

/** The shortest history that ends in this state. */
export function historyOf({ tags, manifests, blobs }: PushedRepository): PushedChange[] {
  return [
    ...Array.from(blobs, ([digest, blob]) => ({ op: 'blob' as const, digest, ...blob })),
    ...Array.from(manifests, ([digest, manifest]) => ({ op: 'manifest' as const, digest, ...manifest })),
    ...Array.from(tags, ([tag, value]) => ({ op: 'tag' as const, tag, ...value })),
  ]
}

/** Whether a change takes something away. */
export function isRemoval({ op }: PushedChange): boolean {
  return op === 'untag' || op === 'drop-manifest' || op === 'drop-blob'
}
