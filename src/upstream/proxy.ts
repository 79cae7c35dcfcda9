import { BlockList, isIP, type Socket } from 'node:net'
import type { buildConnector } from 'undici'
import { exitCode, MirrorError } from '../lib/errors.ts'
import { type AddressGuard, classifyAddress, getLiteralAddress } from './trust.ts'

const schemes = new Map([
  ['http', { protocol: 'http', resolvesNames: true, port: 80 }],
  ['https', { protocol: 'https', resolvesNames: true, port: 443 }],
  ['socks', { protocol: 'socks5', resolvesNames: false, port: 1080 }],
  ['socks4', { protocol: 'socks4', resolvesNames: false, port: 1080 }],
  ['socks4a', { protocol: 'socks4', resolvesNames: true, port: 1080 }],
  ['socks5', { protocol: 'socks5', resolvesNames: false, port: 1080 }],
  ['socks5h', { protocol: 'socks5', resolvesNames: true, port: 1080 }],
] as const)

/** Maps a SOCKS failure to the error code of a direct connection. */
const socksErrorCodes: readonly [RegExp, string][] = [
  [/timed out/i, 'UND_ERR_CONNECT_TIMEOUT'],
  [/\b(E[A-Z]{4,})\b/, ''],
  [/ConnectionRefused/i, 'ECONNREFUSED'],
  [/NetworkUnreachable/i, 'ENETUNREACH'],
  [/HostUnreachable|TTLExpired/i, 'EHOSTUNREACH'],
  [/auth/i, 'the proxy refused the user name and password'],
]

/** Describes a proxy that requests go through. */
export interface Proxy {
  /** Holds the URL without user name and password: `http://proxy.corp:3128`. */
  readonly name: string
  readonly protocol: 'http' | 'https' | 'socks4' | 'socks5'
  /** Holds the hostname or address, without brackets. */
  readonly host: string
  readonly port: number
  /** Is true if the proxy resolves names; always true with HTTP. */
  readonly resolvesNames: boolean
  readonly credential: { readonly username: string; readonly password: string } | undefined
  /** Is true if the proxy runs on this machine. */
  readonly isLocal: boolean
}

type Environment = Readonly<Record<string, string | undefined>>

/** Lists the environment variables that configure proxies. */
export const proxyVariables: readonly string[] = ['HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY', 'NO_PROXY'].flatMap(
  (name) => [name, name.toLowerCase()],
)

/** Holds the proxies in the environment. */
export type Proxies = ReturnType<typeof readProxies>

/**
 * Reads the proxies as curl does: `http_proxy` (in lower case only, because a web server sets `HTTP_PROXY` from a request's header),
 * `https_proxy` or `HTTPS_PROXY`, otherwise `all_proxy` or `ALL_PROXY`, except for hosts in `no_proxy` or `NO_PROXY`. Throws a
 * MirrorError for a text that is not a proxy's URL. https://curl.se/docs/manpage.html#ENVIRONMENT
 */
export function readProxies(env: Environment) {
  const readAllProxy = () => readProxy(env, ['all_proxy', 'ALL_PROXY'])
  const http = readProxy(env, ['http_proxy']) ?? readAllProxy()
  const https = readProxy(env, ['https_proxy', 'HTTPS_PROXY']) ?? readAllProxy()
  const isExcluded = parseNoProxy(env['no_proxy'] || env['NO_PROXY'] || '')
  const all: ReadonlyMap<string, Proxy> = new Map(
    [http, https].flatMap((found) => (found ? [[found.variable, found.proxy]] : [])),
  )
  return {
    /** Returns the proxy for a URL; undefined for a direct connection. */
    find(url: URL): Proxy | undefined {
      const found = url.protocol === 'https:' ? https : http
      if (!found || isExcluded(url)) return undefined
      // Connects directly to loopback, because a proxy on another machine would reach its own loopback.
      return isLoopback(url) && !found.proxy.isLocal ? undefined : found.proxy
    },
    /** Lists every proxy, by the variable that names it. */
    all,
  }
}

