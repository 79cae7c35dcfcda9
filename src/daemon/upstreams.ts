import type { OfflineReport } from '../admin/api.ts'
import type { Config, UpstreamConfig } from '../config/config.ts'
import type { Slots } from '../lib/async.ts'
import type { Logger } from '../lib/logger.ts'
import { isSet, runCommand } from '../lib/process.ts'
import type { ProcessHealth } from '../lib/system-errors.ts'
import { type Clock, logFailure, runEvery, runLater } from '../lib/time.ts'
import { toRegistryUrl } from '../oci/reference.ts'
import type { Repository } from '../oci/route.ts'
import type { TrafficHistory } from '../stats/history.ts'
import { dockerAuthVariable, getDockerConfigPath, parseAuthVariable } from '../upstream/docker-credentials.ts'
import { recordFailures } from '../upstream/failures.ts'
import { createHttpUpstream, type HttpUpstream } from '../upstream/http-upstream.ts'
import type { Identify } from '../upstream/identity.ts'
import { createProbeUpstream, type ProbeImages, probeImagePrefix } from '../upstream/probe-image.ts'
import { getProxyWarnings, readProxies } from '../upstream/proxy.ts'
import { isDockerHub, isQuotaOutdated, probeQuota } from '../upstream/rate-limit.ts'
import { builtInUpstreams, type Upstream, UpstreamError, type UpstreamHealth } from '../upstream/upstream.ts'
import { readAuthorities } from './start-errors.ts'

interface UpstreamDirectoryOptions {
  readonly config: Config
  /** Holds test images that every registry seems to hold. */
  readonly probeImages: ProbeImages
  readonly env: Readonly<Record<string, string | undefined>>
  readonly identify: Identify
  /** Is the User-Agent of requests to upstreams. */
  readonly userAgent: string
  /** Limits the requests in flight, of all upstreams together. */
  readonly requests: Slots
  readonly clock: Clock
  readonly logger: Logger
  /** Records fetches that fail because of this process. */
  readonly ownTroubles: ProcessHealth
  /** Records the times until the response headers. */
  readonly history: Pick<TrafficHistory, 'recordResponse'>
}

/**
 * Sets the number of requests in flight below which connections are closed after use, because idle ones hold descriptors that
 * others need.
 */
const minRequestsForKeepAlive = 64

/**
 * Limits the open upstreams of a pattern such as `*.pkg.dev`, because clients choose their names. Beyond it, the least recently used
 * ones without a request are closed.
 */
export const maxPatternUpstreams = 16

/** Delays the first request for the quota, so that it is not in the way of the start. */
const firstProbeDelayMs = 1500
const probeIntervalMs = 3_600_000

/**
 * Creates the directory of all upstreams, which opens each one on its first request. Reads the certificate files at once, so that a bad
 * one fails the start, not a pull. Throws MirrorError.
 */
