import { readFileSync } from 'node:fs'
import { X509Certificate } from 'node:crypto'
import type { Config, UpstreamConfig } from '../config/config.ts'
import type { Clock } from '../lib/clock.ts'
import { exitCode, MirrorError } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { runCommand } from '../lib/run-command.ts'
import type { Repository } from '../oci/route.ts'
import { createHttpUpstream, type HttpUpstream } from '../upstream/http-upstream.ts'
import { createOfflineUpstream } from '../upstream/offline-upstream.ts'
import { createRouting, defaultUpstreamUrl } from '../upstream/routing.ts'
import type { Upstream } from '../upstream/upstream.ts'

/** Every upstream that may be asked, made when it is first asked. */
export interface UpstreamDirectory {
  route(repository: Repository): { readonly upstream: Upstream; readonly name: string } | undefined
  /** Those that were asked since the start. */
  all(): Iterable<Upstream>
  close(): Promise<void>
}

export interface UpstreamDirectoryOptions {
  readonly config: Config
  readonly env: Readonly<Record<string, string | undefined>>
  readonly homedir: string
  readonly clock: Clock
  readonly logger: Logger
}

/** Reads the certificate files at once, so that a bad one stops the start and not a pull. Throws MirrorError. */
export function createUpstreamDirectory({
  config,
  env,
  homedir,
  clock,
  logger,
}: UpstreamDirectoryOptions): UpstreamDirectory {
  const route = createRouting({
    configured: new Set(Object.keys(config.upstreams)),
    defaultUpstream: config.defaultUpstream,
  })
  const authorities = new Map(
    Object.entries(config.upstreams).map(([host, { ca }]) => [host, ca && readAuthority(host, ca)]),
  )
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
      url: settings.url ?? defaultUpstreamUrl(host),
      credentials: settings.credentials ?? { from: 'docker-config' },
      tokenHosts: settings.tokenHosts ?? [],
      ca: authorities.get(host),
      allowPrivate: host in config.upstreams,
      timeouts: config.cache.timeouts,
      env,
      homedir,
      clock,
      random: Math.random,
      logger,
      runCommand,
    })
    const upstream = config.cache.offline ? createOfflineUpstream(http) : http
    upstreams.set(host, { upstream, http })
    return upstream
  }

  return {
    route(repository) {
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

function readAuthority(host: string, path: string): string {
  try {
    const pem = readFileSync(path, 'utf8')
    void new X509Certificate(pem)
    return pem
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause)
    throw new MirrorError(`The certificate file ${path} (upstreams.${host}.ca) cannot be used: ${reason}`, {
      exit: exitCode.usage,
      hints: ['It must hold certificates in PEM form (-----BEGIN CERTIFICATE-----)'],
      cause,
    })
  }
}