/** Warns about proxies that are set but not used. */
export function getProxyWarnings(env: Environment): string[] {
  if (!env['HTTP_PROXY'] || env['http_proxy'] || env['all_proxy'] || env['ALL_PROXY']) return []
  const also = env['https_proxy'] || env['HTTPS_PROXY'] ? '' : ' (and https_proxy, for https)'
  return [`HTTP_PROXY in upper case is not used, as in curl: set http_proxy${also}`]
}

function readProxy(env: Environment, names: readonly string[]): { variable: string; proxy: Proxy } | undefined {
  // Treats an empty variable as unset.
  const variable = names.find((name) => env[name]?.trim())
  return variable === undefined ? undefined : { variable, proxy: parseProxy(env[variable]!.trim(), variable) }
}

function parseProxy(text: string, variable: string): Proxy {
  const written = text.includes('://') ? text : `http://${text}`
  const url = URL.canParse(written) ? new URL(written) : undefined
  const name = url?.protocol.slice(0, -1) as Parameters<typeof schemes.get>[0] | undefined
  const scheme = name && schemes.get(name)
  const credential = url && parseProxyCredential(url)
  if (!url || !scheme || !credential || url.hostname === '') throw createInvalidProxyError(variable)
  const port = url.port === '' ? scheme.port : Number(url.port)
  return {
    name: `${name}://${url.hostname}:${port}`,
    protocol: scheme.protocol,
    host: url.hostname.replace(/^\[(.*)\]$/, '$1'),
    port,
    resolvesNames: scheme.resolvesNames,
    credential: url.username === '' && url.password === '' ? undefined : credential,
    isLocal: isLoopback(url),
  }
}

/** Decodes the credential in a proxy's URL; undefined for wrong percent-encoding. */
function parseProxyCredential({ username, password }: URL): { username: string; password: string } | undefined {
  try {
    return { username: decodeURIComponent(username), password: decodeURIComponent(password) }
  } catch (error) {
    if (error instanceof URIError) return undefined
    throw error
  }
}

/** Creates the error without the variable's value, which may contain a password. */
function createInvalidProxyError(variable: string): MirrorError {
  return new MirrorError(`The proxy in ${variable} is not the URL of an HTTP or SOCKS proxy.`, {
    exit: exitCode.usage,
    hints: [`Set ${variable} to something like http://proxy.example:3128 or socks5h://proxy.example:1080`],
  })
}

/**
 * Parses a list of hosts to connect to directly, separated by commas or spaces: names (each includes its subdomains, with or without a
 * leading dot or `*.`), addresses and CIDR blocks, each with or without a port; `*` for all. These are curl's rules, plus ports.
 */
function parseNoProxy(text: string): (url: URL) => boolean {
  const entries = text
    .split(/[\s,]+/)
    .flatMap((entry) => (entry === '' ? [] : [parseNoProxyEntry(entry.toLowerCase())]))
  return (url) => {
    const host = { name: getHostname(url), port: url.port || (url.protocol === 'https:' ? '443' : '80') }
    return entries.some((matches) => matches(host))
  }
}

type HostMatcher = (host: { readonly name: string; readonly port: string }) => boolean

function parseNoProxyEntry(entry: string): HostMatcher {
  if (entry === '*') return () => true
  const [, bracketed, plain = '', port] = /^(?:\[([^\]]*)\]|(.*?))(?::(\d+))?$/.exec(entry) ?? []
  // Two or more colons mark an IPv6 address, whose last group is not a port.
  const isBare = bracketed === undefined && /:.*:/.test(entry)
  const matches = isBare ? createNameMatcher(entry) : createNameMatcher(bracketed ?? plain)
  return (host) => (isBare || port === undefined || port === host.port) && matches(host)
}