export function createUpstreamDirectory({
  config,
  probeImages,
  env,
  identify,
  userAgent,
  requests,
  clock,
  logger,
  ownTroubles,
  history,
}: UpstreamDirectoryOptions) {
  const route = createRouting({
    configured: new Set(Object.keys(config.upstreams)),
    defaultUpstream: config.defaultUpstream,
  })
  const authorities = readAuthorities(config.upstreams)
  const dockerConfig = getDockerConfigPath(env)
  readProxies(env)
  if (parseAuthVariable(env[dockerAuthVariable] ?? '') === undefined)
    logger.warn(
      {},
      `${dockerAuthVariable} is not {"auths": {"<registry>": {"auth": "…"}}}, so it is ignored, as the docker command ignores it`,
    )
  for (const warning of getProxyWarnings(env)) logger.warn({}, warning)
  const fetching = ownTroubles.watch('fetch')
  /** Holds the open upstreams by host; those of a pattern have the least recently used one first. */
  const opened = new Map<string, OpenUpstream>()
  /** Holds the upstreams that have a name of their own, as clients' requests use them. */
  const named = new Map<string, Upstream>()
  const offline = new OfflineSwitch(config.cache.offline)
  const isNamed = (host: string) =>
    host === config.defaultUpstream || host in config.upstreams || builtInUpstreams.has(host)

  for (const [host, { url }] of Object.entries(config.upstreams)) {
    if (url.startsWith('http://')) logger.warn({ upstream: host, url }, 'upstream uses plain HTTP (unencrypted)')
  }

  function open(host: string): OpenUpstream {
    const known = opened.get(host)
    if (known && isNamed(host)) return known
    opened.delete(host)
    const upstream = known ?? connect(host)
    opened.set(host, upstream)
    closeUnused(host)
    return upstream
  }

  function connect(host: string): OpenUpstream {
    const settings: Partial<UpstreamConfig> = config.upstreams[host] ?? {}
    const http = createHttpUpstream({
      host,
      url: settings.url ?? toRegistryUrl(host),
      prefix: settings.prefix,
      credentials: settings.credentials ?? { from: 'docker-config' },
      identify,
      tokenHosts: settings.tokenHosts ?? [],
      ca: authorities.get(host),
      allowPrivate: host in config.upstreams,
      timeouts: config.cache.timeouts,
      env,
      dockerConfig,
      userAgent,
      onResponse: (milliseconds) => history.recordResponse(host, milliseconds),
      requests,
      keepAlive: requests.limit >= minRequestsForKeepAlive,
      clock,
      random: Math.random,
      logger,
      runCommand,
    })
    return { http, online: recordFailures(http, () => clock.wall(), fetching), isUsed: false, calls: 0 }
  }

  /** Closes upstreams of a pattern beyond their limit. The next call opens them again. */
  function closeUnused(kept?: string): void {
    if (opened.size <= maxPatternUpstreams) return
    const ofPatterns = [...opened].filter(([host]) => !isNamed(host))
    let excess = ofPatterns.length - maxPatternUpstreams
    for (const [host, { http, calls }] of ofPatterns) {
      if (excess <= 0) return
      if (host === kept || calls > 0 || !http.isIdle()) continue
      opened.delete(host)
      excess -= 1
      http.close().catch(logFailure(logger, 'could not close the connections to an upstream'))
    }
  }

  async function call<T>(host: string, ask: (upstream: Upstream) => Promise<T>): Promise<T> {
    const upstream = open(host)
    upstream.calls += 1
    try {
      return await ask(upstream.online)
    } finally {
      upstream.calls -= 1
      closeUnused()
    }
  }

  const getUrl = (host: string) => config.upstreams[host]?.url ?? toRegistryUrl(host)

  function find(host: string): Upstream {
    const known = named.get(host)
    if (known) return known
    const isHub = isDockerHub(getUrl(host))
    const online = createReopenedUpstream(host, {
      call: (ask) => call(host, ask),
      health() {
        const health = opened.get(host)?.online.health() ?? { state: 'ok', rateLimit: undefined }
        return isHub || health.rateLimit !== undefined ? { ...health, countsPulls: true } : health
      },
    })
    const upstream = createSwitchedUpstream(online, createOfflineUpstream(online), {
      isOffline: () => offline.isActive,
      onCall: () => (open(host).isUsed = true),
    })
    if (isNamed(host)) named.set(host, upstream)
    return upstream
  }

  async function probeHubQuota(): Promise<void> {
    const host = 'docker.io'
    if (offline.isActive || !isDockerHub(getUrl(host)) || isSet(env['MIRROR_NO_QUOTA_PROBE'])) return
    const { http } = open(host)
    // Bypass the record of failures: a laptop without a network has no failing upstream before somebody pulls.
    if (isQuotaOutdated(http.health().rateLimit, clock.wall())) await probeQuota(http, logger)
  }

  return {
    /** Tells whether upstreams are contacted. Change it with `setOffline`. */
    offline: offline as Pick<OfflineSwitch, 'isActive' | 'report'>,
    /** Pauses the requests to upstreams, or continues them. The return to online also asks for the quota in the background. */
    setOffline(isOffline: boolean): OfflineReport {
      const wasOffline = offline.isActive
      offline.set(isOffline)
      if (wasOffline && !isOffline) probeHubQuota().catch(onFailedProbe(logger))
      return offline.report()
    },
    /** Finds the upstream of a repository, and its name there; undefined for a registry that is not mirrored. */
    route: (repository: Repository): { readonly upstream: Upstream; readonly name: string } | undefined => {
      const probeImage = repository.name.startsWith(probeImagePrefix) && probeImages.find(repository.name)
      if (probeImage) {
        const host = repository.registry ?? config.defaultUpstream
        return { upstream: createProbeUpstream(host, probeImage), name: probeImage.repository }
      }
      const target = route(repository)
      return target && { upstream: find(target.host), name: target.name }
    },
    /** Returns whether the requests for this registry spend a pull quota of Docker Hub. */
    countsPulls: (host: string) => find(host).health().countsPulls === true,
    /** Iterates over the upstreams that were used since the start, or whose quota is known. */
    *all(): Iterable<Upstream> {
      for (const [host, { http, isUsed }] of opened)
        if (isUsed || http.health().rateLimit !== undefined) yield find(host)
    },
    /**
     * Asks Docker Hub for the quota if it is not known, so that the status shows it before the first pull. Does nothing while
     * offline, and where another server stands in for Docker Hub.
     */
    probeQuota: probeHubQuota,
    /** Ends every connection; requests under way fail. */
    async close(): Promise<void> {
      await Promise.all([...opened.values()].map(({ http }) => http.close()))
    },
  }
}

