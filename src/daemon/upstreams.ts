import type { Config, UpstreamConfig } from '../config/config.ts'
import type { Slots } from '../lib/async.ts'
import type { Logger } from '../lib/logger.ts'
import { runCommand } from '../lib/process.ts'
import type { OwnTroubles } from '../lib/system-errors.ts'
import type { Clock } from '../lib/time.ts'
import { originOf } from '../oci/reference.ts'
import type { Repository } from '../oci/route.ts'
import { authVariable, dockerConfigPath, parseAuthVariable } from '../upstream/docker-credentials.ts'
import { noteFailures } from '../upstream/failures.ts'
import { createHttpUpstream, type HttpUpstream } from '../upstream/http-upstream.ts'
import type { Identify } from '../upstream/identity.ts'
import { type ProbeImages, createProbeUpstream } from '../upstream/probe-image.ts'
import { proxyWarnings, readProxies } from '../upstream/proxy.ts'
import { createOfflineUpstream, createRouting, type Upstream } from '../upstream/upstream.ts'
import { readAuthorities } from './start-errors.ts'

/** Every upstream that may be asked, made when it is first asked. */
export interface UpstreamDirectory {
  route(repository: Repository): { readonly upstream: Upstream; readonly name: string } | undefined
  /** Those that were asked since the start. */
  all(): Iterable<Upstream>
  close(): Promise<void>
}

interface UpstreamDirectoryOptions {
  readonly config: Config
  /** Served as if every registry had them. */
  readonly probeImages: ProbeImages
  readonly env: Readonly<Record<string, string | undefined>>
  readonly identify: Identify
  /** What upstreams see as the client. */
  readonly userAgent: string
  /** Requests under way, of all upstreams together. */
  readonly requests: Slots
  readonly clock: Clock
  readonly logger: Logger
  /** Hears of fetches that fail because of this process. */
  readonly ownTroubles: OwnTroubles
}

/** With fewer requests at a time, a connection is closed after each: idle ones would hold descriptors that others need. */
const leastToKeepAlive = 64

/** Reads the certificate files at once, so that a bad one stops the start and not a pull. Throws MirrorError. */
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
}: UpstreamDirectoryOptions): UpstreamDirectory {
  const route = createRouting({
    configured: new Set(Object.keys(config.upstreams)),
    defaultUpstream: config.defaultUpstream,
  })
  const authorities = readAuthorities(config.upstreams)
  const dockerConfig = dockerConfigPath(env)
  readProxies(env)
  if (parseAuthVariable(env[authVariable] ?? '') === undefined)
    logger.warn(
      {},
      `${authVariable} is not {"auths": {"<registry>": {"auth": "…"}}}, so it is ignored, as the docker command ignores it`,
    )
  for (const warning of proxyWarnings(env)) logger.warn({}, warning)
  const fetching = ownTroubles.watch('fetch')
  const upstreams = new Map<string, { upstream: Upstream; http: HttpUpstream }>()

  for (const [host, { url }] of Object.entries(config.upstreams)) {
    if (url.startsWith('http://'))
      logger.warn({ upstream: host, url }, 'this upstream is asked over plain http: anyone on the way can read along')
  }

  function open(host: string): Upstream {
    const known = upstreams.get(host)
    if (known) return known.upstream
    const settings: Partial<UpstreamConfig> = config.upstreams[host] ?? {}
    const http = createHttpUpstream({
      host,
      url: settings.url ?? originOf(host),
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
      requests,
      keepAlive: requests.limit >= leastToKeepAlive,
      clock,
      random: Math.random,
      logger,
      runCommand,
    })
    const upstream = config.cache.offline
      ? createOfflineUpstream(http)
      : noteFailures(http, () => clock.wall(), fetching)
    upstreams.set(host, { upstream, http })
    return upstream
  }

  return {
    route(repository) {
      const probeImage = probeImages.find(repository.name)
      if (probeImage) {
        const host = repository.registry ?? config.defaultUpstream
        return { upstream: createProbeUpstream(host, probeImage), name: probeImage.repository }
      }
      const place = route(repository)
      return place && { upstream: open(place.host), name: place.name }
    },
    *all() {
      for (const { upstream } of upstreams.values()) yield upstream
    },
    async close() {
      await Promise.all([...upstreams.values()].map(({ http }) => http.close()))
    },
  }
}
