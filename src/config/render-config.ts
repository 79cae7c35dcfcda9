import type { Config, CredentialsConfig, ListenAddress, UpstreamConfig } from './config.ts'

/** What mirror.yaml would say, as JSON does. */
export interface ConfigDocument {
  readonly upstreams: Readonly<Record<string, object>>
  readonly [key: string]: unknown
}

/** The whole configuration as a mirror.yaml that means the same wherever it lies; secrets are named there, never held. */
export function renderConfig(config: Config): ConfigDocument {
  const { cache, registry, admin, networks, allowedHosts, log, upstreams, defaultUpstream, tls } = config
  return {
    cache: {
      ...cache,
      listen: cache.listen.map(address),
      maxSize: bytes(cache.maxSize),
      minFree: bytes(cache.minFree),
      maxAge: milliseconds(cache.maxAge),
      tagFreshness: milliseconds(cache.tagFreshness),
      prefetch: {
        ...cache.prefetch,
        rangeBytes: bytes(cache.prefetch.rangeBytes),
        rangeMinSize: bytes(cache.prefetch.rangeMinSize),
      },
      timeouts: mapValues(cache.timeouts, milliseconds),
    },
    registry: {
      enabled: registry.enabled,
      listen: registry.listen.map(address),
      deletes: registry.deletes,
      networks: registry.networks,
      ...(registry.auth && { auth: registry.auth }),
    },
    admin: { listen: admin.listen.map(address) },
    networks,
    allowedHosts,
    log,
    upstreams: mapValues(upstreams, renderUpstream),
    defaultUpstream,
    ...(tls && { tls: { cert: tls.cert, key: tls.key, ...(tls.ca !== undefined && { ca: tls.ca }) } }),
  }
}

function renderUpstream({ url, prefix, credentials, tokenHosts, ca, tagFreshness }: UpstreamConfig): object {
  return {
    url,
    ...(prefix !== undefined && { prefix }),
    credentials: renderCredentials(credentials),
    tokenHosts,
    ...(ca !== undefined && { ca }),
    ...(tagFreshness !== undefined && { tagFreshness: milliseconds(tagFreshness) }),
  }
}

function renderCredentials(credentials: CredentialsConfig): unknown {
  if (credentials.from === 'docker-config' || credentials.from === 'anonymous') return credentials.from
  const { from: _, ...named } = credentials
  return named
}

const address = ({ host, port }: ListenAddress) => `${host.includes(':') ? `[${host}]` : host}:${port}`
const bytes = (size: number) => `${size}B`
const milliseconds = (duration: number) => `${duration}ms`

function mapValues<T, U>(record: Readonly<Record<string, T>>, change: (value: T) => U): Record<string, U> {
  return Object.fromEntries(Object.entries(record).map(([key, value]) => [key, change(value)]))
}
