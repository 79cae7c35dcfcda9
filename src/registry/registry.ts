import type { Digest } from '../oci/digest.ts'
import type { Page, Repository } from '../oci/route.ts'
import type { Reference } from '../oci/reference.ts'
import type { OpenBlob } from '../store/blob-store.ts'
import type { Access } from '../upstream/upstream.ts'
import type { Download } from './download.ts'

/** Who asks, as far as a registry may care. */
export interface Caller {
  readonly access: Access
  /** Tells one client from another for counting pulls: its address and user agent. */
  readonly client: string
  /** `Cache-Control: no-cache`: ask the upstream at once. */
  readonly noCache: boolean
  /** HEAD: no body is wanted, and nothing shall be fetched for it. */
  readonly head: boolean
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
  ): Promise<ListAnswer>
  catalog(registry: string | undefined, page: Page, caller: Caller): Promise<ListAnswer>
}

/** Where an answer came from: RFC 9211's words, and what the statistics count. */
export interface Provenance {
  /** The upstream's name, for `OCI-Namespace`; undefined for content of no upstream. */
  readonly registry: string | undefined
  readonly outcome: 'hit' | 'revalidated' | 'stale' | 'miss' | 'collapsed' | 'passed'
  /** The `Cache-Status` header's value. */
  readonly cacheStatus: string
}

export interface ManifestAnswer {
  readonly digest: Digest | undefined
  readonly mediaType: string
  /** Bytes; undefined only where an upstream's HEAD did not say. */
  readonly size: number | undefined
  /** Undefined for a HEAD of what we do not hold. */
  readonly body: Uint8Array<ArrayBuffer> | undefined
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
  | { readonly kind: 'arriving'; readonly download: Download }
  | { readonly kind: 'none' }

export interface ListAnswer {
  readonly contentType: string
  readonly bytes: Uint8Array<ArrayBuffer>
  /** The query of the next page, for a `Link` header. */
  readonly next: string | undefined
  readonly filtersApplied?: string | undefined
  readonly provenance: Provenance
}
