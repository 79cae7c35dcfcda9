import { createHash } from 'node:crypto'

/** Holds the parsed configuration: sizes in bytes, durations in ms, paths absolute. */
export interface Config {
  cache: CacheConfig
  registry: {
    enabled: boolean
    listen: ListenAddress[]
    deletes: boolean
    /** Decides the access that containers on Docker networks have to the registry. */
    networks: 'read' | 'write'
    auth: { htpasswd: string } | undefined
  }
  admin: { listen: ListenAddress[] }
  /** Holds the Docker networks whose containers can reach the mirror. */
  networks: string[]
  allowedHosts: string[]
  log: { level: 'debug' | 'info' | 'warn' | 'error' }
  /** Maps registry hosts, in lower case, to their settings. */
  upstreams: Record<string, UpstreamConfig>
  defaultUpstream: string
  /** Names PEM files. `ca`: the CA that clients must trust; undefined when `cert` is self-signed or its CA is trusted already. */
  tls: { cert: string; key: string; ca: string | undefined } | undefined
}

export interface CacheConfig {
  listen: ListenAddress[]
  /** Limits the bytes of the cache; 0 = no limit. */
  maxSize: number
  /** Limits the age in running time, ms; 0 = no limit. */
  maxAge: number
  minFree: number
  tagFreshness: number
  stale: 'on-error' | 'always' | 'never'
  offline: boolean
  verifyReads: 'auto' | 'always'
  shareCredentials: boolean
  prefetch: { layers: number; rangesPerBlob: number; rangeBytes: number; rangeMinSize: number }
  timeouts: { connect: number; headers: number; idle: number; revalidate: number }
}

export interface ListenAddress {
  /** Is an IP literal without brackets, or `localhost`. */
  host: string
  /** Is 0 for any free port. */
  port: number
}

export interface UpstreamConfig {
  /** Holds the base URL without a trailing slash and without `/v2`. */
  url: string
  /** Holds the path prefix of this registry's repositories in another cache: `/v2/<prefix>/<repository>`. */
  prefix?: string | undefined
  credentials: CredentialsConfig
  tokenHosts: string[]
  /** Names a PEM file. */
  ca: string | undefined
  /** Is undefined for the cache's setting. */
  tagFreshness: number | undefined
}

export type CredentialsConfig =
  | { from: 'docker-config' }
  | { from: 'anonymous' }
  | { from: 'password-file'; username: string; passwordFile: string }
  | { from: 'password-env'; username: string; passwordEnv: string }

const second = 1000
const MiB = 1024 ** 2
const GiB = 1024 ** 3

/** Returns the configuration of an empty mirror.yaml, a new object each time. */
export function defaultConfig(): Config {
  return {
    cache: {
      listen: [{ host: '127.0.0.1', port: 5055 }],
      maxSize: 20 * GiB,
      maxAge: 168 * 3600 * second,
      minFree: GiB,
      tagFreshness: 10 * second,
      stale: 'on-error',
      offline: false,
      verifyReads: 'auto',
      shareCredentials: false,
      prefetch: { layers: 6, rangesPerBlob: 4, rangeBytes: 32 * MiB, rangeMinSize: 128 * MiB },
      timeouts: { connect: 5 * second, headers: 10 * second, idle: 30 * second, revalidate: 3 * second },
    },
    registry: {
      enabled: true,
      listen: [{ host: '127.0.0.1', port: 5001 }],
      deletes: true,
      networks: 'read',
      auth: undefined,
    },
    admin: { listen: [{ host: '127.0.0.1', port: 5056 }] },
    networks: ['kind'],
    allowedHosts: [],
    log: { level: 'info' },
    upstreams: {},
    defaultUpstream: 'docker.io',
    tls: undefined,
  }
}

/** Hashes the value of each top-level key, so that a running mirror can publish which configuration it uses without revealing it. */
export function hashConfig(config: Config, dataDir: string): Record<string, string> {
  const parts = Object.entries({ ...config, data: dataDir })
  return Object.fromEntries(parts.map(([key, value]) => [key, hash(value)]))
}