const onFailedProbe = (logger: Logger) => logFailure(logger, 'could not ask for the quota')

/** Calls `probeQuota` shortly after the start, and then every hour. Returns the function that ends this. */
export function probeQuotaRegularly(
  { probeQuota }: { readonly probeQuota: () => Promise<void> },
  logger: Logger,
): () => void {
  const stopFirst = runLater(firstProbeDelayMs, probeQuota, onFailedProbe(logger))
  const stopLater = runEvery(probeIntervalMs, probeQuota, onFailedProbe(logger))
  return () => {
    stopFirst()
    stopLater()
  }
}

/** Describes a repository of an upstream, as that upstream spells it. */
interface UpstreamRepository {
  readonly host: string
  readonly name: string
}

interface RoutingOptions {
  /** Holds the hosts in the `upstreams` section of the configuration. */
  readonly configured: { has(host: string): boolean }
  /** Names the upstream of requests that name no registry. */
  readonly defaultUpstream: string
}

/** Creates the function that finds the upstream of a request; it returns undefined for a registry that is not allowed. */
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
      // Google has a host per region; only a client that names the registry itself can reach them.
      (byNamespace && /^[a-z0-9-]+\.pkg\.dev$/.test(host))
    if (!allowed) return undefined
    return { host, name: host === 'docker.io' && !name.includes('/') ? `library/${name}` : name }
  }
}

/** Decides whether upstreams are contacted: as mirror.yaml says, until somebody decides otherwise for this process. */
export class OfflineSwitch {
  readonly #configured: boolean
  #decided: boolean | undefined

  constructor(configured: boolean) {
    this.#configured = configured
  }

  get isActive(): boolean {
    return this.#decided ?? this.#configured
  }

  /** Pauses the requests to upstreams, or continues them. Requests under way go on. */
  set(offline: boolean): void {
    this.#decided = offline
  }

  report(): OfflineReport {
    return { active: this.isActive, source: this.#decided === undefined ? 'config' : 'session' }
  }
}

/** Describes an upstream with connections. */
interface OpenUpstream {
  readonly http: HttpUpstream
  /** Calls `http` and records its failures. */
  readonly online: Upstream
  /** Is true if it was called for a client. */
  isUsed: boolean
  /** Counts the calls under way; the body of a blob may arrive after its call. */
  calls: number
}

interface ReopenedOptions {
  /** Opens the upstream, if it is not open, and calls it. */
  readonly call: <T>(ask: (upstream: Upstream) => Promise<T>) => Promise<T>
  readonly health: () => UpstreamHealth
}

/** Creates an upstream that each call finds open, so that a download may keep it across pauses. */
function createReopenedUpstream(host: string, { call, health }: ReopenedOptions): Upstream {
  return {
    host,
    identity: (access) => call((upstream) => upstream.identity(access)),
    resolve: (...args) => call((upstream) => upstream.resolve(...args)),
    manifest: (...args) => call((upstream) => upstream.manifest(...args)),
    statBlob: (...args) => call((upstream) => upstream.statBlob(...args)),
    blob: (...args) => call((upstream) => upstream.blob(...args)),
    tags: (...args) => call((upstream) => upstream.tags(...args)),
    referrers: (...args) => call((upstream) => upstream.referrers(...args)),
    health,
  }
}

interface SwitchOptions {
  readonly isOffline: () => boolean
  /** Is called with each call of the upstream. */
  readonly onCall: () => void
}

/**
 * Creates an upstream whose calls go to `offline` while the mirror is offline, and to `online` otherwise. Its quota stays known. The
 * rest of a blob comes from `online`, because its download has begun.
 */
function createSwitchedUpstream(online: Upstream, offline: Upstream, { isOffline, onCall }: SwitchOptions): Upstream {
  const choose = () => {
    onCall()
    return isOffline() ? offline : online
  }
  return {
    host: online.host,
    identity: (access) => online.identity(access),
    resolve: (...call) => choose().resolve(...call),
    manifest: (...call) => choose().manifest(...call),
    statBlob: (...call) => choose().statBlob(...call),
    blob: (name, digest, options) => (options.from > 0 ? online : choose()).blob(name, digest, options),
    tags: (...call) => choose().tags(...call),
    referrers: (...call) => choose().referrers(...call),
    health: () => online.health(),
  }
}

/** Creates an upstream that is never contacted (`cache.offline`): every call fails as if it were unreachable. */
function createOfflineUpstream(upstream: Pick<Upstream, 'host' | 'identity'>): Upstream {
  const refuse = (): Promise<never> =>
    Promise.reject(
      new UpstreamError(
        'unavailable',
        503,
        `It is not cached, and the mirror is offline: ${upstream.host} is not contacted.`,
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
