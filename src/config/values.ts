import { isIP, isIPv6 } from 'node:net'
import { findNearest } from '../lib/errors.ts'
import { parseDuration, parseSize } from '../lib/units.ts'
import { toCanonicalRegistry, isRepositoryName, parseRegistryHost } from '../oci/reference.ts'
import type { ListenAddress } from './config.ts'

/** Reads a size into bytes. */
export const size: ReadText<number> = withSchema(
  { type: ['string', 'number'], minimum: 0, pattern: String.raw`^\s*\d+(\.\d+)?\s*(B|[KMGT]|[KMGT]i?B)?\s*$` },
  (text, problem) => {
    const bytes = parseSize(text)
    return bytes !== undefined && Number.isSafeInteger(bytes)
      ? bytes
      : problem(`must be a size such as 20GiB or 500MB, not ${quote(text)}`)
  },
)

/** Reads a duration into milliseconds. */
export const duration: ReadText<number> = withSchema(
  {
    anyOf: [{ type: 'string', pattern: String.raw`^\s*(0|(\d+(\.\d+)?(ms|s|m|h|d))+)\s*$` }, { const: 0 }],
  },
  (text, problem) => {
    const ms = parseDuration(text)
    if (ms !== undefined && Number.isSafeInteger(ms)) return ms
    if (/^\d+(\.\d+)?$/.test(text)) return problem(`needs a unit: ${text}s, ${text}m or ${text}h`)
    return problem(`must be a duration such as 10s, 5m or 1h30m, not ${quote(text)}`)
  },
)

/** Reads a time-out into milliseconds: more than 0 and at most an hour. */
export const timeout: ReadText<number> = withSchema(
  { type: 'string', pattern: String.raw`^\s*(\d+(\.\d+)?(ms|s|m|h|d))+\s*$` },
  (text, problem, context) => {
    const ms = duration(text, problem, context)
    return ms === undefined || (ms > 0 && ms <= 3_600_000) ? ms : problem('must be more than 0 and at most 1h')
  },
)

export const boolean: ReadText<boolean> = withSchema({ type: 'boolean' }, (text, problem) => {
  if (text === 'true' || text === '1') return true
  if (text === 'false' || text === '0') return false
  return problem(`must be true or false, not ${quote(text)}`)
})

export function integer(min: number, max: number): ReadText<number> {
  return withSchema({ type: 'integer', minimum: min, maximum: max }, (text, problem) => {
    const value = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN
    return value >= min && value <= max ? value : problem(`must be a whole number from ${min} to ${max}`)
  })
}

export function oneOf<const T extends string>(...words: T[]): ReadText<T> {
  return withSchema({ enum: words }, (text, problem) => {
    const found = words.find((word) => word === text)
    if (found !== undefined) return found
    const meant = findNearest(text, words)
    const suggestion = meant === undefined ? '' : `; did you mean ${meant}?`
    return problem(`must be one of ${words.join(', ')}, not ${quote(text)}${suggestion}`)
  })
}

/** Reads any text that is not blank. */
export const text: ReadText<string> = withSchema({ type: ['string', 'number'], minLength: 1 }, (text, problem) =>
  text.trim() === '' ? problem('must not be empty') : text,
)

/** Reads the path of a file and makes it absolute. */
export const filePath: ReadText<string> = withSchema({ type: 'string', minLength: 1 }, (text, problem, context) =>
  text.trim() === '' ? problem('must name a file') : context.resolvePath(text),
)

