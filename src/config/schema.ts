import { findNearest } from '../lib/errors.ts'
import { toRegistryUrl } from '../oci/reference.ts'
import type { CacheConfig, Config, ConfigLayer, CredentialsConfig, UpstreamConfig } from './config.ts'
import * as read from './values.ts'
import type { ConfigEntry, ConfigNode, JsonSchema, ReadContext, ReadText, SourcePosition } from './values.ts'

export type { JsonSchema }

/** Reads one key of the configuration. The value is undefined when the key is absent, or invalid, which `context` records. */
export interface Field<T> {
  read(node: ConfigNode, path: string, context: ReadContext): T | undefined
  /**
   * Tells the form of the value in an environment variable: plain, or separated by commas. Undefined when no variable can hold it.
   */
  readonly variable?: 'scalar' | 'list'
  /** Describes the value for editors; see `createConfigSchema`. */
  readonly schema: JsonSchema
  /** Holds the keys of a section. */
  readonly fields?: Readonly<Record<string, Field<unknown>>>
}

function scalar<T>(readText: ReadText<T>): Field<T> {
  return {
    variable: 'scalar',
    schema: orNull(readText.schema),
    read(node, path, context) {
      if (node.kind === 'absent') return undefined
      const problem = createReporter(context, node.position, path)
      if (node.kind !== 'scalar') return problem(`must be a single value, not a ${node.kind}`)
      return readText(node.text, problem, context)
    },
  }
}

/** Reads a list of values. A single value counts as a list of one. */
function list<T>(readText: ReadText<T>, { minItems = 0 } = {}): Field<T[]> {
  const item = scalar(readText)
  return {
    variable: 'list',
    schema: { anyOf: [{ type: 'array', items: readText.schema, minItems }, readText.schema, { type: 'null' }] },
    read(node, path, context) {
      if (node.kind === 'absent') return undefined
      if (node.kind === 'map') return createReporter(context, node.position, path)('must be a list')
      const items = node.kind === 'list' ? node.items : [node]
      if (items.length < minItems) return createReporter(context, node.position, path)('must name at least one')
      return items.flatMap((value, index) => item.read(value, `${path}[${index}]`, context) ?? [])
    },
  }
}

/** Allows a key without a value, which counts as absent. */
function orNull(schema: JsonSchema): JsonSchema {
  const { enum: words, ...rest } = schema
  return words ? { ...rest, enum: [...words, null] } : { anyOf: [schema, { type: 'null' }] }
}

/** Reads a map with known keys. `complete` builds the value from them, or reports missing keys. */
function section<T extends object, U = T>(
  fields: { readonly [K in keyof Required<T>]: Field<NonNullable<T[K]>> },
  complete?: (given: T, problem: (message: string) => undefined) => U | undefined,
  required: Pick<JsonSchema, 'required' | 'oneOf'> = {},
): Field<U> {
  const entries = Object.entries<Field<unknown>>(fields)
  return {
    fields,
    schema: {
      type: ['object', 'null'],
      properties: Object.fromEntries(entries.map(([key, field]) => [key, field.schema])),
      additionalProperties: false,
      ...required,
    },
    read(node, path, context) {
      if (node.kind === 'absent') return undefined
      if (node.kind !== 'map') return createReporter(context, node.position, path)('must be a map of keys and values')
      const given: Partial<T> = {}
      for (const [key, entry] of collectUniqueEntries(node.entries, path, context)) {
        if (!Object.hasOwn(fields, key)) {
          context.problems.push({
            position: entry.keyPosition,
            path: joinPath(path, key),
            message: describeUnknownKey(key, Object.keys(fields)),
          })
          continue
        }
        const name = key as keyof Required<T>
        const value = fields[name].read(entry.value, joinPath(path, key), context)
        if (value !== undefined) given[name] = value
      }
      const hasInnerProblems = context.problems.some((problem) => problem.path.startsWith(`${path}.`))
      if (complete === undefined) return given as unknown as U
      return hasInnerProblems ? undefined : complete(given as T, createReporter(context, node.position, path))
    },
  }
}

/** Reads a map with arbitrary keys. `readKey` may map different spellings to one key. */
function record<T>(readKey: ReadText<string>, readValue: (key: string) => Field<T>): Field<Record<string, T>> {
  return {
    schema: { type: ['object', 'null'], propertyNames: readKey.schema, additionalProperties: readValue('').schema },
    read(node, path, context) {
      if (node.kind === 'absent') return undefined
      if (node.kind !== 'map') return createReporter(context, node.position, path)('must be a map of keys and values')
      const values = new Map<string, T>()
      const seen = new Map<string, string>()
      for (const [writtenKey, entry] of collectUniqueEntries(node.entries, path, context)) {
        const entryPath = joinPath(path, writtenKey)
        const problem = createReporter(context, entry.keyPosition, entryPath)
        const key = readKey(writtenKey, problem, context)
        if (key === undefined) continue
        const earlier = seen.get(key)
        if (earlier !== undefined) problem(`means the same as ${earlier} above`)
        seen.set(key, writtenKey)
        // Treat an entry without a value (`registry.corp.example:`) as an empty map.
        const value: ConfigNode =
          entry.value.kind === 'absent' ? { kind: 'map', position: entry.value.position, entries: [] } : entry.value
        const read = readValue(key).read(value, entryPath, context)
        if (read !== undefined) values.set(key, read)
      }
      return Object.fromEntries(values)
    },
  }
}

