import type { Digest } from '../oci/reference.ts'

/** Holds the content of one repository of the local registry. Repositories share bytes on disk, but know nothing of each other. */
export interface PushedRepository {
  readonly name: string
  readonly tags: ReadonlyMap<string, PushedTag>
  readonly manifests: ReadonlyMap<Digest, PushedManifest>
  readonly blobs: ReadonlyMap<Digest, PushedBlob>
}

interface PushedTag {
  readonly digest: Digest
  /** Gives the wall-clock time, ms. */
  readonly pushedAt: number
}

/** Records a manifest. Its links and annotations are only in the manifest itself. */
export interface PushedManifest {
  readonly mediaType: string
  /** Counts the bytes. */
  readonly size: number
  readonly subject?: Digest | undefined
  /** Holds the key of a referrer's artifact type, see `artifactTypeKey`. */
  readonly artifactType?: string | undefined
  /** Gives the wall-clock time, ms. */
  readonly pushedAt: number
  /** Gives the time of a client's last push or request, running time ms (see `RunningClock`). */
  readonly heldSince: number
}

export interface PushedBlob {
  /** Counts the bytes. */
  readonly size: number
  /** Gives the time of a client's last push or request, running time ms (see `RunningClock`). */
  readonly heldSince: number
}

/** Holds one change of a repository, in the form of its journal. */
export type PushedChange =
  | ({ readonly op: 'tag'; readonly tag: string } & PushedTag)
  /** Removes the tag; with `pushedAt` only if that push has set it, because a tag that was pushed again since stays. */
  | { readonly op: 'untag'; readonly tag: string; readonly pushedAt?: number }
  | ({ readonly op: 'manifest'; readonly digest: Digest } & PushedManifest)
  | { readonly op: 'drop-manifest'; readonly digest: Digest }
  | ({ readonly op: 'blob'; readonly digest: Digest } & PushedBlob)
  | { readonly op: 'drop-blob'; readonly digest: Digest }

export interface MutableRepository extends PushedRepository {
  readonly tags: Map<string, PushedTag>
  readonly manifests: Map<Digest, PushedManifest>
  readonly blobs: Map<Digest, PushedBlob>
}

/** Counts the entries of all repositories that hold a digest, as a blob or as a manifest. */
export class Holders {
  readonly #counts = new Map<Digest, number>()

  add(digest: Digest, change: 1 | -1): void {
    const count = (this.#counts.get(digest) ?? 0) + change
    if (count > 0) this.#counts.set(digest, count)
    else this.#counts.delete(digest)
  }

  has(digest: Digest): boolean {
    return this.#counts.has(digest)
  }
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

/** Copies only the members of the record, because the argument may have the whole manifest. */
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

/** Returns the repository after these changes, as a copy; the repository itself when there are none. */
export function withChanges(repository: PushedRepository, changes: readonly PushedChange[]): PushedRepository {
  if (changes.length === 0) return repository
  const copy = copyRepository(repository)
  for (const change of changes) applyChange(copy, change)
  return copy
}

export function copyRepository({ name, tags, manifests, blobs }: PushedRepository): MutableRepository {
  return { name, tags: new Map(tags), manifests: new Map(manifests), blobs: new Map(blobs) }
}

/** Yields the changes that create this state. May omit entries that are removed during the iteration. */
export function* toChanges({ tags, manifests, blobs }: PushedRepository): Generator<PushedChange, void> {
  for (const [digest, blob] of blobs) yield { op: 'blob', digest, ...blob }
  for (const [digest, manifest] of manifests) yield { op: 'manifest', digest, ...manifest }
  for (const [tag, value] of tags) yield { op: 'tag', tag, ...value }
}

export function isRemoval({ op }: PushedChange): boolean {
  return op === 'untag' || op === 'drop-manifest' || op === 'drop-blob'
}