/** Reads `127.0.0.1:5055`, `[::1]:5055` or `localhost:0`. Rejects a value without an address or a port instead of guessing it. */
export const listenAddress: ReadText<ListenAddress> = withSchema(
  {
    type: 'string',
    pattern: String.raw`^(\[[0-9A-Za-z:.%]+\]|[Ll][Oo][Cc][Aa][Ll][Hh][Oo][Ss][Tt]|\d{1,3}(\.\d{1,3}){3}):\d{1,5}$`,
  },
  (text, problem) => {
    const barePort = /^:?(\d+)$/.exec(text)?.[1]
    if (barePort !== undefined)
      return problem(
        `needs an address: 127.0.0.1:${barePort} for this machine only, 0.0.0.0:${barePort} for all interfaces`,
      )
    if (isIPv6(text)) return problem(`needs brackets and a port: [${text}]:5055`)
    const match = /^(?:\[([^\]]+)\]|([^:[\]]+))(?::(\d{1,5}))?$/.exec(text)
    const host = match?.[1] ?? match?.[2]?.toLowerCase()
    const isAddress = match?.[1] === undefined ? isIP(host ?? '') === 4 || host === 'localhost' : isIPv6(match[1])
    if (host === undefined || !isAddress)
      return problem(`must be an IP address and a port, such as 127.0.0.1:5055 or [::1]:5055, not ${quote(text)}`)
    if (match?.[3] === undefined) return problem(`needs a port: ${text}:5055`)
    const port = Number(match[3])
    return port <= 65_535 ? { host, port } : problem('has a port above 65535')
  },
)

const hostSchema: JsonSchema = {
  type: 'string',
  pattern: String.raw`^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*)(:\d{1,5})?$`,
}

/** Reads a registry's `host` or `host:port`. Each host name of Docker Hub becomes `docker.io`. */
export const registryHost: ReadText<string> = withSchema(hostSchema, (text, problem) => {
  const host = parseRegistryHost(text)
  if (host === undefined)
    return problem(`must be a registry's host name with an optional port, such as ghcr.io, not ${quote(text)}`)
  return toCanonicalRegistry(host)
})

/** Reads a `host` or `host:port`, in lower case. */
export const hostAndPort: ReadText<string> = withSchema(
  hostSchema,
  (text, problem) =>
    parseRegistryHost(text) ?? problem(`must be a host name with an optional port, not ${quote(text)}`),
)

/** Reads a host name or an address without a port, as a `Host` header may contain it. */
export const hostName: ReadText<string> = withSchema(
  { type: 'string', pattern: String.raw`^(\[?[0-9A-Fa-f:.]+\]?|[A-Za-z0-9][A-Za-z0-9._-]*)$` },
  (text, problem) => {
    const host = parseRegistryHost(isIPv6(text) ? `[${text}]` : text)
    return host !== undefined && !/:\d+$/.test(host)
      ? host
      : problem(`must be a host name without a port, not ${quote(text)}`)
  },
)

/** Reads the name of a Docker network. */
export const networkName: ReadText<string> = withSchema(
  { type: 'string', pattern: '^[A-Za-z0-9][A-Za-z0-9_.-]*$' },
  (text, problem) =>
    /^[A-Za-z0-9][A-Za-z0-9_.-]*$/.test(text)
      ? text
      : problem(`must be the name of a Docker network, not ${quote(text)}`),
)

/** Reads the name of an environment variable. */
export const variableName: ReadText<string> = withSchema(
  { type: 'string', pattern: '^[A-Za-z_][A-Za-z0-9_]*$' },
  (text, problem) =>
    /^[A-Za-z_][A-Za-z0-9_]*$/.test(text) ? text : problem('must be the name of an environment variable'),
)

