import type { buildConnector } from 'undici'
import { isIP, type Socket } from 'node:net'
import type { AddressGuard } from './address-guard.ts'
import type { Proxy } from './proxy.ts'

export interface SocksOptions {
  /** Milliseconds until the proxy has connected. */
  readonly timeout: number
  /** For proxies that are told addresses. */
  readonly guard: AddressGuard
  /** Speaks TLS over the connection, where that is wanted. */
  readonly secure: buildConnector.connector
}

/** What a proxy's answer means for the host behind it. */
const codes: readonly [RegExp, string][] = [
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
      return callback(withCode(error as Error), null)
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
function withCode(error: Error): Error {
  if (!('options' in error)) return error
  const [pattern, code] = codes.find(([text]) => text.test(error.message)) ?? []
  const found = code || pattern?.exec(error.message)?.[1] || 'SOCKS'
  return Object.assign(new Error(error.message), { syscall: 'connect', code: found })
}
