import type { ManifestLink } from '../oci/descriptor.ts'
import type { Digest } from '../oci/digest.ts'

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
}

export interface TagRecord {
  digest: Digest
  identity: string
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
  identity: string
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
  identity: string
  usedAt: number
}

/** The identity of a request without a credential: its word is good for everybody. */
export const anonymousIdentity = 'anonymous'
