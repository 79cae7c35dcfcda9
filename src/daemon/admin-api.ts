import { join } from 'node:path'
import type { DoctorReport, LiveSummary } from '../admin/activity.ts'
import type { AdminApi, RegistryApi, StatusReport } from '../admin/api.ts'
import type { LiveSources } from '../admin/dashboard/events.ts'
import { openFindings } from '../admin/dashboard/findings.ts'
import { createCacheApi, createRegistryApi } from '../admin/local.ts'
import { createAddressCheck } from '../admin/names.ts'
import {
  countManifests,
  createLiveSummary,
  createStatusReport,
  listImageReports,
  renderMetrics,
} from '../admin/status.ts'
import { traceImage } from '../admin/trace/trace.ts'
import type { Config } from '../config/config.ts'
import { getErrno } from '../lib/errors.ts'
import { logFailure, systemClock } from '../lib/time.ts'
import type { Logger } from '../lib/logger.ts'
import { OciError } from '../oci/errors.ts'
import { toRegistryUrl } from '../oci/reference.ts'
import { getLocalMidnight } from '../stats/history.ts'
import { freeSpace } from '../store/blob-writer.ts'
import { getCredentialHost } from '../upstream/credentials.ts'
import { getNetworkRights } from './networks.ts'
import type { createActivityApi } from './activity.ts'
import type { Parts } from './compose.ts'
import type { HostHandoff } from './container/handoff.ts'

/** Limits the requests in the trace of an image. */
const maxRequests = 100
/** Sets the time for which the number of manifests in a summary stays, because counting them takes time, ms. */
const countMs = 30_000

interface ReporterOptions {
  readonly parts: Parts
  readonly config: Config
  readonly version: string
  readonly runtime: StatusReport['runtime']
  readonly handoff: HostHandoff | undefined
  /** Holds the addresses; they may change. */
  readonly endpoints: StatusReport['endpoints']
  readonly listNetworks: () => StatusReport['networks']
  /** Is true when the registry can tell the host from containers. */
  readonly knowsHost: boolean
}

/** Creates the functions that describe the running server. */
export function createReporter(options: ReporterOptions) {
  const { parts, config, endpoints, handoff, version, runtime } = options
  const { maxSize: maxBytes, minFree } = config.cache
  const startedAt = Date.now()
  const openSources = async () => {
    const { store, cache } = await parts.cache
    return { ...parts, store, cache, pushed: await parts.registry?.opened }
  }
  let counted = { at: -Infinity, manifests: 0 }
  return {
    async status(): Promise<StatusReport> {
      const sources = await openSources()
      const report = await createStatusReport(sources, {
        version,
        runtime,
        startedAt,
        endpoints,
        maxBytes,
        minFree,
        networks: options.listNetworks(),
        registryNetworks: getNetworkRights(config.registry.networks, endpoints, options.knowsHost),
        troubles: [...(await parts.ownTroubles.find()), ...((await parts.registry?.troubles()) ?? [])],
        freeBytes: await readFreeSpace(sources.store.layout.home),
      })
      return toOutsideView(report, config, handoff)
    },
    /** Provides the events of the dashboard. */
    async openLiveSources(): Promise<LiveSources> {
      const sources = await openSources()
      const { metadata, layout } = sources.store
      return {
        subscribe: (onRequest) => parts.activity.recent.subscribe(onRequest),
        listDownloads: () => sources.cache.listDownloads(),
        async summarize() {
          const now = systemClock.monotonic()
          if (now - counted.at >= countMs) counted = { at: now, manifests: await countManifests(metadata) }
          const freeBytes = await readFreeSpace(layout.home)
          const today = pickTiles(parts.activity.history.since(getLocalMidnight(systemClock.wall())))
          return createLiveSummary(sources, { maxBytes, minFree, freeBytes, today }, counted.manifests)
        },
      }
    },
  }
}

function pickTiles({ pulls, bytesSaved, hits, misses }: LiveSummary['today']): LiveSummary['today'] {
  return { pulls, bytesSaved, hits, misses }
}

interface ServerActions {
  readonly activity: ReturnType<typeof createActivityApi> & ReturnType<typeof createTraceApi>
  readonly status: () => Promise<StatusReport>
  /** Begins to drain and end the server. */
  readonly stop: () => void
  /** Runs the checks of `mirror doctor` on this machine; undefined where that is not possible. */
  readonly runDoctor: (() => Promise<DoctorReport>) | undefined
  readonly stateDir: string
  readonly logger: Logger
}

