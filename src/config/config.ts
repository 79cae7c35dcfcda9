/** What mirror.yaml says, parsed: sizes in bytes, durations in ms, paths absolute. */
export interface Config {
  cache: CacheConfig
  registry: {
    enabled: boolean
    listen: ListenAddress[]
    deletes: boolean
    /** What containers of Docker networks may do in the registry. */
    networks: 'read' | 'write'
    auth: { htpasswd: string } | undefined
  }
  admin: { listen: ListenAddress[] }
  /** Docker networks whose containers shall reach us. */
  networks: string[]
  allowedHosts: string[]
  log: { level: 'debug' | 'info' | 'warn' | 'error' }
  /** By registry host, lower case. */
  upstreams: Record<string, UpstreamConfig>
  defaultUpstream: string
  /** PEM file paths; `ca`: what clients are to trust, undefined where `cert` says it or they trust it anyway. */
  tls: { cert: string; key: string; ca: string | undefined } | undefined
}

export interface CacheConfig {
  listen: ListenAddress[]
  /** 0 = no limit. */
  maxSize: number
  /** Running time; 0 = keep. */
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
  /** An IP literal without brackets, or `localhost`. */
  host: string
  /** 0 = any free one. */
  port: number
}

export interface UpstreamConfig {
  /** Base URL without a trailing slash; `/v2/` comes after it. */
  url: string
  /** The path below which a company's cache keeps this registry's repositories: `/v2/<prefix>/<repository>`. */
  prefix?: string | undefined
  credentials: CredentialsConfig
  tokenHosts: string[]
  /** PEM file path. */
  ca: string | undefined
  /** undefined = the cache's. */
  tagFreshness: number | undefined
}

export type CredentialsConfig =
  | { from: 'docker-config' }
  | { from: 'anonymous' }
  | { from: 'password-file'; username: string; passwordFile: string }
  | { from: 'password-env'; username: string; passwordEnv: string }
