import type { RequestReport } from '../stats/requests.ts'
import type { DownloadReport } from '../oci/registry.ts'
import type { StatusReport } from './api.ts'

export type { DownloadReport, MissReason } from '../oci/registry.ts'
export type { HistoryBucket } from '../stats/buckets.ts'
export type { ClientReport } from '../stats/clients.ts'
export type { ConfiguredClient, ConfiguredClientReport } from '../stats/configured-clients.ts'
export type { HistoryRange, HistoryReport } from '../stats/history.ts'
export type { RequestOutcome, RequestReport } from '../stats/requests.ts'
export type { CheckGroup, CheckResult, CheckState, DoctorReport, FindingsReport } from './dashboard/findings.ts'
export type { TracedContent, TraceReport } from './trace/report.ts'

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
  readonly changed: { readonly what: readonly ('images' | 'registry' | 'clients' | 'doctor' | 'offline')[] }
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
  /** Holds the value to send as `X-Mirror-Session` with each change; only in the answer that begins the session. */
  readonly secret?: string
}
