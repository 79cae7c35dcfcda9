import { originOf } from '../oci/reference.ts'
import type { CacheConfig, Config, CredentialsConfig, UpstreamConfig } from './config.ts'
import { list, record, scalar, section, type Field } from './schema.ts'
import * as read from './values.ts'

/** What one source (a file, the environment) says: only the keys that it names. */
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

const listen = list(read.listenAddress, { atLeast: 1 })

/** Every key there is, and how it is read: the one table behind mirror.yaml and the `MIRROR_*` variables. */
export const settings: Field<ConfigLayer> = section<ConfigLayer>({
  cache: section<NonNullable<ConfigLayer['cache']>>({
    listen,
    maxSize: scalar(read.size),
    maxAge: scalar(read.duration),
    minFree: scalar(read.size),
    tagFreshness: scalar(read.duration),
    stale: scalar(read.oneOf('on-error', 'always', 'never')),
    offline: scalar(read.boolean),
    verifyReads: scalar(read.oneOf('auto', 'always')),
    shareCredentials: scalar(read.boolean),
    prefetch: section<Partial<CacheConfig['prefetch']>>({
      layers: scalar(read.integer(0, 64)),
      rangesPerBlob: scalar(read.integer(1, 32)),
      rangeBytes: scalar(read.size),
      rangeMinSize: scalar(read.size),
    }),
    timeouts: section<Partial<CacheConfig['timeouts']>>({
      connect: scalar(read.timeout),
      headers: scalar(read.timeout),
      idle: scalar(read.timeout),
      revalidate: scalar(read.timeout),
    }),
  }),
  registry: section<Partial<Config['registry']>>({
    enabled: scalar(read.boolean),
    listen,
    deletes: scalar(read.boolean),
    networks: scalar(read.oneOf('read', 'write')),
    auth: section<{ htpasswd?: string }, { htpasswd: string }>(
      { htpasswd: scalar(read.filePath) },
      ({ htpasswd }, problem) => (htpasswd === undefined ? problem('needs the key htpasswd') : { htpasswd }),
    ),
  }),
  admin: section<Partial<Config['admin']>>({ listen }),
  networks: list(read.networkName),
  allowedHosts: list(read.hostName),
  log: section<Partial<Config['log']>>({ level: scalar(read.oneOf('debug', 'info', 'warn', 'error')) }),
  upstreams: record(read.registryHost, upstream),
  defaultUpstream: scalar(read.registryHost),
  tls: section<{ cert?: string; key?: string; ca?: string }, NonNullable<Config['tls']>>(
    { cert: scalar(read.filePath), key: scalar(read.filePath), ca: scalar(read.filePath) },
    ({ cert, key, ca }, problem) =>
      cert === undefined || key === undefined ? problem('needs both cert and key') : { cert, key, ca },
  ),
})

/** What the flags of `mirror up` say; each is a variable too (`MIRROR_CACHE_PORT`), so that the server it starts reads the same. */
export interface FlagLayer {
  cachePort?: number
  registryPort?: number
  adminPort?: number
  noRegistry?: boolean
  /** Docker networks besides those of `networks`. */
  network?: string[]
}

const port = scalar(read.integer(0, 65_535))

export const flagSettings: Field<FlagLayer> = section<FlagLayer>({
  cachePort: port,
  registryPort: port,
  adminPort: port,
  noRegistry: scalar(read.boolean),
  network: list(read.networkName),
})

function upstream(host: string): Field<UpstreamConfig> {
  return section<Partial<UpstreamConfig>, UpstreamConfig>(
    {
      url: scalar(read.baseUrl),
      prefix: scalar(read.repositoryPrefix),
      credentials: credentials(),
      tokenHosts: list(read.hostAndPort),
      ca: scalar(read.filePath),
      tagFreshness: scalar(read.duration),
    },
    (given) => ({
      url: given.url ?? originOf(host),
      prefix: given.prefix,
      credentials: given.credentials ?? { from: 'docker-config' },
      tokenHosts: given.tokenHosts ?? [],
      ca: given.ca,
      tagFreshness: given.tagFreshness,
    }),
  )
}

interface CredentialKeys {
  username?: string
  passwordFile?: string
  passwordEnv?: string
}

function credentials(): Field<CredentialsConfig> {
  const word = scalar(read.oneOf('docker-config', 'anonymous'))
  const keys = section<CredentialKeys, CredentialsConfig>(
    {
      username: scalar(read.text),
      passwordFile: scalar(read.filePath),
      passwordEnv: scalar(read.variableName),
    },
    ({ username, passwordFile, passwordEnv }, problem) => {
      if (username === undefined) return problem('needs the key username')
      if (passwordFile !== undefined && passwordEnv !== undefined)
        return problem('must have passwordFile or passwordEnv, not both')
      if (passwordFile !== undefined) return { from: 'password-file', username, passwordFile }
      if (passwordEnv !== undefined) return { from: 'password-env', username, passwordEnv }
      return problem('needs the key passwordFile or passwordEnv; the password itself does not belong here')
    },
  )
  return {
    read(node, path, context) {
      if (node.kind === 'map') return keys.read(node, path, context)
      const from = word.read(node, path, context)
      return from === undefined ? undefined : { from }
    },
  }
}
