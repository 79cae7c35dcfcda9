import type { ManifestLink, SmallContent } from './content.ts'
import type { Digest, DigestAlgorithm } from './digest.ts'
import type { ByteRange } from './headers.ts'
import type { Reference } from './reference.ts'
import type { Page, Repository } from './route.ts'

/** Who asks, as far as a registry may care. */
export interface Caller {
  readonly access: Access
  /** Tells one client from another for counting pulls: its address and user agent. */
  readonly client: string
  /** `Cache-Control: no-cache`: ask the upstream at once. */
  readonly noCache: boolean
  /** HEAD: no body is wanted, and nothing shall be fetched for it. */
  readonly head: boolean
  /** A GET of a part. */
  readonly part: boolean
  /** Its signal aborts when the client leaves before it has its answer; it is made when it is read, and few need it. */
  readonly clientAbort?: { readonly signal: AbortSignal } | undefined
}

/** Read access to repositories. Throws `OciError` for everything the client has to be told. */
export interface Registry {
  manifest(repository: Repository, reference: Reference, caller: Caller): Promise<ManifestAnswer>
  blob(repository: Repository, digest: Digest, caller: Caller): Promise<BlobAnswer>
  tags(repository: Repository, page: Page, caller: Caller): Promise<ListAnswer>
  referrers(
    repository: Repository,
    digest: Digest,
    artifactType: string | undefined,
    caller: Caller,
    page: Page,
  ): Promise<ListAnswer>
  catalog(registry: string | undefined, page: Page, caller: Caller): Promise<ListAnswer>
}

/** Where an answer came from: RFC 9211's words, and what the statistics count. */
export interface Provenance {
  /** The upstream's name, for `OCI-Namespace`; undefined for content of no upstream. */
  readonly registry: string | undefined
  readonly outcome: 'hit' | 'revalidated' | 'stale' | 'miss' | 'collapsed' | 'passed' | 'own'
  /** The `Cache-Status` header's value; undefined for what no cache has to do with. */
  readonly cacheStatus: string | undefined
  /** The answer is about an image that the mirror itself offers, to check a client: it is not counted. */
  isProbe?: true
}

export interface ManifestAnswer {
  readonly digest: Digest | undefined
  readonly mediaType: string
  /** Bytes; undefined only where an upstream's HEAD did not say. */
  readonly size: number | undefined
  /** Undefined for a HEAD of what we do not hold, and for what is too large for memory. */
  readonly body: SmallContent | undefined
  /** The manifest on the disk, when it is too large for memory. */
  readonly stored?: StoredManifest | undefined
  readonly provenance: Provenance
}

export interface BlobAnswer {
  readonly digest: Digest
  /** Bytes; undefined where nobody has said yet. */
  readonly size: number | undefined
  readonly body: BlobBody
  readonly provenance: Provenance
}

export type BlobBody =
  | { readonly kind: 'stored'; readonly blob: OpenBlob }
  | { readonly kind: 'whole'; readonly content: SmallContent }
  | { readonly kind: 'arriving'; readonly download: ArrivingBlob }
  | { readonly kind: 'none' }

/** A blob whose bytes are still arriving; followers read along. */
export interface ArrivingBlob {
  /** Bytes of the whole blob; undefined until the upstream says it, or until all bytes have arrived and the digest agrees. */
  readonly size: number | undefined
  /** Whether somebody reads along. */
  readonly isFollowed: boolean
  /** Reads along from `start` to the end of the portion. The follower must be closed. */
  follow(start: number, portion?: Portion): Follower
}

export interface ListAnswer {
  readonly contentType: string
  readonly bytes: Uint8Array<ArrayBuffer>
  /** The query of the next page, for a `Link` header. */
  readonly next: string | undefined
  readonly filtersApplied?: string | undefined
  readonly provenance: Provenance
}

/**
 * A registry that takes pushes. What it has answered for is on the disk, and stays there until somebody deletes it. Throws
 * `OciError` for everything the client has to be told. https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#push
 */