/** Reads the base URL of a registry, and removes trailing slashes. */
export const baseUrl: ReadText<string> = withSchema(
  { type: 'string', pattern: '^[Hh][Tt][Tt][Pp][Ss]?://(?!.*/v2(/|$))[^/?#@]+(/[^?#]*)?$' },
  (text, problem) => {
    const url = URL.canParse(text) ? new URL(text) : undefined
    if (url === undefined || (url.protocol !== 'https:' && url.protocol !== 'http:'))
      return problem('must be a URL that starts with https:// or http://')
    // Do not repeat the URL in the problem, because it may hold a secret.
    if (url.username !== '' || url.password !== '')
      return problem('must not contain a user name or password; use the key credentials')
    if (text.includes('?') || text.includes('#')) return problem('must not have a query or a fragment')
    const found = /^(.*?)\/v2(?:\/+(.*?))?\/*$/.exec(url.pathname)
    if (found) {
      const [, base = '', prefix = ''] = found
      const suggestion = prefix === '' ? '' : `; write url: ${url.origin}${base} and prefix: ${prefix}`
      return problem(`must end before /v2, which is added${suggestion}`)
    }
    return `${url.origin}${url.pathname.replace(/\/+$/, '')}`
  },
)

/** Reads the path prefix of an upstream's repositories: `hub`, `group/project`. */
export const repositoryPrefix: ReadText<string> = withSchema(
  {
    type: 'string',
    pattern: '^[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$',
  },
  (text, problem) => {
    if (text.includes('://')) return problem('must be a path only; the host belongs to url')
    const bare = text.replaceAll(/^\/+|\/+$/g, '').replace(/^v2\/+/, '')
    if (!isRepositoryName(bare))
      return problem(`must be a repository path in lower case, such as hub or group/project, not ${quote(text)}`)
    return bare === text ? bare : problem(`must be ${bare}: without /v2/, and without a slash at either end`)
  },
)

function quote(text: string): string {
  return JSON.stringify(text.length > 60 ? `${text.slice(0, 60)}…` : text)
}

/** Holds a tree of plain values with their positions, from a file or from variables. */
export type ConfigNode =
  | { readonly kind: 'absent'; readonly position: SourcePosition }
  | { readonly kind: 'scalar'; readonly position: SourcePosition; readonly text: string }
  | { readonly kind: 'list'; readonly position: SourcePosition; readonly items: readonly ConfigNode[] }
  | { readonly kind: 'map'; readonly position: SourcePosition; readonly entries: readonly ConfigEntry[] }

export interface ConfigEntry {
  readonly key: string
  readonly keyPosition: SourcePosition
  readonly value: ConfigNode
}

/** Locates a value: by a line and a column (from 1) of a file, or by an environment variable. */
export interface SourcePosition {
  readonly source: string
  readonly line?: number
  readonly column?: number
}

/** Describes a problem of a configuration. */
export interface ConfigProblem {
  readonly position: SourcePosition
  /** Names the key: `cache.maxSize`, `upstreams["ghcr.io"].url`; empty for the whole configuration. */
  readonly path: string
  readonly message: string
}

/** Formats a problem: `mirror.yaml:3:5 cache.maxSize: must be …`, or `MIRROR_CACHE_MAX_SIZE: must be …`. */
export function formatProblem({ position, path, message }: ConfigProblem): string {
  if (position.line === undefined) return `${position.source}: ${message}`
  return `${position.source}:${position.line}:${position.column}${path === '' ? '' : ` ${path}`}: ${message}`
}

/** Holds the context of reading one source. */
export interface ReadContext {
  readonly problems: ConfigProblem[]
  /** Makes a path from this source absolute. */
  resolvePath(path: string): string
}

/** Reads a value, or reports what it must be: `problem` takes the rest of the sentence `cache.maxSize: …`. */
export interface ReadText<T> {
  (text: string, problem: (message: string) => undefined, context: ReadContext): T | undefined
  /** Describes the value for editors. It may accept more than the function, which has the last word. */
  readonly schema: JsonSchema
}

/** Holds the part of JSON Schema (draft 7) that describes mirror.yaml. */
export interface JsonSchema {
  readonly $schema?: string
  readonly $comment?: string
  readonly title?: string
  readonly description?: string
  readonly default?: unknown
  readonly type?: string | readonly string[]
  readonly enum?: readonly unknown[]
  readonly const?: unknown
  readonly pattern?: string
  readonly minLength?: number
  readonly minimum?: number
  readonly maximum?: number
  readonly items?: JsonSchema
  readonly minItems?: number
  readonly properties?: Readonly<Record<string, JsonSchema>>
  readonly additionalProperties?: boolean | JsonSchema
  readonly propertyNames?: JsonSchema
  readonly required?: readonly string[]
  readonly anyOf?: readonly JsonSchema[]
  readonly oneOf?: readonly JsonSchema[]
}

/** Adds the schema to a function that reads a value. */
function withSchema<T>(
  schema: JsonSchema,
  read: (text: string, problem: (message: string) => undefined, context: ReadContext) => T | undefined,
): ReadText<T> {
  return Object.assign(read, { schema })
}
