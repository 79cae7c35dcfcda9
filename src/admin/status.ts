import { listImages } from '../cache/images.ts'
import type { Stats, Totals } from '../cache/stats.ts'
import { redact } from '../lib/logger.ts'
import type { RegistryMaintenance } from '../registry/maintenance.ts'
import type { PushedRepositories, PushedStore } from '../registry/repositories.ts'
import type { Store } from '../store/open-store.ts'
import { isProbeImageName } from '../upstream/probe-image.ts'
import type { UpstreamHealth } from '../upstream/upstream.ts'
import type { DamagedRepositoryReport, ImageReport, StatusReport, UpstreamReport } from './api.ts'
import type { RegistryActions } from './handler.ts'

interface StatusContext {
  readonly version: string
  readonly runtime: StatusReport['runtime']
  /** Wall clock ms. */
  readonly startedAt: number
  readonly endpoints: StatusReport['endpoints']
  readonly maxBytes: number
  readonly minFree: number
  readonly networks: StatusReport['networks']
  /** What containers of Docker networks may do in the registry. */
  readonly registryNetworks: 'read' | 'write'
  /** Why the mirror cannot fetch by its own fault, or its registry serves nobody. */
  readonly troubles: readonly string[]
  /** Bytes that may still be written to the disk of the cache; undefined where that cannot be told. */
  readonly freeBytes: number | undefined
}

/** The running parts that a status report describes. */
interface StatusSources {
  readonly store: Pick<Store, 'refs' | 'blobs' | 'layout'>
  readonly stats: Stats
  /** The upstreams that were asked since the start. */
  readonly upstreams: { all(): Iterable<{ readonly host: string; health(): UpstreamHealth }> }
  /** Undefined when the registry is switched off. */
  readonly pushed: { readonly store: PushedStore; readonly sessions: { readonly count: number } } | undefined
  /** How blobs are sent. */
  readonly blobs: { readonly kind: StatusReport['sendBlob'] }
}

/** Builds what `mirror status --json` prints. */
export function createStatusReport(
  { store, stats, upstreams, pushed, blobs: sent }: StatusSources,
  context: StatusContext,
): StatusReport {
  const manifests = new Set<string>()
  for (const record of store.refs.all()) for (const digest of record.manifests.keys()) manifests.add(digest)
  const { bytes, blobs } = store.blobs.usage
  return {
    version: context.version,
    running: true,
    runtime: context.runtime,
    pid: process.pid,
    startedAt: iso(context.startedAt),
    uptimeSeconds: Math.max(0, Math.round((Date.now() - context.startedAt) / 1000)),
    since: iso(stats.since),
    endpoints: context.endpoints,
    networks: context.networks,
    sendBlob: sent.kind,
    cache: counters(stats.totals, stats.hitRatio),
    upstreams: upstreamReports(stats.upstreams, [...upstreams.all()]),
    storage: {
      path: store.layout.home,
      bytes,
      maxBytes: context.maxBytes,
      blobs,
      manifests: manifests.size,
      pushedBytes: pushed?.store.blobs.usage.bytes ?? 0,
      ...(context.freeBytes !== undefined && { freeBytes: context.freeBytes }),
      minFree: context.minFree,
    },
    registry: {
      ...registryCounters(pushed),
      ...(pushed && { networks: context.registryNetworks }),
    },
    ...(context.troubles.length > 0 && { troubles: [...context.troubles] }),
    refusedHosts: Object.fromEntries(stats.refusedHosts),
    refusedRegistries: Object.fromEntries(stats.refusedRegistries),
    images: imageReports({ store }),
  }
}

/** What is cached, as images. Those by which the mirror checks clients are none of its user's. */
export function imageReports({ store }: Pick<StatusSources, 'store'>): ImageReport[] {
  const images = listImages(store.refs, store.blobs.sizes).filter(({ repository }) => !isProbeImageName(repository))
  return images.map(({ name, digest, bytes, pulls, lastPulled, checkedAt }) => {
    const report: ImageReport = { name, digest, bytes, pulls }
    if (lastPulled !== undefined) report.lastPulled = iso(lastPulled)
    if (checkedAt !== undefined) report.checkedAt = iso(checkedAt)
    return report
  })
}

function registryCounters(pushed: StatusSources['pushed']): StatusReport['registry'] {
  const counts = { repositories: 0, tags: 0, manifests: 0 }
  for (const { tags, manifests } of pushed?.store.repositories.all() ?? []) {
    if (manifests.size > 0) counts.repositories += 1
    counts.tags += tags.size
    counts.manifests += manifests.size
  }
  const damaged = pushed ? damagedReports(pushed.store.repositories) : []
  return {
    ...counts,
    bytes: pushed?.store.blobs.usage.bytes ?? 0,
    uploads: pushed?.sessions.count ?? 0,
    ...(damaged.length > 0 && { damaged }),
  }
}

function counters(totals: Totals, hitRatio: number): StatusReport['cache'] {
  return { ...totals, hitRatio: Math.round(hitRatio * 10_000) / 10_000 }
}

function upstreamReports(
  counted: ReadonlyMap<string, { hits: number; misses: number; bytesFromUpstream: number }>,
  asked: readonly { readonly host: string; health(): UpstreamHealth }[],
): Record<string, UpstreamReport> {
  const reports = new Map<string, UpstreamReport>()
  for (const [host, counts] of counted) reports.set(host, { ...counts, state: 'ok' })
  for (const upstream of asked) {
    const { host } = upstream
    const { state, rateLimit, lastError } = upstream.health()
    const counts = reports.get(host) ?? { hits: 0, misses: 0, bytesFromUpstream: 0 }
    const quota = rateLimit && { ...rateLimit, source: rateLimit.source ?? '', at: iso(rateLimit.at) }
    const failure = lastError && { ...lastError, message: cleanText(lastError.message), at: iso(lastError.at) }
    reports.set(host, {
      ...counts,
      state,
      ...(failure && { lastError: failure }),
      ...(quota && { rateLimit: quota }),
    })
  }
  return Object.fromEntries(reports)
}

const longestText = 300

/** What an upstream said: of limited length, without control characters. */
function cleanText(text: string): string {
  return redact(text)
    .slice(0, longestText)
    .replaceAll(/\p{Cc}/gu, '?')
}

function iso(milliseconds: number): string {
  return new Date(milliseconds).toISOString()
}

/** The repositories whose record is damaged. */
export function damagedReports({ damaged }: Pick<PushedRepositories, 'damaged'>): DamagedRepositoryReport[] {
  return damaged.map(({ name, path, original, reason, isServed }) => ({
    ...(name !== undefined && { repository: name }),
    path,
    original,
    reason,
    served: isServed,
  }))
}

/** What the admin listener, and the commands while no mirror runs, can have done with what was pushed. */
export function createRegistryActions(maintenance: RegistryMaintenance): RegistryActions {
  return {
    list: async () =>
      (await maintenance.list()).map((image) => ({ ...image, pushedAt: new Date(image.pushedAt).toISOString() })),
    remove: ({ names, dryRun }) => maintenance.remove(names, dryRun),
    gc: (how) => maintenance.gc(how),
    prune: (how) => maintenance.prune({ ...how, repository: how.repository }),
  }
}
