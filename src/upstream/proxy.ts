import { BlockList, isIP, type Socket } from 'node:net'
import type { buildConnector } from 'undici'
import { exitCode, MirrorError } from '../lib/errors.ts'
import { type AddressGuard, classifyAddress, literalAddress } from './trust.ts'

/** A proxy that requests go through. */
export interface Proxy {
  /** Without a user name and a password: `http://proxy.corp:3128`. */
  readonly name: string
  readonly protocol: 'http' | 'https' | 'socks4' | 'socks5'
  /** Without brackets. */
  readonly host: string
  readonly port: number
  /** Whether the proxy looks names up; always so with HTTP. */
  readonly resolvesNames: boolean
  readonly credential: { readonly username: string; readonly password: string } | undefined
  /** Whether it runs on this very machine. */
  readonly isLocal: boolean
}

/** Which proxy a request goes through. */
export interface Proxies {
  /** Undefined for a URL that is asked directly. */
  find(url: URL): Proxy | undefined
  /** Every proxy that may be asked, with the variable that names it. */
  readonly all: ReadonlyMap<string, Proxy>
}

type Environment = Readonly<Record<string, string | undefined>>

/** The variables that say which proxy to use, for whoever hands them on. */
export const proxyVariables: readonly string[] = ['HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY', 'NO_PROXY'].flatMap(
  (name) => [name, name.toLowerCase()],
)

/**
 * Reads the proxies as curl does: `http_proxy` (in lower case only, because a web server sets `HTTP_PROXY` from a request's header),
 * `https_proxy` or `HTTPS_PROXY`, else `all_proxy` or `ALL_PROXY`; but for what `no_proxy` or `NO_PROXY` names. Throws a MirrorError
 * for a proxy that is none. https://curl.se/docs/manpage.html#ENVIRONMENT
 */
export function readProxies(env: Environment): Proxies {
  const everything = () => readProxy(env, ['all_proxy', 'ALL_PROXY'])
  const http = readProxy(env, ['http_proxy']) ?? everything()
  const https = readProxy(env, ['https_proxy', 'HTTPS_PROXY']) ?? everything()
  const excepted = parseNoProxy(env['no_proxy'] || env['NO_PROXY'] || '')
  return {
    find(url) {
      const found = url.protocol === 'https:' ? https : http
      if (!found || excepted(url)) return undefined
      // Another machine cannot reach this one's loopback addresses; it would reach its own.
      return isLoopback(url) && !found.proxy.isLocal ? undefined : found.proxy
    },
    all: new Map([http, https].flatMap((found) => (found ? [[found.variable, found.proxy]] : []))),
  }
}

/** What a user should know about proxies that are set and not used. */
export function proxyWarnings(env: Environment): string[] {
  if (!env['HTTP_PROXY'] || env['http_proxy'] || env['all_proxy'] || env['ALL_PROXY']) return []
  const also = env['https_proxy'] || env['HTTPS_PROXY'] ? '' : ' (and https_proxy, for https)'
  return [`HTTP_PROXY in upper case is not used, as in curl: set http_proxy${also}`]
}

function readProxy(env: Environment, names: readonly string[]): { variable: string; proxy: Proxy } | undefined {
  // An empty variable counts as one that is not set.
  const variable = names.find((name) => env[name]?.trim())
  return variable === undefined ? undefined : { variable, proxy: parseProxy(env[variable]!.trim(), variable) }
}

const schemes = new Map([
  ['http', { protocol: 'http', resolvesNames: true, port: 80 }],
  ['https', { protocol: 'https', resolvesNames: true, port: 443 }],
  ['socks', { protocol: 'socks5', resolvesNames: false, port: 1080 }],
  ['socks4', { protocol: 'socks4', resolvesNames: false, port: 1080 }],
  ['socks4a', { protocol: 'socks4', resolvesNames: true, port: 1080 }],
  ['socks5', { protocol: 'socks5', resolvesNames: false, port: 1080 }],
  ['socks5h', { protocol: 'socks5', resolvesNames: true, port: 1080 }],
] as const)

