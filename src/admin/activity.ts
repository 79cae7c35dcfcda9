import type { RequestReport } from '../stats/requests.ts'
import type { DownloadReport } from '../cache/downloads.ts'
import type { StatusReport } from './api.ts'

export type { DownloadReport } from '../cache/downloads.ts'
export type { MissReason } from '../oci/registry.ts'
export type { HistoryBucket } from '../stats/buckets.ts'
export type { ClientReport } from '../stats/clients.ts'
export type { HistoryRange, HistoryReport } from '../stats/history.ts'
export type { RequestReport } from '../stats/requests.ts'
export type { CheckGroup, CheckResult, CheckState, DoctorReport, FindingsReport } from './dashboard/findings.ts'

/**
 * Describes what the mirror does and did: the reports behind the dashboard, `mirror trace` and `mirror doctor`. This file holds types
 * only, because the dashboard imports it too.
 */

/**
 * Lists the events of `GET /api/events`, Server-Sent Events whose `event` is the key and whose `data` is the value as JSON. `requests`
 * come at most four times a second, with the number of further requests that were left out; `downloads` is the whole list each time;
 * `changed` says that images, clients or settings have changed since; `summary` comes every two seconds, and at once at the beginning.
 */
export interface LiveEvents {
  readonly requests: { readonly requests: readonly RequestReport[]; readonly omitted: number }
  readonly downloads: readonly DownloadReport[]
  readonly summary: LiveSummary
  readonly changed: { readonly what: readonly ('images' | 'registry' | 'doctor' | 'offline')[] }
}

/** Holds the numbers of the tiles. */
export interface LiveSummary {
  /** Gives the time (ISO 8601). */
  readonly at: string
  /** Holds the totals of `StatusReport.cache`. */
  readonly cache: StatusReport['cache']
  /** Counts since midnight of the server's time zone. */
  readonly today: {
    readonly pulls: number
    readonly bytesSaved: number
    readonly hits: number
    readonly misses: number
  }
  readonly upstreams: StatusReport['upstreams']
  readonly storage: StatusReport['storage']
  readonly offline: boolean
}

/** Answers `GET` and `POST /api/session`: the session of the page. */
export interface SessionReport {
  /** Is true when this browser may change something. */
  readonly active: boolean
  /** Holds the value to send as `X-Mirror-Session` with each change; absent without a session. */
  readonly secret?: string
}

/** Describes what the mirror knows about an image, and what a pull would do now: the answer of `GET /api/trace?image=`. */
export interface TraceReport {
  /** Names the image as `docker.io/library/alpine:3.20`. */
  readonly image: string
  readonly registry: string
  readonly repository: string
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
  /** Gives the time at which it was removed to keep a limit (ISO 8601). */
  readonly evictedAt?: string
  /** Holds the grants: which repository vouches for it, with a credential or anonymously, and whether callers here may use it. */
  readonly grants: readonly {
    readonly repository: string
    readonly identity: 'anonymous' | 'credential'
    readonly isValid: boolean
  }[]
  /** Holds the digest of the manifest that names it; absent for the root. */
  readonly parent?: string
}
