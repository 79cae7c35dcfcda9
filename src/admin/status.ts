import { type CachedImage, listCachedImages } from '../cache/images.ts'
import type { PullThrough } from '../cache/pull-through.ts'
import type { ImageSavings } from '../stats/savings.ts'
import type { Stats, Totals, UpstreamTotals } from '../stats/stats.ts'
import { createPauses } from '../lib/async.ts'
import { redact } from '../lib/logger.ts'
import { systemClock } from '../lib/time.ts'
import type { MetadataStore } from '../metadata/metadata-store.ts'
import type { Digest } from '../oci/reference.ts'
import type { PushedRepositories, PushedStore } from '../registry/repositories.ts'
import type { Store } from '../store/open-store.ts'
import { isProbeImageName } from '../upstream/probe-image.ts'
import type { RateLimit, UpstreamHealth } from '../upstream/upstream.ts'
import type { LiveSummary } from './activity.ts'
import type { DamagedRepositoryReport, ImageReport, OfflineReport, StatusReport, UpstreamReport } from './api.ts'

interface StatusContext {
  readonly version: string
  readonly runtime: StatusReport['runtime']
  /** Gives the wall-clock time, ms. */
  readonly startedAt: number
  readonly endpoints: StatusReport['endpoints']
  readonly maxBytes: number
  readonly minFree: number
  readonly networks: StatusReport['networks']
  /** Access of containers of Docker networks to the registry. */
  readonly registryNetworks: 'read' | 'write'
  /** Holds the reasons why the mirror cannot fetch by its own fault, or why its registry serves no client. */
  readonly troubles: readonly string[]
  /** Holds the free bytes on the disk of the cache; undefined where the system does not tell. */
  readonly freeBytes: number | undefined
}

type StorageContext = Pick<StatusContext, 'maxBytes' | 'minFree' | 'freeBytes'>

interface UpstreamSource {
  /** Iterates over the upstreams that received requests since the start. */
  all(): Iterable<{ readonly host: string; health(): UpstreamHealth }>
  /** Returns whether the requests for this registry spend a pull quota of Docker Hub. */
  countsPulls(host: string): boolean
}

/** Holds the parts of the server that a status report covers. */
interface StatusSources {
  readonly store: Pick<Store<MetadataStore>, 'metadata' | 'blobs' | 'layout'>
  readonly stats: Stats
  readonly upstreams: UpstreamSource & { readonly offline: { report(): OfflineReport } }
  /** Is undefined when the registry is switched off. */
  readonly pushed: { readonly store: PushedStore; readonly sessions: { readonly count: number } } | undefined
  readonly blobs: { readonly kind: StatusReport['sendBlob'] }
}

/** Builds what `mirror status --json` prints. */
export async function createStatusReport(sources: StatusSources, context: StatusContext): Promise<StatusReport> {
  const { store, stats, upstreams, pushed, blobs: sender } = sources
  const images = await listImageReports({ store })
  const manifests = await countManifests(store.metadata)
  return {
    version: context.version,
    running: true,
    runtime: context.runtime,
    pid: process.pid,
    startedAt: toIso(context.startedAt),
    uptimeSeconds: Math.max(0, Math.round((Date.now() - context.startedAt) / 1000)),
    since: toIso(stats.since),
    endpoints: context.endpoints,
    networks: context.networks,
    sendBlob: sender.kind,
    offline: upstreams.offline.report(),
    cache: toCounters(stats.totals, stats.hitRatio),
    upstreams: toUpstreamReports(stats.upstreams, upstreams),
    storage: describeStorage(sources, context, manifests),
    registry: {
      ...toRegistryCounters(pushed),
      ...(pushed && { networks: context.registryNetworks }),
    },
    ...(context.troubles.length > 0 && { troubles: [...context.troubles] }),
    refusedHosts: Object.fromEntries(stats.refusedHosts),
    refusedRegistries: Object.fromEntries(stats.refusedRegistries),
    images,
  }
}

function describeStorage(
  { store, pushed }: StatusSources,
  { maxBytes, minFree, freeBytes }: StorageContext,
  manifests: number,
): StatusReport['storage'] {
  const { bytes, blobs } = store.blobs.usage
  return {
    path: store.layout.home,
    bytes,
    maxBytes,
    blobs,
    manifests,
    pushedBytes: pushed?.store.blobs.usage.bytes ?? 0,
    ...(freeBytes !== undefined && { freeBytes }),
    minFree,
  }
}

/** Builds the numbers of the dashboard's tiles. `manifests`: the result of `countManifests`, which may be some seconds old. */
export function createLiveSummary(
  sources: StatusSources,
  context: StorageContext & Pick<LiveSummary, 'today'>,
  manifests: number,
): LiveSummary {
  const { stats, upstreams } = sources
  return {
    at: new Date().toISOString(),
    cache: toCounters(stats.totals, stats.hitRatio),
    today: context.today,
    upstreams: toUpstreamReports(stats.upstreams, upstreams),
    storage: describeStorage(sources, context, manifests),
    offline: upstreams.offline.report().active,
  }
}