/** Returns the top-level keys whose hashes differ, in the order of the configuration. */
export function listChangedParts(
  before: Readonly<Record<string, string>>,
  now: Readonly<Record<string, string>>,
): string[] {
  return Object.keys(now).filter((key) => before[key] !== now[key])
}

function hash(value: unknown): string {
  return createHash('sha256')
    .update(JSON.stringify(value, sortKeys) ?? '')
    .digest('hex')
    .slice(0, 16)
}

/** Sorts the keys of objects for JSON.stringify, because the order of keys in a file has no meaning. */
function sortKeys(_key: string, value: unknown): unknown {
  if (value === null || typeof value !== 'object' || Array.isArray(value)) return value
  return Object.fromEntries(Object.entries(value).toSorted(([a], [b]) => (a < b ? -1 : 1)))
}

/** Holds the content of a mirror.yaml as a plain object. */
interface ConfigDocument {
  readonly upstreams: Readonly<Record<string, object>>
  readonly [key: string]: unknown
}

/** Renders the complete configuration as a mirror.yaml that is valid in any folder. It refers to secrets, and never holds them. */
export function toConfigDocument(config: Config): ConfigDocument {
  const { cache, registry, admin, networks, allowedHosts, log, upstreams, defaultUpstream, tls } = config
  return {
    cache: {
      ...cache,
      listen: cache.listen.map(formatAddress),
      maxSize: formatSize(cache.maxSize),
      minFree: formatSize(cache.minFree),
      maxAge: formatMilliseconds(cache.maxAge),
      tagFreshness: formatMilliseconds(cache.tagFreshness),
      prefetch: {
        ...cache.prefetch,
        rangeBytes: formatSize(cache.prefetch.rangeBytes),
        rangeMinSize: formatSize(cache.prefetch.rangeMinSize),
      },
      timeouts: mapValues(cache.timeouts, formatMilliseconds),
    },
    registry: {
      enabled: registry.enabled,
      listen: registry.listen.map(formatAddress),
      deletes: registry.deletes,
      networks: registry.networks,
      ...(registry.auth && { auth: registry.auth }),
    },
    admin: { listen: admin.listen.map(formatAddress) },
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
    ...(tagFreshness !== undefined && { tagFreshness: formatMilliseconds(tagFreshness) }),
  }
}

function renderCredentials(credentials: CredentialsConfig): unknown {
  if (credentials.from === 'docker-config' || credentials.from === 'anonymous') return credentials.from
  const { from: _, ...named } = credentials
  return named
}

const formatAddress = ({ host, port }: ListenAddress) => `${host.includes(':') ? `[${host}]` : host}:${port}`
const formatSize = (size: number) => `${size}B`
const formatMilliseconds = (duration: number) => `${duration}ms`

function mapValues<T, U>(record: Readonly<Record<string, T>>, change: (value: T) => U): Record<string, U> {
  return Object.fromEntries(Object.entries(record).map(([key, value]) => [key, change(value)]))
}

/** Holds the keys that one source (a file, the environment) sets. */
export interface ConfigLayer {
  cache?: Partial<Omit<CacheConfig, 'prefetch' | 'timeouts'>> & {
    prefetch?: Partial<CacheConfig['prefetch']>
    timeouts?: Partial<CacheConfig['timeouts']>
  }
  registry?: Partial<Config['registry']>
  admin?: Partial<Config['admin']>
  networks?: string[]
  allowedHosts?: string[]
  log?: Partial<Config['log']>
  upstreams?: Record<string, UpstreamConfig>
  defaultUpstream?: string
  tls?: NonNullable<Config['tls']>
}

/** Returns the configuration with the layer's keys in place of its own. Lists and `upstreams` are replaced as a whole. */
export function mergeConfig(base: Config, layer: ConfigLayer): Config {
  return {
    ...base,
    ...layer,
    cache: {
      ...base.cache,
      ...layer.cache,
      prefetch: { ...base.cache.prefetch, ...layer.cache?.prefetch },
      timeouts: { ...base.cache.timeouts, ...layer.cache?.timeouts },
    },
    registry: { ...base.registry, ...layer.registry },
    admin: { ...base.admin, ...layer.admin },
    log: { ...base.log, ...layer.log },
  }
}
