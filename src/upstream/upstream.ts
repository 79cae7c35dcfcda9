import type { Digest } from '../oci/digest.ts'
import type { Reference } from '../oci/reference.ts'
import type { Access, Identity } from '../oci/registry.ts'
import type { Repository } from '../oci/route.ts'

export interface UpstreamCallOptions {
  readonly access: Access
  /** Ends the attempt; not tied to a client, for a fetch serves many. */
  readonly signal?: AbortSignal
  /** More than clients asked for: it waits out a limit as all do, but a 429 to it is not held against them. */
  readonly isExtra?: boolean
}

/** One registry out there. Every call throws an `UpstreamError` and nothing else for what the upstream did or failed to do. */
export interface Upstream {
  /** The name clients use: `docker.io`, `ghcr.io`, `registry.corp.example:5000`. */
  readonly host: string
  /** This upstream holds an image that the mirror offers to check a client. */
  readonly isProbe?: true
  /** Whose word a call with this access would bring: `anonymous`, or a stable name of the credential's owner. */
  identity(access: Access): Promise<Identity>
  /** HEAD of a manifest: costs no quota. */
  resolve(name: string, reference: Reference, options: UpstreamCallOptions): Promise<ManifestHead>
  /** GET of a manifest, at most 4 MiB; the bytes are as the upstream sent them and not yet checked against anything. */
  manifest(name: string, reference: Reference, options: UpstreamCallOptions): Promise<FetchedManifest>
  /** HEAD of a blob. */
  statBlob(name: string, digest: Digest, options: UpstreamCallOptions): Promise<BlobHead>
  /** GET of a blob from byte `from` on. */
  blob(name: string, digest: Digest, options: UpstreamCallOptions & BlobOptions): Promise<FetchedBlob>
  /** The tags list, as the upstream sends it. `query`: of the page, as a client or the upstream's own `Link` wrote it. */
  tags(name: string, query: string, options: UpstreamCallOptions): Promise<FetchedList>
  /** The referrers list; `undefined` when the upstream knows no such endpoint (404, 410, 400, 405 or 501). */
  referrers(name: string, digest: Digest, query: string, options: UpstreamCallOptions): Promise<FetchedList | undefined>
  health(): UpstreamHealth
}

interface BlobOptions {
  /** First byte wanted. */
  readonly from: number
  /** Last byte wanted; undefined for the rest. The upstream may send more: see `FetchedBlob.isPart`. */
  readonly to?: number | undefined
  /** What the descriptor says, when known: tells a content-encoded answer from a plain one. */
  readonly expectedSize?: number | undefined
}

export interface ManifestHead {
  /** What the upstream says; never used as a key before content proved it. */
  readonly digest: Digest | undefined
  readonly mediaType: string
  /** Bytes, when the upstream says. */
  readonly size: number | undefined
  readonly identity: Identity
}

export interface FetchedManifest {
  /** What the upstream says; its bytes may hash to another one. */
  readonly digest: Digest | undefined
  readonly mediaType: string
  readonly bytes: Uint8Array<ArrayBuffer>
  readonly identity: Identity
  /** Gives the body's part of the memory for bodies back; not there where nobody counts it. */
  readonly release?: () => void
}

export interface BlobHead {
  readonly size: number | undefined
  readonly identity: Identity
}

export interface FetchedBlob {
  /** Whether the body ends at the last byte that was wanted; else it is the rest of the blob. */
  readonly isPart: boolean
  /** Bytes of the whole blob, when the upstream says. */
  readonly size: number | undefined
  readonly identity: Identity
  /**
   * Bytes from `from` on (an upstream that ignores Range has had its first bytes skipped); throws an UpstreamError when cut.
   * The chunks are the taker's, their memory as well.
   * Holds a connection until it is read to its end, its iterator's `return` is called, or the signal aborts.
   */
  readonly body: AsyncIterable<Uint8Array>
}

export interface FetchedList {
  /** Not yet known to be a list. */
  readonly bytes: Uint8Array<ArrayBuffer>
  /** The query of the next page. */
  readonly next: string | undefined
  /** `OCI-Filters-Applied`. */
  readonly filtersApplied: string | undefined
  readonly identity: Identity
  /** Gives the body's part of the memory for bodies back; not there where nobody counts it. */
  readonly release?: () => void
}

export interface UpstreamHealth {
  readonly state: 'ok' | 'failing' | 'open'
  readonly rateLimit: RateLimit | undefined
  /** The last failure, of an upstream that is not well. `at`: wall clock ms. */
  readonly lastError?: { readonly message: string; readonly at: number; readonly retryAfterSeconds?: number }
}

/** Docker Hub's `ratelimit-*` headers. */
export interface RateLimit {
  readonly limit: number
  readonly remaining: number
  readonly windowSeconds: number
  /** `docker-ratelimit-source`: whom the quota belongs to. */
  readonly source: string | undefined
  /** Wall clock ms. */
  readonly at: number
}

/**
 * `absent` 404/410 · `denied` 401/402/403/412/423/451 · `limited` 429 · `unavailable` refused, timed out, 5xx, circuit open, offline ·
 * `invalid` answered with something that cannot be used (too large, wrong bytes, untrusted redirect).
 */
export type UpstreamFailure = 'absent' | 'denied' | 'limited' | 'unavailable' | 'invalid'

export class UpstreamError extends Error {
  override name = 'UpstreamError'
  readonly failure: UpstreamFailure
  /** The upstream's own status, or what to answer when it gave none (502, 503, 504). */
  readonly status: number
  /** With `limited`, and with `unavailable` while a circuit is open. */
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

/** A repository of an upstream, as that upstream spells it. */
interface UpstreamRepository {
  readonly host: string
  readonly name: string
}

interface RoutingOptions {
  /** The hosts of the `upstreams` section. */
  readonly configured: { has(host: string): boolean }
  /** Asked when a request names no registry. */
  readonly defaultUpstream: string
}

/** Registries that may be asked without an entry in the configuration. */
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

/** Says which upstream a request means; undefined when that one may not be asked. */
export function createRouting({
  configured,
  defaultUpstream,
}: RoutingOptions): (repository: Repository) => UpstreamRepository | undefined {
  return ({ registry, name, byNamespace }) => {
    const host = registry ?? defaultUpstream
    const allowed =
      host === defaultUpstream ||
      configured.has(host) ||
      builtInUpstreams.has(host) ||
      // Google makes a host per region; only a client that names any registry by itself gets at them.
      (byNamespace && /^[a-z0-9-]+\.pkg\.dev$/.test(host))
    if (!allowed) return undefined
    return { host, name: host === 'docker.io' && !name.includes('/') ? `library/${name}` : name }
  }
}

/** An upstream that is never asked (`cache.offline`): every question fails as if it were unreachable. */
export function createOfflineUpstream(upstream: Pick<Upstream, 'host' | 'identity'>): Upstream {
  const refuse = (): Promise<never> =>
    Promise.reject(
      new UpstreamError(
        'unavailable',
        503,
        `It is not cached, and the mirror is offline: ${upstream.host} is not asked.`,
      ),
    )
  return {
    host: upstream.host,
    identity: (access) => upstream.identity(access),
    resolve: refuse,
    manifest: refuse,
    statBlob: refuse,
    blob: refuse,
    tags: refuse,
    referrers: refuse,
    health: () => ({ state: 'ok', rateLimit: undefined }),
  }
}