/** Returns the entries by key, and reports repeated keys. */
function collectUniqueEntries(
  entries: readonly ConfigEntry[],
  path: string,
  context: ReadContext,
): Map<string, ConfigEntry> {
  const unique = new Map<string, ConfigEntry>()
  for (const entry of entries) {
    const earlier = unique.get(entry.key)
    if (earlier === undefined) unique.set(entry.key, entry)
    else
      createReporter(
        context,
        entry.keyPosition,
        joinPath(path, entry.key),
      )(`is already given in line ${earlier.keyPosition.line}`)
  }
  return unique
}

/** Suggests the nearest key of the section, or the path of the same key in another section. */
function describeUnknownKey(key: string, known: readonly string[]): string {
  const suggestion = findNearest(key, known) ?? findElsewhere(key)
  return suggestion === undefined
    ? `is not a known key; here there are ${known.join(', ')}`
    : `is not a known key; did you mean ${suggestion}?`
}

const getLastKey = (path: string) => path.slice(path.lastIndexOf('.') + 1)

/** Finds the path of the only setting elsewhere whose last key is this one, up to a mistyped character: `cache.maxSize`. */
function findElsewhere(key: string): string | undefined {
  const paths = listPaths(settings)
  const last = findNearest(key, [...new Set(paths.map(getLastKey))])
  // Only a likely meaning helps here: the names of all sections are many.
  const isLikely = last !== undefined && (last.toLowerCase() === key.toLowerCase() || key.length >= 5)
  const [only, ...others] = isLikely ? paths.filter((path) => getLastKey(path) === last) : []
  return others.length === 0 ? only : undefined
}

/** Lists the paths of all keys: `cache`, `cache.maxSize` … */
function listPaths({ fields = {} }: Field<unknown>, prefix = ''): string[] {
  return Object.entries(fields).flatMap(([key, field]) => [`${prefix}${key}`, ...listPaths(field, `${prefix}${key}.`)])
}

/** Joins a path and a key, and quotes a key that is not a plain word: `upstreams["ghcr.io"]`. */
function joinPath(path: string, key: string): string {
  if (!/^[A-Za-z_][A-Za-z0-9_-]*$/.test(key)) return `${path}[${JSON.stringify(key)}]`
  return path === '' ? key : `${path}.${key}`
}

function createReporter(context: ReadContext, position: SourcePosition, path: string) {
  return (message: string): undefined => {
    context.problems.push({ position, path, message })
    return undefined
  }
}

const listenAddresses = list(read.listenAddress, { minItems: 1 })

/** Lists all keys and reads them, from mirror.yaml and from the `MIRROR_*` variables. */
export const settings: Field<ConfigLayer> = section<ConfigLayer>({
  cache: section<NonNullable<ConfigLayer['cache']>>({
    listen: listenAddresses,
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
    listen: listenAddresses,
    deletes: scalar(read.boolean),
    networks: scalar(read.oneOf('read', 'write')),
    auth: section<{ htpasswd?: string }, { htpasswd: string }>(
      { htpasswd: scalar(read.filePath) },
      ({ htpasswd }, problem) => (htpasswd === undefined ? problem('needs the key htpasswd') : { htpasswd }),
      { required: ['htpasswd'] },
    ),
  }),
  admin: section<Partial<Config['admin']>>({ listen: listenAddresses }),
  networks: list(read.networkName),
  allowedHosts: list(read.hostName),
  log: section<Partial<Config['log']>>({ level: scalar(read.oneOf('debug', 'info', 'warn', 'error')) }),
  upstreams: record(read.registryHost, createUpstreamField),
  defaultUpstream: scalar(read.registryHost),
  tls: section<{ cert?: string; key?: string; ca?: string }, NonNullable<Config['tls']>>(
    { cert: scalar(read.filePath), key: scalar(read.filePath), ca: scalar(read.filePath) },
    ({ cert, key, ca }, problem) =>
      cert === undefined || key === undefined ? problem('needs both cert and key') : { cert, key, ca },
    { required: ['cert', 'key'] },
  ),
})

/** Holds the flags of `mirror up`. Each is a variable too (`MIRROR_CACHE_PORT`), through which the server process gets it. */
export interface FlagLayer {
  cachePort?: number
  registryPort?: number
  adminPort?: number
  noRegistry?: boolean
  /** Lists Docker networks in addition to those of `networks`. */
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

function createUpstreamField(host: string): Field<UpstreamConfig> {
  return section<Partial<UpstreamConfig>, UpstreamConfig>(
    {
      url: scalar(read.baseUrl),
      prefix: scalar(read.repositoryPrefix),
      credentials: createCredentialsField(),
      tokenHosts: list(read.hostAndPort),
      ca: scalar(read.filePath),
      tagFreshness: scalar(read.duration),
    },
    (given) => ({
      url: given.url ?? toRegistryUrl(host),
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

function createCredentialsField(): Field<CredentialsConfig> {
  const keyword = scalar(read.oneOf('docker-config', 'anonymous'))
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
    { required: ['username'], oneOf: [{ required: ['passwordFile'] }, { required: ['passwordEnv'] }] },
  )
  return {
    schema: { anyOf: [keyword.schema, keys.schema] },
    read(node, path, context) {
      if (node.kind === 'map') return keys.read(node, path, context)
      const from = keyword.read(node, path, context)
      return from === undefined ? undefined : { from }
    },
  }
}