function createNameMatcher(name: string): HostMatcher {
  const [address = '', bits] = name.replaceAll(/[[\]]/g, '').split('/')
  const family = isIP(address)
  if (family !== 0) return createBlockMatcher(address, family, bits)
  const domain = name.replace(/^\*?\./, '').replace(/\.$/, '')
  if (domain === '') return () => false
  return (host) => host.name === domain || (isIP(host.name) === 0 && host.name.endsWith(`.${domain}`))
}

function createBlockMatcher(address: string, family: number, bits: string | undefined): HostMatcher {
  const maxBits = family === 4 ? 32 : 128
  const prefix = bits === undefined ? maxBits : /^\d{1,3}$/.test(bits) ? Number(bits) : Number.NaN
  if (!(prefix <= maxBits)) return () => false
  const block = new BlockList()
  block.addSubnet(address, prefix, family === 4 ? 'ipv4' : 'ipv6')
  return ({ name }) => isIP(name) !== 0 && block.check(name, isIP(name) === 4 ? 'ipv4' : 'ipv6')
}

function getHostname(url: URL): string {
  return getLiteralAddress(url) ?? url.hostname.toLowerCase().replace(/\.$/, '')
}

function isLoopback(url: URL): boolean {
  const address = getLiteralAddress(url)
  if (address !== undefined) return classifyAddress(address) === 'loopback'
  return /(?:^|\.)localhost$/.test(getHostname(url))
}

interface SocksOptions {
  /** Limits the time for the proxy to connect, ms. */
  readonly timeout: number
  /** Resolves names for proxies that do not. */
  readonly guard: AddressGuard
  /** Adds TLS to the connection, for https. */
  readonly secure: buildConnector.connector
}

/** Loads the SOCKS client. It is CommonJS, so its members belong to the default export, in the bundle too. */
export const loadSocks = async () => (await import('socks')).default

/** Creates a connector through a SOCKS proxy. https://www.rfc-editor.org/rfc/rfc1928 */
export function createSocksConnector(proxy: Proxy, { timeout, guard, secure }: SocksOptions): buildConnector.connector {
  async function open(hostname: string, port: number): Promise<Socket> {
    const { SocksClient } = await loadSocks()
    const host = proxy.resolvesNames || isIP(hostname) !== 0 ? hostname : await resolve(guard, hostname)
    const { username: userId, password } = proxy.credential ?? {}
    const { socket } = await SocksClient.createConnection({
      command: 'connect',
      proxy: {
        host: proxy.host,
        port: proxy.port,
        type: proxy.protocol === 'socks4' ? 4 : 5,
        ...(userId !== undefined && { userId }),
        ...(password !== undefined && { password }),
      },
      destination: { host, port },
      timeout,
    })
    return socket.setNoDelay(true).setKeepAlive(true, 60_000)
  }

  async function connect(options: buildConnector.Options, callback: buildConnector.Callback): Promise<void> {
    const { hostname, protocol, port } = options
    let socket: Socket
    try {
      socket = await open(hostname, Number(port) || (protocol === 'https:' ? 443 : 80))
    } catch (error) {
      return callback(toSocksError(error as Error), null)
    }
    if (protocol === 'https:') secure({ ...options, httpSocket: socket }, callback)
    else callback(null, socket)
  }

  return (options, callback) => void connect(options, callback)
}

function resolve(guard: AddressGuard, hostname: string): Promise<string> {
  return new Promise((done, fail) => {
    guard.lookup(hostname, {}, (error, address) => (error ? fail(error) : done(address as string)))
  })
}

/** Replaces the library's error, which has only a message and contains the proxy's password. */
function toSocksError(error: Error): Error {
  if (!('options' in error)) return error
  const [pattern, code] = socksErrorCodes.find(([text]) => text.test(error.message)) ?? []
  const found = code || pattern?.exec(error.message)?.[1] || 'SOCKS'
  return Object.assign(new Error(error.message), { syscall: 'connect', code: found })
}
