import { computed, signal } from '@preact/signals'
import type {
  ClientReport,
  ConfiguredClientReport,
  DoctorReport,
  DownloadReport,
  HistoryRange,
  HistoryReport,
  LiveSummary,
  RequestReport,
} from '../../src/admin/activity.ts'
import type { ImageReport, PushedImageReport, StatusReport } from '../../src/admin/api.ts'

/** Lists the views by the fragment of their address. */
export const views = {
  overview: 'Overview',
  images: 'Images',
  pushed: 'Pushed',
  clients: 'Clients',
  log: 'Log',
  doctor: 'Doctor',
} as const

export type View = keyof typeof views

/** Limits the rows of the log. */
export const maxRequests = 500

export const view = signal<View>('overview')
/**
 * Distinguishes `lost`: the mirror does not answer, and the page tries again; `locked`: it tells nothing to a browser without a session,
 * because the browser is not on its machine, or the mirror is in a container.
 */
export const connection = signal<'connecting' | 'live' | 'lost' | 'locked'>('connecting')
/** Holds the value of `X-Mirror-Session`; undefined without a session. */
export const secret = signal<string | undefined>(undefined)
/** Explains why the link that this page was opened with did not sign it in; undefined otherwise. */
export const refusal = signal<string | undefined>(undefined)
/** Gives the time that ages are relative to, ms. */
export const now = signal(Date.now())

export const summary = signal<LiveSummary | undefined>(undefined)
export const status = signal<StatusReport | undefined>(undefined)
export const images = signal<readonly ImageReport[] | undefined>(undefined)
export const pushed = signal<readonly PushedImageReport[] | undefined>(undefined)
export const clients = signal<readonly ClientReport[] | undefined>(undefined)
/** Holds no list while the mirror does not know the configured clients. */
export const configured = signal<{ readonly clients?: readonly ConfiguredClientReport[] } | undefined>(undefined)
export const doctor = signal<{ readonly report?: DoctorReport; readonly canRun: boolean } | undefined>(undefined)
export const downloads = signal<readonly DownloadReport[]>([])
export const range = signal<HistoryRange>('day')
export const history = signal<HistoryReport | undefined>(undefined)

/** Holds the newest requests, the newest first. */
export const requests = signal<readonly RequestReport[]>([])
/** Holds the requests that a paused log shows; undefined while it goes on. */
export const frozen = signal<readonly RequestReport[] | undefined>(undefined)
/** Counts the requests that the server left out of the live log, because there were too many. */
export const omitted = signal(0)

export const upstreams = computed(() => Object.entries(summary.value?.upstreams ?? {}))
export const inTrouble = computed(() => upstreams.value.filter(([, { state }]) => state !== 'ok').map(([name]) => name))
/** Is true for a mirror that nobody has used yet. */
export const isUnused = computed(() => summary.value?.cache.requests === 0 && status.value?.images.length === 0)

/** Returns the title of the page, which tells the state. */
export const title = computed(() => {
  const ratio = summary.value && summary.value.cache.hits + summary.value.cache.misses > 0
  if (connection.value === 'lost') return 'disconnected – mirror'
  if (connection.value === 'locked') return 'signed out – mirror'
  if (summary.value?.offline) return 'offline – mirror'
  if (inTrouble.value.length > 0) return `${inTrouble.value[0]} in trouble – mirror`
  if (downloads.value.length > 0) return `↓ ${downloads.value.length} – mirror`
  return ratio ? `${Math.floor(summary.value!.cache.hitRatio * 100)} % hits – mirror` : 'mirror'
})

/** Adds requests to the log, without those that it has. */
export function addRequests(added: readonly RequestReport[]): void {
  const known = new Set(requests.value.map(({ id }) => id))
  const fresh = added.filter(({ id }) => !known.has(id))
  if (fresh.length === 0) return
  requests.value = [...fresh, ...requests.value].toSorted((a, b) => (a.at < b.at ? 1 : -1)).slice(0, maxRequests)
}
