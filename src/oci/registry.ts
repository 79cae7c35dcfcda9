import type { ManifestLink, SmallContent } from './content.ts'
import type { Digest, DigestAlgorithm, Reference } from './reference.ts'
import type { ByteRange } from './headers.ts'
import type { Page, Repository } from './route.ts'

/** Holds the client's part of a request that a registry needs. */
export interface Caller {
  readonly access: Access
  /** Identifies the client for counting pulls: its address and user agent. */
  readonly client: string
  /** `Cache-Control: no-cache`: revalidate with the upstream at once. */
  readonly noCache: boolean
  /** Is true for a HEAD request: it needs no body and must not start a download. */
  readonly head: boolean
  /** Is true for a GET with a `Range`. */
  readonly part: boolean
  /** Provides a signal that aborts when the client disconnects early. The signal is created on access, because few requests need it. */
  readonly clientAbort?: { readonly signal: AbortSignal } | undefined
}

/** Gives read access to repositories. Throws an `OciError` for each failure that the client must see. */
export interface Registry {
  manifest(repository: Repository, reference: Reference, caller: Caller): Promise<ManifestResponse>
  blob(repository: Repository, digest: Digest, caller: Caller): Promise<BlobResponse>
  tags(repository: Repository, page: Page, caller: Caller): Promise<ListResponse>
  referrers(
    repository: Repository,
    digest: Digest,
    artifactType: string | undefined,
    caller: Caller,
    page: Page,
  ): Promise<ListResponse>
  catalog(registry: string | undefined, page: Page, caller: Caller): Promise<ListResponse>
}

/** Describes the origin of a response, in the terms of RFC 9211, for `Cache-Status` and the statistics. */
export interface Provenance {
  /** Names the upstream for `OCI-Namespace`; undefined for content without an upstream. */
  readonly registry: string | undefined
  readonly outcome: 'hit' | 'revalidated' | 'stale' | 'miss' | 'collapsed' | 'passed' | 'own'
  /** Holds the value of the `Cache-Status` header; undefined when no cache is involved. */
  readonly cacheStatus: string | undefined
  /** Explains a miss, and a hit that needed a grant first; absent for any other hit, and when it is not known. */
  readonly reason?: MissReason
  /** Holds the time of the eviction when `reason` is `evicted`, wall clock ms. */
  readonly evictedAt?: number
  /** Tells the client's user why the upstream did not confirm the content, for the `Warning` header. May contain text of the upstream. */
  readonly warning?: string | undefined
  /** Marks the response about a probe image, which the mirror itself offers to check a client. It is not counted. */
  isProbe?: true
}

/**
 * Distinguishes why content was not served from the store. `first`: the mirror never had it; `evicted`: it was removed to keep a
 * limit; `removed`: by a command; `moved`: the tag points to another digest now; `identity`: another credential fetched it, and this
 * one must prove its access first; `damaged`: the stored bytes were wrong; `range`: a part of content that is not stored;
 * `not granted`: stored, but the upstream has not granted it to this repository.
 */
export type MissReason = 'first' | 'evicted' | 'removed' | 'moved' | 'identity' | 'damaged' | 'range' | 'not granted'

export interface ManifestResponse {
  readonly digest: Digest | undefined
  readonly mediaType: string
  /** Bytes; undefined only when an upstream's HEAD response has no size. */
  readonly size: number | undefined
  /** Is undefined for a HEAD of a manifest that is not stored, and for a manifest too large for memory. */
  readonly body: SmallContent | undefined
  /** Holds the manifest on disk, when it is too large for memory. */
  readonly stored?: StoredManifest | undefined
  readonly provenance: Provenance
}

export interface BlobResponse {
  readonly digest: Digest
  /** Bytes; undefined while the size is not known. */
  readonly size: number | undefined
  readonly body: BlobBody
  readonly provenance: Provenance
}

export type BlobBody =
  | { readonly kind: 'stored'; readonly blob: OpenBlob }
  | { readonly kind: 'whole'; readonly content: SmallContent }
  | { readonly kind: 'arriving'; readonly download: ArrivingBlob }
  | { readonly kind: 'none' }

/** Describes a blob whose download is still running. Followers read the bytes as they arrive. */
export interface ArrivingBlob {
  /** Bytes of the whole blob; undefined until the upstream sends the size, or until the download is complete and verified. */
  readonly size: number | undefined
  /** Is true when the download has a follower. */
  readonly isFollowed: boolean
  /** Creates a follower from `start` to the end of the portion. The caller must close it. */
  follow(start: number, portion?: Portion): Follower
}

/** Describes the download of a blob that is under way. */
export interface DownloadReport {
  readonly digest: string
  /** Names the upstream and repository that it is fetched from: `docker.io/library/redis`. */
  readonly repository: string
  /** Counts the bytes that have arrived. */
  readonly arrived: number
  /** Bytes of the whole blob; absent until the upstream announces them. */
  readonly size?: number
  /** Counts the clients that read it now. */
  readonly followers: number
  /** Bytes per second over the last seconds. */
  readonly bytesPerSecond: number
  /** Gives the time of the start (ISO 8601). */
  readonly startedAt: string
}

export interface ListResponse {
  readonly contentType: string
  readonly bytes: Uint8Array<ArrayBuffer>
  /** Holds the query of the next page, for a `Link` header. */
  readonly next: string | undefined
  readonly filtersApplied?: string | undefined
  readonly provenance: Provenance
}

