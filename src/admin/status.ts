import type { Parts } from '../daemon/compose.ts'
import { listImages } from '../cache/images.ts'
import type { Totals } from '../cache/stats.ts'
import type { MirrorPaths, Surroundings } from '../config/paths.ts'
import { hostOf } from '../docker/endpoint.ts'
import { exitCode, MirrorError } from '../lib/errors.ts'
import { redact } from '../lib/logger.ts'
import type { RegistryKeeper } from '../registry/maintenance.ts'
import type { PushedRepositories } from '../registry/repositories.ts'
import { isCanaryName } from '../upstream/probe-image.ts'
import type { UpstreamHealth } from '../upstream/upstream.ts'
import type { DamagedRepositoryReport, ImageReport, StatusReport, UpstreamReport } from './api.ts'
import { type AdminClient, type AdminTunnel, createAdminClient } from './client.ts'
import { findMirrorHere, type MirrorHere } from './find-mirror.ts'
import type { RegistryActions } from './handler.ts'
import type { ContainerPlace, MirrorState } from './state.ts'

export interface StatusContext {
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

/** What `mirror status --json` prints, from the running parts. */
export function createStatusReport(
  { store, stats, upstreams, pushed, blobs: sent }: Parts,
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
export function imageReports({ store }: Pick<Parts, 'store'>): ImageReport[] {
  const images = listImages(store.refs, store.blobs.sizes).filter(({ repository }) => !isCanaryName(repository))
  return images.map(({ name, digest, bytes, pulls, lastPulled, checkedAt }) => {
    const report: ImageReport = { name, digest, bytes, pulls }
    if (lastPulled !== undefined) report.lastPulled = iso(lastPulled)
    if (checkedAt !== undefined) report.checkedAt = iso(checkedAt)
    return report
  })
}

function registryCounters(pushed: Parts['pushed']): StatusReport['registry'] {
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

/** What the running mirror says about itself; undefined when none runs. */
export async function mirrorStatus(surroundings: Surroundings): Promise<StatusReport | undefined> {
  const here = await findMirrorHere(surroundings)
  if (here === undefined) return undefined
  const report = completed(await adminHere(here).status())
  const engine = engineElsewhere(here.running)
  return { ...report, ...(engine !== undefined && { engine }), ...(here.user && { user: here.user.name }) }
}

/** The admin client of a mirror that was found. */
export function adminHere({ running, paths, user }: MirrorHere): AdminClient {
  return adminOf(running, paths, user?.uid)
}

/** A mirror of an older version, which a newer command may ask, does not say everything. */
function completed(report: Partial<Pick<StatusReport, 'networks' | 'refusedRegistries'>> & StatusReport): StatusReport {
  const { cache, storage } = report as {
    cache: Partial<StatusReport['cache']>
    storage: Partial<StatusReport['storage']>
  }
  return {
    ...report,
    networks: report.networks ?? {},
    refusedRegistries: report.refusedRegistries ?? {},
    cache: { ...report.cache, pulls: cache.pulls ?? 0 },
    storage: { ...report.storage, minFree: storage.minFree ?? 0 },
  }
}

/** The Docker engine of another machine whose addresses the mirror's are: `ssh://me@there`; undefined for this machine's. */
export function engineElsewhere({ container }: Pick<MirrorState, 'container'>): string | undefined {
  return container?.elsewhere && container.engine && hostOf(container.engine)
}

/** The admin client of a running mirror; `owner`: the user whose mirror it is, where that is not ours. */
export function adminOf(running: MirrorState, paths: MirrorPaths, owner?: number): AdminClient {
  const [url] = running.endpoints.admin
  if (url === undefined)
    throw new MirrorError(`The mirror (pid ${running.pid}) has no admin address.`, {
      exit: exitCode.missing,
      hints: ['mirror down && mirror up'],
    })
  const tunnel = running.container && tunnelTo(running.container)
  return createAdminClient({ url, tokenFile: paths.tokenFile, tokenOwner: owner, timeoutMs: 10_000, tunnel })
}

function tunnelTo({ id, engine, elsewhere }: ContainerPlace): AdminTunnel | undefined {
  if (engine === undefined || elsewhere === undefined) return undefined
  return {
    to: hostOf(engine),
    async connect() {
      // What it takes to speak to an engine is loaded by those who have to.
      const { openContainerEngine } = await import('../docker/dockerode-engine.ts')
      const { openTunnel } = await import('../docker/connection.ts')
      return openTunnel(await openContainerEngine(engine), id, elsewhere.adminPort)
    },
  }
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
export function createRegistryActions(keeper: RegistryKeeper): RegistryActions {
  return {
    list: async () =>
      (await keeper.list()).map((image) => ({ ...image, pushedAt: new Date(image.pushedAt).toISOString() })),
    remove: ({ names, dryRun }) => keeper.remove(names, dryRun),
    gc: (how) => keeper.gc(how),
    prune: (how) => keeper.prune({ ...how, repository: how.repository }),
  }
}
