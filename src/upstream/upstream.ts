import type { Digest, Reference } from '../oci/reference.ts'
import type { Access, Identity } from '../oci/registry.ts'

export interface UpstreamCallOptions {
  readonly access: Access
  /** Ends the attempt. Independent of any client, because one fetch serves many. */
  readonly signal?: AbortSignal
  /** No client asked for this request: it respects a rate limit, but a 429 to it does not delay the requests of clients. */
  readonly isExtra?: boolean
  /** Sends one request without retries, and the circuit breaker does not count its failure. */
  readonly isBestEffort?: boolean
}

/** Represents a remote registry. Calls report every failure of the upstream as an `UpstreamError`. */
export interface Upstream {
  /** Holds the name that clients use: `docker.io`, `ghcr.io`, `registry.corp.example:5000`. */
  readonly host: string
  /** Marks an upstream that serves a probe image, by which the mirror checks a client. */
  readonly isProbe?: true
  /** Returns the identity with which the registry would answer a call with this access. */
  identity(access: Access): Promise<Identity>
  /** Sends HEAD of a manifest, which costs no pull quota. */
  resolve(name: string, reference: Reference, options: UpstreamCallOptions): Promise<ManifestHead>
  /** Sends GET of a manifest, at most 4 MiB. The bytes are unverified. */
  manifest(name: string, reference: Reference, options: UpstreamCallOptions): Promise<FetchedManifest>
  /** Sends HEAD of a blob. */
  statBlob(name: string, digest: Digest, options: UpstreamCallOptions): Promise<BlobHead>
  /** Sends GET of a blob, beginning at byte `from`. */
  blob(name: string, digest: Digest, options: UpstreamCallOptions & BlobOptions): Promise<FetchedBlob>
  /** Sends GET of a page of the tags list. `query`: the page's query, as the client or the upstream's `Link` wrote it. */
  tags(name: string, query: string, options: UpstreamCallOptions): Promise<FetchedList>
  /** Sends GET of a page of the referrers list; undefined when the upstream has no such endpoint (404, 410, 400, 405 or 501). */
  referrers(name: string, digest: Digest, query: string, options: UpstreamCallOptions): Promise<FetchedList | undefined>
  health(): UpstreamHealth
}

interface BlobOptions {
  /** Sets the first byte to fetch. */
  readonly from: number
  /** Sets the last byte to fetch; undefined for the rest. The upstream may send more: see `FetchedBlob.isPart`. */
  readonly to?: number | undefined
  /** Holds the descriptor's size, when known: distinguishes a content-encoded response from a plain one. */
  readonly expectedSize?: number | undefined
}

export interface ManifestHead {
  /** Holds the digest that the upstream claims; not a key until the content proves it. */
  readonly digest: Digest | undefined
  readonly mediaType: string
  /** Bytes; undefined when the upstream does not say. */
  readonly size: number | undefined
  readonly identity: Identity
}

export interface FetchedManifest {
  /** Holds the digest that the upstream claims; the bytes may have another one. */
  readonly digest: Digest | undefined
  readonly mediaType: string
  readonly bytes: Uint8Array<ArrayBuffer>
  readonly identity: Identity
  /** Returns the body's share of the memory budget; absent where the memory is not counted. */
  readonly release?: () => void
}

export interface BlobHead {
  readonly size: number | undefined
  readonly identity: Identity
}

export interface FetchedBlob {
  /** Is true if the body ends at byte `to`; otherwise it runs to the end of the blob. */
  readonly isPart: boolean
  /** Bytes of the whole blob; undefined when the upstream does not say. */
  readonly size: number | undefined
  readonly identity: Identity
  /**
   * Holds the bytes from `from` on; the bytes before it are skipped where the upstream ignores Range. Throws an UpstreamError when
   * the body breaks off. The reader owns the chunks and their memory. Occupies a connection until it is read to its end, its
   * iterator's `return` is called, or the signal aborts.
   */
  readonly body: AsyncIterable<Uint8Array>
}

export interface FetchedList {
  /** Unverified: may be anything but a list. */
  readonly bytes: Uint8Array<ArrayBuffer>
  /** Holds the query of the next page. */
  readonly next: string | undefined
  /** `OCI-Filters-Applied`. */
  readonly filtersApplied: string | undefined
  readonly identity: Identity
  /** Returns the body's share of the memory budget; absent where the memory is not counted. */
  readonly release?: () => void
}

export interface UpstreamHealth {
  readonly state: 'ok' | 'failing' | 'open'
  readonly rateLimit: RateLimit | undefined
  /** Is true where the requests go to Docker Hub, or to a server that announces a pull quota as Docker Hub does. */
  readonly countsPulls?: boolean
  /** Holds the last failure; absent while the upstream is healthy. `at`: wall clock ms. */
  readonly lastError?: {
    readonly failure: UpstreamFailure
    readonly message: string
    readonly at: number
    readonly retryAfterSeconds?: number
  }
}

/** Describes Docker Hub's pull quota, as its responses tell it. */
export type RateLimit = LimitedPulls | UnlimitedPulls

/** Holds Docker Hub's `ratelimit-*` headers. */
interface LimitedPulls {
  readonly limit: number
  readonly remaining: number
  readonly windowSeconds: number
  /** `docker-ratelimit-source`: the address or account that the quota belongs to. */
  readonly source: string | undefined
  /** Wall clock ms. */
  readonly at: number
  /** Holds when the quota is full again, wall clock ms; undefined when the upstream does not say. */
  readonly resetsAt?: number | undefined
}

/** Describes an account without a pull quota: its responses have no `ratelimit-*` headers. */
interface UnlimitedPulls {
  readonly unlimited: true
  readonly source: string | undefined
  /** Wall clock ms. */
  readonly at: number
}

/**
 * `absent` 404/410 · `denied` 401/402/403/412/423/451 · `limited` 429 · `unavailable` refused, timed out, 5xx, circuit open, offline ·
 * `invalid` an unusable response (too large, wrong bytes, untrusted redirect).
 */
export type UpstreamFailure = 'absent' | 'denied' | 'limited' | 'unavailable' | 'invalid'

export class UpstreamError extends Error {
  override name = 'UpstreamError'
  readonly failure: UpstreamFailure
  /** Holds the upstream's own status, or the status to answer with when it gave none (502, 503, 504). */
  readonly status: number
  /** Set with `limited`, and with `unavailable` while a circuit is open. */
  readonly retryAfterSeconds: number | undefined

  constructor(
    failure: UpstreamFailure,
    status: number,
    message: string,
    options: { retryAfterSeconds?: number | undefined; cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.failure = failure
    this.status = status
    this.retryAfterSeconds = options.retryAfterSeconds
  }
}

/** Lists the registries that need no entry in the configuration. */
export const builtInUpstreams: ReadonlySet<string> = new Set([
  'docker.io',
  'ghcr.io',
  'gcr.io',
  'us.gcr.io',
  'eu.gcr.io',
  'asia.gcr.io',
  'mirror.gcr.io',
  'quay.io',
  'registry.k8s.io',
  'k8s.gcr.io',
  'mcr.microsoft.com',
  'public.ecr.aws',
  'registry.gitlab.com',
  'nvcr.io',
  'docker.elastic.co',
  'registry.access.redhat.com',
  'registry.redhat.io',
  'cgr.dev',
])
