import { isObject, parseObject } from '../lib/json.ts'
import { credentialOf, type Credential } from './credential.ts'

/** Docker Hub's name in Docker's config.json, and to credential helpers. */
export const hubServer = 'https://index.docker.io/v1/'

/** Holds credentials in the form of config.json's `auths`. */
export const authVariable = 'DOCKER_AUTH_CONFIG'

/** What other programs call it there. */
const hubNames = ['docker.io', 'index.docker.io', 'registry-1.docker.io']

/** The name under which Docker keeps a registry's credential. */
export function serverOf(host: string): string {
  return host === 'docker.io' ? hubServer : host
}

/** Docker reads the members of its files whatever their case; the keys of a map are taken as they are. */
export function member(object: Readonly<Record<string, unknown>>, name: string): unknown {
  if (Object.hasOwn(object, name)) return object[name]
  const other = Object.keys(object).find((key) => key.toLowerCase() === name.toLowerCase())
  return other === undefined ? undefined : object[other]
}

/**
 * A registry's entry in `auths`: under its name, else under an address of it. `auths` may have several of those: the one that is
 * nearest to the bare name counts. https://github.com/docker/cli/blob/master/cli/config/credentials/file_store.go
 */
export function findAuth(auths: Readonly<Record<string, unknown>>, host: string): unknown {
  const server = serverOf(host)
  if (Object.hasOwn(auths, server)) return auths[server]
  const names = host === 'docker.io' ? hubNames : [host]
  const found = Object.keys(auths).flatMap((key) => {
    const name = hostnameOf(key)
    const at = names.findIndex((each) => each.toLowerCase() === name.toLowerCase())
    const distance = at * 4 + (hasPath(key) ? 2 : 0) + (name === names[at] ? 0 : 1)
    return at === -1 ? [] : [{ key, distance }]
  })
  const [nearest] = found.toSorted((a, b) => a.distance - b.distance)
  return nearest && auths[nearest.key]
}

/** The host, with its port, of a key of `auths`: `https://registry.example:5000/v2/`, `registry.example/team`. */
export function hostnameOf(key: string): string {
  const [, scheme, authority = ''] = /^([a-z][a-z0-9+.-]*:\/\/)?([^/]*)/i.exec(key)!
  if (scheme === undefined) return authority
  const host = authority.replace(/[?#].*$/, '').replace(/^.*@/, '')
  const bare = /^\[([^\]]*)\]$/.exec(host)?.[1]
  if (bare !== undefined) return bare
  // An IPv6 address without brackets, whose last part is taken for a port.
  const loose = /^([^[]*:[^[]*):(\d+)$/.exec(host)
  return loose ? `[${loose[1]}]:${loose[2]}` : host
}

function hasPath(key: string): boolean {
  return /^\/+(?!v[12]\/*$)[^/]/.test(key.replace(/^[a-z][a-z0-9+.-]*:\/\//i, '').replace(/^[^/]*/, ''))
}

/** The credential in an entry of `auths`, if it holds one; `broken` for one that Docker refuses. */
export function credentialIn(entry: Readonly<Record<string, unknown>>): Credential | 'broken' | undefined {
  const [registryToken, identityToken, auth] = ['registrytoken', 'identitytoken', 'auth'].map((name) =>
    member(entry, name),
  )
  const pair = isText(auth) ? parsePair(auth) : [member(entry, 'username'), member(entry, 'password') ?? '']
  if (pair === undefined) return 'broken'
  if (isText(registryToken)) return { kind: 'registry-token', token: registryToken }
  if (isText(identityToken)) return { kind: 'identity-token', token: identityToken }
  const [username, password] = pair
  return isText(username) && typeof password === 'string' ? credentialOf(username, password) : undefined
}

/** `base64(user:password)`; the password may hold colons, and old versions of Docker padded it with NUL. */
function parsePair(auth: string): [string, string] | undefined {
  const pair = Buffer.from(auth, 'base64').toString('utf8')
  const colon = pair.indexOf(':')
  if (colon < 1) return undefined
  return [pair.slice(0, colon), pair.slice(colon + 1).replaceAll(/^\0+|\0+$/g, '')]
}

/**
 * The credentials in the variable DOCKER_AUTH_CONFIG, which go before all others (Docker 28.3). Undefined for a text that is
 * not `{"auths": {"<registry>": {"auth": "…"}}}` and nothing else: Docker goes on without it.
 */
export function parseAuthVariable(text: string): ReadonlyMap<string, Credential> | undefined {
  if (text.trim() === '') return new Map()
  const json = parseObject(text)
  if (!json || Object.keys(json).some((key) => key.toLowerCase() !== 'auths')) return undefined
  const auths = member(json, 'auths') ?? {}
  if (!isObject(auths)) return undefined
  const credentials = new Map<string, Credential>()
  for (const [server, entry] of Object.entries(auths)) {
    if (!isObject(entry) || Object.keys(entry).some((key) => key.toLowerCase() !== 'auth')) return undefined
    const auth = member(entry, 'auth')
    const pair = typeof auth === 'string' ? parsePair(auth) : undefined
    if (!pair) return undefined
    credentials.set(server, { kind: 'password', username: pair[0], password: pair[1] })
  }
  return credentials
}

const isText = (value: unknown): value is string => typeof value === 'string' && value !== ''