function parseProxy(text: string, variable: string): Proxy {
  const written = text.includes('://') ? text : `http://${text}`
  const url = URL.canParse(written) ? new URL(written) : undefined
  const name = url?.protocol.slice(0, -1) as Parameters<typeof schemes.get>[0] | undefined
  const scheme = name && schemes.get(name)
  const credential = url && parseProxyCredential(url)
  if (!url || !scheme || !credential || url.hostname === '') throw invalidProxy(variable)
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

/** Undefined for what is not percent-encoded as it should be. */
function parseProxyCredential({ username, password }: URL): { username: string; password: string } | undefined {
  try {
    return { username: decodeURIComponent(username), password: decodeURIComponent(password) }
  } catch (error) {
    if (error instanceof URIError) return undefined
    throw error
  }
}

/** The variable's value is not repeated: it may hold a password. */
function invalidProxy(variable: string): MirrorError {
  return new MirrorError(`The proxy in ${variable} is not the URL of an HTTP or SOCKS proxy.`, {
    exit: exitCode.usage,
    hints: [`Set ${variable} to something like http://proxy.example:3128 or socks5h://proxy.example:1080`],
  })
}

/**
 * Reads a list of hosts that are asked directly, separated by commas or blanks: names (each with the names below it, with a dot
 * or `*.` before it or not), addresses, CIDR blocks, each with a port or without; `*` for all. curl's rules, and ports.
 */
function parseNoProxy(text: string): (url: URL) => boolean {
  const entries = text
    .split(/[\s,]+/)
    .flatMap((entry) => (entry === '' ? [] : [parseNoProxyEntry(entry.toLowerCase())]))
  return (url) => {
    const host = { name: hostnameOf(url), port: url.port || (url.protocol === 'https:' ? '443' : '80') }
    return entries.some((fits) => fits(host))
  }
}

type HostMatcher = (host: { readonly name: string; readonly port: string }) => boolean

function parseNoProxyEntry(entry: string): HostMatcher {
  if (entry === '*') return () => true
  const [, bracketed, plain = '', port] = /^(?:\[([^\]]*)\]|(.*?))(?::(\d+))?$/.exec(entry) ?? []
  // Two colons or more are an IPv6 address, of which the last group is no port.
  const isBare = bracketed === undefined && /:.*:/.test(entry)
  const fits = isBare ? createNameMatcher(entry) : createNameMatcher(bracketed ?? plain)
  return (host) => (isBare || port === undefined || port === host.port) && fits(host)
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
  const most = family === 4 ? 32 : 128
  const prefix = bits === undefined ? most : /^\d{1,3}$/.test(bits) ? Number(bits) : Number.NaN
  if (!(prefix <= most)) return () => false
  const block = new BlockList()
  block.addSubnet(address, prefix, family === 4 ? 'ipv4' : 'ipv6')
  return ({ name }) => isIP(name) !== 0 && block.check(name, isIP(name) === 4 ? 'ipv4' : 'ipv6')
}

function hostnameOf(url: URL): string {
  return literalAddress(url) ?? url.hostname.toLowerCase().replace(/\.$/, '')
}

function isLoopback(url: URL): boolean {
  const address = literalAddress(url)
  if (address !== undefined) return classifyAddress(address) === 'loopback'
  return /(?:^|\.)localhost$/.test(hostnameOf(url))
}

interface SocksOptions {
  /** Milliseconds until the proxy has connected. */
  readonly timeout: number
  /** For proxies that are told addresses. */
  readonly guard: AddressGuard
  /** Speaks TLS over the connection, where that is wanted. */
  readonly secure: buildConnector.connector
}

/** What a proxy's answer means for the host behind it. */
const socksErrorCodes: readonly [RegExp, string][] = [
  [/timed out/i, 'UND_ERR_CONNECT_TIMEOUT'],
  [/\b(E[A-Z]{4,})\b/, ''],
  [/ConnectionRefused/i, 'ECONNREFUSED'],
  [/NetworkUnreachable/i, 'ENETUNREACH'],
  [/HostUnreachable|TTLExpired/i, 'EHOSTUNREACH'],
  [/auth/i, 'the proxy refused the user name and password'],
]

/** Loads the SOCKS client. It is CommonJS: its members are the default's, in the bundle as well. */
export const loadSocks = async () => (await import('socks')).default

/** Makes connections through a SOCKS proxy. https://www.rfc-editor.org/rfc/rfc1928 */
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

/** The library's errors have a text only, and hold the proxy's password. */
function toSocksError(error: Error): Error {
  if (!('options' in error)) return error
  const [pattern, code] = socksErrorCodes.find(([text]) => text.test(error.message)) ?? []
  const found = code || pattern?.exec(error.message)?.[1] || 'SOCKS'
  return Object.assign(new Error(error.message), { syscall: 'connect', code: found })
}