/** Counts the recorded manifests; one that several repositories have counts once. */
export async function countManifests(metadata: Pick<MetadataStore, 'all'>): Promise<number> {
  const pause = createPauses(systemClock)
  const found = new Set<Digest>()
  for (const { manifests } of metadata.all())
    for (const digest of manifests.keys()) {
      found.add(digest)
      if (found.size % 1024 === 0) await pause()
    }
  return found.size
}

/** Lists the cached images, without probe images; with `cache` also the details of `GET /api/cache`. */
export async function listImageReports({ store, cache, savings }: ImageSources): Promise<ImageReport[]> {
  const all = await listCachedImages(store.metadata, store.blobs.sizes, createPauses(systemClock))
  const images = all.filter(({ repository }) => !isProbeImageName(repository))
  if (!cache) return images.map(toImageReport)
  // Tags of one image have one rank, because they go together.
  const times = [...new Set(images.map(({ usedAt }) => usedAt))].toSorted((a, b) => a - b)
  const ranks = new Map(times.map((usedAt, at) => [usedAt, at + 1]))
  return images.map((image) => {
    const { host, repository, tag, usedAt } = image
    const report = toImageReport(image)
    report.evictionRank = ranks.get(usedAt)!
    if (savings) report.bytesSaved = savings.get(image.name)
    const details = tag === undefined ? undefined : cache.describeTag({ host, name: repository }, tag)
    if (details?.newer) report.outdated = { digest: details.newer.digest, at: toIso(details.newer.at) }
    if (details?.movedAt !== undefined) report.movedAt = toIso(details.movedAt)
    return report
  })
}

interface ImageSources {
  readonly store: Pick<StatusSources['store'], 'metadata' | 'blobs'>
  /** Adds the details that only the running mirror knows; undefined to leave them out. */
  readonly cache?: Pick<PullThrough, 'describeTag'> | undefined
  readonly savings?: Pick<ImageSavings, 'get'> | undefined
}

function toImageReport({ name, digest, bytes, pulls, lastPulled, checkedAt }: CachedImage): ImageReport {
  const report: ImageReport = { name, digest, bytes, pulls }
  if (lastPulled !== undefined) report.lastPulled = toIso(lastPulled)
  if (checkedAt !== undefined) report.checkedAt = toIso(checkedAt)
  return report
}

function toRegistryCounters(pushed: StatusSources['pushed']): StatusReport['registry'] {
  const counts = { repositories: 0, tags: 0, manifests: 0 }
  for (const { tags, manifests } of pushed?.store.repositories.all() ?? []) {
    if (manifests.size > 0) counts.repositories += 1
    counts.tags += tags.size
    counts.manifests += manifests.size
  }
  const damaged = pushed ? listDamagedReports(pushed.store.repositories) : []
  return {
    ...counts,
    bytes: pushed?.store.blobs.usage.bytes ?? 0,
    uploads: pushed?.sessions.count ?? 0,
    ...(damaged.length > 0 && { damaged }),
  }
}

function toCounters(totals: Totals, hitRatio: number): StatusReport['cache'] {
  return { ...totals, hitRatio: Math.round(hitRatio * 10_000) / 10_000 }
}

function toUpstreamReports(
  countsByHost: Stats['upstreams'],
  directory: UpstreamSource,
): Record<string, UpstreamReport> {
  const reports = new Map<string, UpstreamReport>()
  const toCounts = (host: string, { pullsAvoided, ...counts }: UpstreamTotals) => ({
    ...counts,
    ...(directory.countsPulls(host) && { pullsAvoided }),
  })
  for (const [host, counts] of countsByHost) reports.set(host, { ...toCounts(host, counts), state: 'ok' })
  for (const upstream of directory.all()) {
    const { host } = upstream
    const { state, rateLimit, lastError } = upstream.health()
    const counts = reports.get(host) ?? toCounts(host, { hits: 0, misses: 0, bytesFromUpstream: 0, pullsAvoided: 0 })
    const quota = rateLimit && toQuotaReport(rateLimit)
    const failure = lastError && { ...lastError, message: cleanText(lastError.message), at: toIso(lastError.at) }
    reports.set(host, {
      ...counts,
      state,
      ...(failure && { lastError: failure }),
      ...(quota && { rateLimit: quota }),
    })
  }
  return Object.fromEntries(reports)
}

function toQuotaReport(quota: RateLimit): NonNullable<UpstreamReport['rateLimit']> {
  const common = { source: cleanText(quota.source ?? ''), at: toIso(quota.at) }
  if ('unlimited' in quota) return { unlimited: true, ...common }
  const { limit, remaining, windowSeconds, resetsAt } = quota
  return { limit, remaining, windowSeconds, ...common, ...(resetsAt !== undefined && { resetsAt: toIso(resetsAt) }) }
}