/**
 * Accepts pushes. It acknowledges a push when the content is on disk, and keeps it until a client deletes it. Throws an
 * `OciError` for each failure that the client must see. https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#push
 */
export interface PushRegistry extends Registry {
  /** Starts an upload of this user. `algorithm`: the algorithm of the digest, if the client has sent it. */
  startUpload(repository: Repository, user: User, algorithm: DigestAlgorithm | undefined): Promise<UploadState>
  uploadState(repository: Repository, upload: UploadName): UploadState
  /** Appends a chunk. When the transfer breaks off, the bytes received so far stay. */
  appendUpload(repository: Repository, upload: UploadName, chunk: UploadChunk): Promise<UploadState>
  /** Appends a last chunk, if there is one, and publishes the blob. A digest mismatch ends the upload. */
  finishUpload(
    repository: Repository,
    upload: UploadName,
    digest: Digest,
    chunk: UploadChunk | undefined,
  ): Promise<void>
  cancelUpload(repository: Repository, upload: UploadName): Promise<void>
  /** Uploads a blob in one request. */
  putBlob(repository: Repository, digest: Digest, chunk: UploadChunk): Promise<void>
  /** Mounts a blob from the repository `from`, or from any repository that has it; false when there is none. */
  mountBlob(repository: Repository, digest: Digest, from: string | undefined): Promise<boolean>
  putManifest(repository: Repository, reference: Reference, manifest: PushedBody): Promise<ManifestPushed>
  /** Deletes a tag, or a manifest with all its tags. */
  deleteManifest(repository: Repository, reference: Reference): Promise<void>
  deleteBlob(repository: Repository, digest: Digest): Promise<void>
}

/** Names the authenticated user; undefined without authentication. */
export type User = string | undefined

/** Identifies an upload. Only the user who started it can access it. */
export interface UploadName {
  readonly id: string
  readonly user: User
}

export interface UploadState {
  readonly id: string
  /** Counts the bytes received so far. */
  readonly size: number
}

/** Describes a part of a blob as it arrives. */
export interface UploadChunk {
  /** Holds the position of the chunk according to the client; undefined when the client sent none. */
  readonly start: number | undefined
  readonly bytes: AsyncIterable<Uint8Array>
}

export interface PushedBody {
  /** Holds the Content-Type without parameters; undefined when the client sent none. */
  readonly mediaType: string | undefined
  readonly bytes: Uint8Array
  /** Lists additional tags of a push by digest. */
  readonly tags: readonly string[]
}

export interface ManifestPushed {
  readonly digest: Digest
  /** Holds the digest of the manifest's `subject`. */
  readonly subject: Digest | undefined
}

export interface OpenBlob {
  readonly digest: Digest
  /** Bytes. */
  readonly size: number
  /** Holds the file descriptor, for sendfile. */
  readonly fd: number
  /** Reads into the buffer from a position. Returns the number of bytes read, 0 at the end. */
  read(buffer: Uint8Array, position: number): Promise<number>
  close(): Promise<void>
}

/**
 * Describes a manifest that is too large to keep in memory. It is sent from disk like a blob, and read as a whole only within the
 * body memory.
 */
export interface StoredManifest {
  /** Opens the manifest for sending; undefined when it was removed meanwhile. */
  open(): Promise<OpenBlob | undefined>
  /** Runs a task with the bytes of the manifest, and frees them afterwards; undefined when it was removed. Throws a BudgetError. */
  use<T>(task: (bytes: Uint8Array<ArrayBuffer>) => Promise<T>): Promise<T | undefined>
  /** Returns the links of the manifest. Throws a BudgetError. */
  links(): Promise<readonly ManifestLink[]>
}

/** Says whether requests to the upstream use the configured credential or none. */
export type Access = 'credentialed' | 'anonymous'

declare const identityBrand: unique symbol

/**
 * Names the credential that an upstream answered, and so decides which callers may see the answer: `anonymousIdentity`, or a keyed
 * hash of the credential. `createIdentify` makes one, `parseIdentity` reads it back from the disk.
 */
export type Identity = string & { readonly [identityBrand]: true }

/** Brands the text of an identity. A text that no credential hashes to grants nothing. */
export function parseIdentity(text: string): Identity {
  return text as Identity
}

/** Identifies a request without a credential: every caller may see its answer. */
export const anonymousIdentity = parseIdentity('anonymous')

/** Describes one client's reader of a download, with its own position and end. */
export interface Follower {
  /**
   * Returns the next bytes as soon as they may be sent; undefined at the end. Holds back the last 32 KiB of the portion until the
   * digest of the whole blob is verified, so that no client gets a complete response with wrong bytes (decision 0018). Throws the
   * download's UpstreamError, or the signal's reason.
   */
  next(signal?: AbortSignal): Promise<Piece | undefined>
  close(): void
}

/** Describes bytes that have arrived: a range of the growing file, or bytes in memory that could not be written to disk. */
export type Piece =
  | { readonly kind: 'file'; readonly file: OpenBlob; readonly range: ByteRange }
  | { readonly kind: 'memory'; readonly bytes: Uint8Array }

/** Describes the part of a blob that a follower reads. */
export interface Portion {
  /** Holds the position after the last byte; undefined for the end of the blob. */
  readonly end?: number | undefined
  /** Sends nothing before the digest is verified, for a response whose truncation the client cannot detect. */
  readonly isAllOrNothing?: boolean
}
