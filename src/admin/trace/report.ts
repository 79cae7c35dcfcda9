import type { DownloadReport } from '../../oci/registry.ts'
import type { MissReason } from '../../oci/registry.ts'
import type { RequestReport } from '../../stats/requests.ts'

/** Describes what the mirror knows about an image, and what a pull would do now: the answer of `GET /api/trace?image=`. */
export interface TraceReport {
  /** Gives the time of the trace (ISO 8601). */
  readonly at: string
  /** Names the listener that serves the image: the cache, or the registry for pushed images. */
  readonly listener: 'cache' | 'registry'
  /** Names the image as `docker.io/library/alpine:3.20`; for a pushed image as `localhost:5001/app:1`. */
  readonly image: string
  readonly registry: string
  readonly repository: string
  /** Holds the platform of the assumed client: `linux/amd64`. */
  readonly platform: string
  /** Describes the upstream; absent for a pushed image, and for a registry that is not mirrored. */
  readonly upstream?: {
    readonly url: string
    /** Holds the path prefix of the registry's repositories there. */
    readonly prefix?: string
    /** Names the source of the credential that is sent; never the credential. `anonymous`: none is found, or none is configured. */
    readonly credential: 'anonymous' | 'docker-config' | 'password-file' | 'password-env'
    readonly state: 'ok' | 'failing' | 'open'
  }
  /** Describes the tag; absent for an image by digest. */
  readonly tag?: {
    readonly name: string
    /** Is absent when the mirror does not know the tag. */
    readonly digest?: string
    /** Gives the time since which the tag points to this digest here (ISO 8601). */
    readonly cachedAt?: string
    /** Gives the last confirmation by the upstream (ISO 8601). */
    readonly checkedAt?: string
    /** Gives the time until which no request is sent about the tag (ISO 8601). */
    readonly freshUntil?: string
    /** Holds the digest before the last move, with the time of the move. */
    readonly movedFrom?: { readonly digest: string; readonly at: string }
    /** Holds the digest that the upstream has named since then and that is not fetched, with the time of its answer. */
    readonly newer?: { readonly digest: string; readonly at: string }
  }
  readonly digest?: string
  readonly content: readonly TracedContent[]
  /** Lists the last requests for the image, the newest first. */
  readonly requests: readonly RequestReport[]
  /** Describes a pull by a client of this machine now. */
  readonly next: {
    /** `hit`: everything is held; `partly`: something must be fetched; `miss`: nothing is held; `fails`: offline, or refused. */
    readonly result: 'hit' | 'partly' | 'miss' | 'fails'
    /** Explains the result, one sentence each. */
    readonly why: readonly string[]
    /** Counts the requests to the upstream, without those for tokens. */
    readonly upstreamRequests: number
    /** Counts the pulls that Docker Hub would count. */
    readonly hubPulls: number
    /** Is true where the requests go to Docker Hub, or to a server that announces its quota. */
    readonly countsPulls?: boolean
    /** Bytes to fetch; absent when a manifest is missing. */
    readonly bytes?: number
  }
}

/** Describes a manifest or blob of a traced image. */
export interface TracedContent {
  readonly digest: string
  readonly kind: 'index' | 'manifest' | 'config' | 'layer' | 'other'
  /** Names the platform of a manifest in an index: `linux/arm64/v8`. */
  readonly platform?: string
  readonly mediaType?: string
  /** Bytes. */
  readonly size?: number
  readonly state: 'held' | 'arriving' | 'missing'
  /** Is present while it arrives. */
  readonly download?: DownloadReport
  /** Explains why it would not be served from the store now; absent for content that would, and when it is not known. */
  readonly reason?: MissReason
  /** Gives the time at which it was removed to keep a limit (ISO 8601). */
  readonly evictedAt?: string
  /** Is true when a pull of the assumed client needs it. */
  readonly isNeeded: boolean
  /** Holds the grants: which repository vouches for it, with a credential or anonymously, and whether it lets this image be served. */
  readonly grants: readonly {
    readonly repository: string
    readonly identity: 'anonymous' | 'credential'
    readonly isValid: boolean
  }[]
  /** Holds the digest of the manifest that names it; absent for the root. */
  readonly parent?: string
}