const maxTextLength = 300

/** Limits a text of an upstream and replaces control characters. */
export function cleanText(text: string): string {
  return redact(text)
    .slice(0, maxTextLength)
    .replaceAll(/\p{Cc}/gu, '?')
}

function toIso(milliseconds: number): string {
  return new Date(milliseconds).toISOString()
}

/** Lists the repositories whose record is damaged. */
export function listDamagedReports({ damaged }: Pick<PushedRepositories, 'damaged'>): DamagedRepositoryReport[] {
  return damaged.map(({ name, path, original, reason, isServed }) => ({
    ...(name !== undefined && { repository: name }),
    path,
    original,
    reason,
    served: isServed,
  }))
}

/** Loads prom-client. */
export const loadPromClient = async () => (await import('prom-client')).default

/** Renders the status as Prometheus text. */
export async function renderMetrics(report: StatusReport): Promise<{ contentType: string; text: string }> {
  const { Counter, Gauge, Registry } = await loadPromClient()
  const registry = new Registry()
  const addCounter = (name: string, help: string, value: number) => {
    new Counter({ name: `mirror_${name}`, help, registers: [registry] }).inc(value)
  }
  const addGauge = (name: string, help: string, value: number) => {
    new Gauge({ name: `mirror_${name}`, help, registers: [registry] }).set(value)
  }
  const { cache, storage, upstreams } = report

  addCounter('pulls_total', 'Images that clients pulled', cache.pulls)
  addCounter('requests_total', 'Manifest and blob requests answered', cache.requests)
  addCounter('hits_total', 'Requests answered from the store', cache.hits)
  addCounter('misses_total', 'Requests answered from an upstream', cache.misses)
  addCounter('collapsed_total', 'Misses that joined a running fetch', cache.collapsed)
  addCounter('revalidated_total', 'Hits that were confirmed by the upstream first', cache.revalidated)
  addCounter('stale_served_total', 'Hits served without the upstream being able to confirm them', cache.staleServed)
  addCounter('errors_total', 'Requests that failed', cache.errors)
  addCounter('digest_mismatches_total', 'Upstream answers refused for their digest', cache.digestMismatches)
  addCounter('served_bytes_total', 'Body bytes sent to clients', cache.bytesServed)
  addCounter('upstream_bytes_total', 'Body bytes fetched from upstreams', cache.bytesFromUpstream)
  addCounter('saved_bytes_total', 'Body bytes that did not have to be fetched', cache.bytesSaved)
  addGauge('storage_bytes', 'Bytes in the cache', storage.bytes)
  addGauge('storage_max_bytes', 'The limit of the cache, 0 for none', storage.maxBytes)
  addGauge('storage_blobs', 'Blobs in the cache', storage.blobs)
  addGauge('registry_bytes', 'Bytes that were pushed', report.registry.bytes)
  addGauge('registry_tags', 'Tags that were pushed', report.registry.tags)
  addGauge('registry_damaged', 'Pushed repositories whose record is damaged', report.registry.damaged?.length ?? 0)
  addGauge('registry_uploads', 'Uploads under way', report.registry.uploads)
  addGauge('offline', '1 while no upstream is contacted', report.offline?.active ? 1 : 0)
  addGauge('uptime_seconds', 'Seconds since the start', report.uptimeSeconds)

  const labelNames = ['upstream']
  const hits = new Counter({
    name: 'mirror_upstream_hits_total',
    help: 'Hits by upstream',
    labelNames,
    registers: [registry],
  })
  const misses = new Counter({
    name: 'mirror_upstream_misses_total',
    help: 'Misses by upstream',
    labelNames,
    registers: [registry],
  })
  const up = new Gauge({
    name: 'mirror_upstream_up',
    help: '1 while the upstream answers',
    labelNames,
    registers: [registry],
  })
  const remaining = new Gauge({
    name: 'mirror_upstream_ratelimit_remaining',
    help: 'Pulls left in the upstream quota',
    labelNames,
    registers: [registry],
  })
  const avoided = new Counter({
    name: 'mirror_upstream_pulls_avoided_total',
    help: 'Pulls that the upstream quota was spared',
    labelNames,
    registers: [registry],
  })
  for (const [upstream, counts] of Object.entries(upstreams)) {
    hits.inc({ upstream }, counts.hits)
    misses.inc({ upstream }, counts.misses)
    up.set({ upstream }, counts.state === 'ok' ? 1 : 0)
    if (counts.rateLimit && 'remaining' in counts.rateLimit) remaining.set({ upstream }, counts.rateLimit.remaining)
    if (counts.pullsAvoided !== undefined) avoided.inc({ upstream }, counts.pullsAvoided)
  }
  return { contentType: registry.contentType, text: await registry.metrics() }
}