/** Implements the admin API with the parts of the running server. */
export async function createServerAdminApi(
  parts: Parts,
  { status, stop, activity, logger, runDoctor, stateDir }: ServerActions,
): Promise<AdminApi> {
  const { evictor, cache, store } = await parts.cache
  const pushed = await parts.registry?.opened
  const { probeImages } = parts
  return {
    ...activity,
    getStatus: status,
    getMetrics: async () => renderMetrics(await status()),
    cache: createCacheApi(store, evictor, { cache, savings: parts.activity.savings }),
    registry: pushed ? createRegistryApi(pushed.store, pushed.maintenance) : disabledRegistry,
    doctor: await openFindings({
      runDoctor,
      path: join(stateDir, 'doctor.json'),
      onFailure: logFailure(logger, 'could not save the findings of mirror doctor'),
    }),
    async setOffline({ offline }) {
      const report = parts.upstreams.setOffline(offline)
      logger.info({ offline }, offline ? 'upstreams are not contacted' : 'upstreams are contacted again')
      return report
    },
    async offerProbeImage() {
      const { id, repository, tag, image } = probeImages.offer()
      return { id, repository, tag, digest: image.digest }
    },
    async endProbeImage(id) {
      const probeImage = probeImages.end(id)
      if (!probeImage) throw new OciError('UNKNOWN', 404, 'No such image is offered.')
      const { requestsByHost, repository } = probeImage
      // The cache stored it like any other image.
      await evictor.remove(
        [...requestsByHost.keys()].map((host) => `${host}/${repository}`),
        false,
      )
      cache.clearMemory()
      return { seen: Object.fromEntries(requestsByHost) }
    },
    stop: async () => stop(),
  }
}

async function refuse(): Promise<never> {
  throw new OciError('UNSUPPORTED', 404, 'The registry is switched off: "registry.enabled" in mirror.yaml.')
}

const disabledRegistry: RegistryApi = { list: refuse, listDamaged: refuse, remove: refuse, gc: refuse, prune: refuse }

/**
 * Replaces what a mirror in a container cannot know by what the host exported: its published addresses and the state of
 * credentials.
 */
async function toOutsideView(
  report: StatusReport,
  config: Config,
  handoff: HostHandoff | undefined,
): Promise<StatusReport> {
  if (!handoff) return report
  const { upstreams } = report
  const owned = Object.entries(config.upstreams).map(([host, upstream]) => [getCredentialHost(host, upstream), host])
  for (const [owner, credentials] of Object.entries(await handoff.readCredentials())) {
    const host = owned.find(([name]) => name === owner)?.[1] ?? owner
    const counts = upstreams[host] ?? { hits: 0, misses: 0, bytesFromUpstream: 0, state: 'ok' }
    upstreams[host] = { ...counts, credentials }
  }
  return { ...report, endpoints: (await handoff.readEndpoints()) ?? report.endpoints }
}

/** Returns the free bytes of a disk; undefined where the system does not tell. */
async function readFreeSpace(path: string): Promise<number | undefined> {
  try {
    const free = await freeSpace(path)
    return Number.isFinite(free) ? free : undefined
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    return undefined
  }
}

interface TracingOptions {
  readonly parts: Parts
  readonly config: Config
  readonly endpoints: StatusReport['endpoints']
}

/** Implements the operations of the admin API that explain images and downloads. They read, and send no request. */
export function createTraceApi(
  { parts, config, endpoints }: TracingOptions,
  { listRequests }: Pick<AdminApi, 'listRequests'>,
): Pick<AdminApi, 'trace' | 'listDownloads'> {
  const createCheck = (urls: readonly string[]) => {
    const gateways = Object.values(endpoints.networks).map((url) => new URL(url).hostname)
    return createAddressCheck(urls, [...config.allowedHosts, ...gateways])
  }
  return {
    async trace(request) {
      const { cache, store } = await parts.cache
      const pushed = await parts.registry?.opened
      const report = await traceImage(request, {
        cache,
        store,
        pushed: pushed?.store,
        pastChanges: parts.pastChanges,
        naming: {
          isCacheAddress: createCheck(endpoints.cache),
          isRegistryAddress: createCheck(endpoints.registry),
          defaultUpstream: config.defaultUpstream,
        },
        describeUpstream: (host, isAnonymous) => {
          const { url = toRegistryUrl(host), prefix, credentials } = config.upstreams[host] ?? {}
          const credential = isAnonymous ? 'anonymous' : (credentials?.from ?? 'docker-config')
          return { url, ...(prefix !== undefined && { prefix }), credential }
        },
        listImages: () => listImageReports({ store, cache }),
        now: () => systemClock.wall(),
      })
      return { ...report, requests: await listRequests({ image: report.image, limit: maxRequests }) }
    },
    listDownloads: async () => (await parts.cache).cache.listDownloads(),
  }
}
