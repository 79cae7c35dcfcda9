import type { ManifestLink } from '../oci/content.ts'
import type { Digest } from '../oci/reference.ts'
import type { Identity } from '../oci/registry.ts'

/** Sets when a commit reaches the disk: `durable` before it resolves and is visible, `soon` within half a second. */
export type Durability = 'durable' | 'soon'

/**
 * Stores what is known about repositories: their tags, manifests, blobs and lists of referrers. Reads are synchronous, from memory. The
 * state is the result of all commits up to `sequence`.
 */
export interface Metadata {
  /** Numbers the last commit that the state includes. */
  readonly sequence: number
  get(host: string, name: string): Repository | undefined
  all(): Iterable<Repository>
  /**
   * Changes a repository. `durable`: after a crash all operations of the commit are there, or none; resolves when they are on the disk and
   * visible, and rejects with the disk's error when nothing has changed. Removals are visible at once, because nothing may build on
   * content that is about to be removed. `soon`: they are visible at once.
   */
  commit(
    repository: Pick<Repository, 'host' | 'name'>,
    operations: readonly Operation[],
    durability: Durability,
  ): Promise<void>
  /** Records a pull, which reaches the disk within a minute. */
  recordUse(repository: Pick<Repository, 'host' | 'name'>, use: Use): void
  /** Applies the commits of other processes. Does nothing for a store of one process. */
  catchUp(): Promise<void>
}

export type Use = Extract<Operation, { op: `use-${string}` }>

/** Holds what is known about one repository. The entries are read-only copies; `Repositories.apply` changes them. */
export interface Repository {
  /** Names the upstream registry; empty in the local registry. */
  readonly host: string
  readonly name: string
  readonly tags: ReadonlyMap<string, Tag>
  readonly manifests: ReadonlyMap<Digest, Manifest>
  readonly blobs: ReadonlyMap<Digest, Blob>
  /** Holds the pages of lists of referrers from the upstream, by `toReferrersKey`, the most recently stored last. */
  readonly referrers: ReadonlyMap<string, ReferrersPage>
  /** Estimates its memory, bytes. */
  readonly weight: number
  /** Returns the content that a manifest names; empty for an unknown manifest, and in the local registry. */
  getLinks(manifest: Digest): ManifestLink[]
  /** Finds content that a manifest of exactly this identity names, in a time that does not depend on the number of manifests. */
  findLink(digest: Digest, identity: Identity, kind: ManifestLink['kind']): ManifestLink | undefined
  /** Returns the identities of the manifests that name this content. */
  findLinkIdentities(digest: Digest): Identity[]
  /** Returns manifests that name this manifest, at most 100. */
  getParents(digest: Digest): Digest[]
  /** Returns the manifests with this subject. */
  getReferrers(subject: Digest): ReadonlySet<Digest>
}

/** Records a tag. `identity` of all entries: the credential to which the upstream confirmed it; anonymous in the registry. */
export interface Tag {
  readonly digest: Digest
  readonly identity: Identity
  /** Holds the time of the push, or of the upstream's last confirmation, wall clock ms. */
  readonly updatedAt: number
  /** Counts the pulls by this tag. */
  readonly pulls: number
  /** Holds the time of the last pull by this tag, wall clock ms; 0 = never. */
  readonly lastPulled: number
}

export interface Manifest {
  readonly mediaType: string
  /** Counts the bytes of the manifest itself. */
  readonly size: number
  readonly identity: Identity
  /** Holds the time of the push, wall clock ms; 0 in the cache. */
  readonly updatedAt: number
  /** Counts the pulls by digest. */
  readonly pulls: number
  /** Holds the time of the last pull by digest, wall clock ms; 0 = never. */
  readonly lastPulled: number
  /** Holds the time of a client's last push, pull or request, or of the first fetch, running time ms (see `RunningClock`). */
  readonly usedAt: number
  readonly subject?: Digest | undefined
  /** Holds the key of a referrer's artifact type, see `toArtifactTypeKey`. */
  readonly artifactType?: string | undefined
}

/** Records a blob: in the registry each one, in the cache one that the upstream confirmed alone, without a manifest that names it. */
export interface Blob {
  /** Counts the bytes. */
  readonly size: number
  readonly identity: Identity
  /** Holds the time of a client's last push or request, running time ms. */
  readonly usedAt: number
}

/** Records one page of a list of referrers, to serve while the upstream is unavailable. Its body is a blob of the store. */
export interface ReferrersPage {
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
  /** Holds the time of the last request, running time ms. */
  readonly usedAt: number
}

/**
 * Changes one entry of a repository. All values are absolute, so that an operation may be applied twice. Those that begin with `use` record
 * a pull; they change nothing when the entry is gone.
 */
export type Operation =
  | ({ readonly op: 'tag'; readonly tag: string } & Tag)
  /** Removes the tag; with `updatedAt` only if that push has set it, because a tag that was pushed again since stays. */
  | { readonly op: 'untag'; readonly tag: string; readonly updatedAt?: number }
  /** Sets a manifest and the content that it names, for `findLink`. The registry keeps no links. */
  | ({ readonly op: 'manifest'; readonly digest: Digest; readonly links?: PackedLinks } & Manifest)
  | { readonly op: 'drop-manifest'; readonly digest: Digest }
  | ({ readonly op: 'blob'; readonly digest: Digest } & Blob)
  | { readonly op: 'drop-blob'; readonly digest: Digest }
  | ({ readonly op: 'referrers' } & ReferrersPage)
  | ({ readonly op: 'drop-referrers' } & Pick<ReferrersPage, 'subject' | 'identity' | 'query'>)
  | ({ readonly op: 'use-tag'; readonly tag: string } & Pick<Tag, 'pulls' | 'lastPulled'>)
  | ({ readonly op: 'use-manifest'; readonly digest: Digest } & Pick<Manifest, 'pulls' | 'lastPulled' | 'usedAt'>)
  | ({ readonly op: 'use-blob'; readonly digest: Digest } & Pick<Blob, 'usedAt'>)

/**
 * Holds the links of a manifest in 41 bytes each (73 for sha512): flags, the number of the media type in `types`, the size in 48 bits, and the
 * digest.
 */
export interface PackedLinks {
  readonly types: readonly string[]
  readonly bytes: Uint8Array
}

/** Returns the key of a page in `Repository.referrers`. */
export function toReferrersKey({ subject, identity, query }: Pick<ReferrersPage, 'subject' | 'identity' | 'query'>) {
  return JSON.stringify([subject, identity, query])
}

/** Estimates the memory of entries, bytes. A byte of packed links takes two in the table. */
export const weights = { repository: 1000, tag: 250, manifest: 150, blob: 120, referrers: 700, linkByte: 2 }