export interface PushRegistry extends Registry {
  /** Begins an upload of the user's. `algorithm`: of the digest to come, when the client has said so. */
  startUpload(repository: Repository, user: User, algorithm: DigestAlgorithm | undefined): Promise<UploadState>
  uploadState(repository: Repository, upload: UploadName): UploadState
  /** Adds a chunk; one that breaks off leaves what came of it. */
  appendUpload(repository: Repository, upload: UploadName, chunk: UploadChunk): Promise<UploadState>
  /** Adds a last chunk, if there is one, and publishes the blob. A wrong digest ends the upload. */
  finishUpload(
    repository: Repository,
    upload: UploadName,
    digest: Digest,
    chunk: UploadChunk | undefined,
  ): Promise<void>
  cancelUpload(repository: Repository, upload: UploadName): Promise<void>
  /** Begins and finishes an upload in one. */
  putBlob(repository: Repository, digest: Digest, chunk: UploadChunk): Promise<void>
  /** Takes a blob over from another repository, or from any that has it; false when there is none. */
  mountBlob(repository: Repository, digest: Digest, from: string | undefined): Promise<boolean>
  putManifest(repository: Repository, reference: Reference, manifest: PushedBody): Promise<ManifestPushed>
  /** A tag alone, or a manifest with all its tags. */
  deleteManifest(repository: Repository, reference: Reference): Promise<void>
  deleteBlob(repository: Repository, digest: Digest): Promise<void>
}

/** Who pushes; undefined where nobody is asked for a name. */
export type User = string | undefined

/** An upload as a request names it. It is there for the user who began it, and for nobody else. */
export interface UploadName {
  readonly id: string
  readonly user: User
}

export interface UploadState {
  readonly id: string
  /** Bytes held so far. */
  readonly size: number
}

/** A part of a blob as it arrives. */
export interface UploadChunk {
  /** The position its client takes it to have; undefined when it did not say. */
  readonly start: number | undefined
  readonly bytes: AsyncIterable<Uint8Array>
}

export interface PushedBody {
  /** The Content-Type it came with, without parameters; undefined when there was none. */
  readonly mediaType: string | undefined
  readonly bytes: Uint8Array
  /** Tags to set besides, of a push by digest. */
  readonly tags: readonly string[]
}

export interface ManifestPushed {
  readonly digest: Digest
  /** The manifest it refers to. */
  readonly subject: Digest | undefined
}

export interface OpenBlob {
  readonly digest: Digest
  /** Bytes. */
  readonly size: number
  /** The descriptor, for senders that hand the file to the kernel. */
  readonly fd: number
  /** Reads at a position into the buffer; the number of bytes read, 0 at the end. */
  read(buffer: Uint8Array, position: number): Promise<number>
  close(): Promise<void>
}

/**
 * A manifest that is too large to lie in memory for every client that takes it. It leaves from the disk as a blob does, and is
 * read as a whole only within the memory for bodies.
 */
export interface StoredManifest {
  /** Undefined when it has gone in the meantime. */
  open(): Promise<OpenBlob | undefined>
  /** Reads all of it for as long as it is used; undefined when it has gone. Throws a BudgetError. */
  use<T>(task: (bytes: Uint8Array<ArrayBuffer>) => Promise<T>): Promise<T | undefined>
  /** What it names. Throws a BudgetError. */
  links(): Promise<readonly ManifestLink[]>
}

/** Whether the configured credential may be used for this request, or the upstream is asked as nobody. */
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

/** The identity of a request without a credential: every caller may see its answer. */
export const anonymousIdentity = parseIdentity('anonymous')

/** One client's place in a download: its pace and its end are its own. */
export interface Follower {
  /**
   * The next bytes, as soon as they may be given away; undefined at the end. The last 32 KiB of what the follower is to have are
   * held back until the digest of the whole blob agrees, so that no client ever holds a complete answer of wrong bytes
   * (decision 0018). Throws the download's UpstreamError, or the signal's reason.
   */
  next(signal?: AbortSignal): Promise<Piece | undefined>
  close(): void
}

/** Bytes that have arrived: a part of the growing file, or what the disk did not take. */
export type Piece =
  | { readonly kind: 'file'; readonly file: OpenBlob; readonly range: ByteRange }
  | { readonly kind: 'memory'; readonly bytes: Uint8Array }

/** What a follower is to have. */
export interface Portion {
  /** The position behind its last byte; undefined for the end of the blob. */
  readonly end?: number | undefined
  /** Nothing leaves before the digest agrees: for an answer that cannot be cut short visibly. */
  readonly isAllOrNothing?: boolean
}
