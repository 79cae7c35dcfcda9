import { createServer, IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import type { Duplex } from 'node:stream'
import { codeOf, errnoOf, MirrorError } from '../lib/errors.ts'
import { OciError } from '../oci/errors.ts'
import { SecureResponse, securityHeaderLines } from './security-headers.ts'

export interface ListenOptions {
  readonly host: string
  /** 0 picks a free one. */
  readonly port: number
  /** PEM texts. */
  readonly tls?: { readonly cert: string; readonly key: string } | undefined
  /** Open connections at most; undefined for no limit. */
  readonly maxConnections?: number | undefined
  /** Called with the server as soon as it listens. */
  readonly prepare?: ((server: Server) => void) | undefined
}

export interface Listener {
  readonly host: string
  readonly port: number
  /** `http://127.0.0.1:5055` */
  readonly url: string
  /** Takes no more requests, lets those under way finish for so long, then cuts them. */
  close(graceMilliseconds: number): Promise<void>
}

/** A port that is taken, or an address that is not ours. */
export class ListenError extends MirrorError {
  override name = 'ListenError'
  readonly host: string
  readonly port: number
  readonly errno: string | undefined

  constructor(options: { host: string; port: number; cause: unknown }) {
    const errno = errnoOf(options.cause)
    const where = `${options.host.includes(':') ? `[${options.host}]` : options.host}:${options.port}`
    const why: Record<string, string> = {
      EADDRINUSE: 'another program is listening there',
      EADDRNOTAVAIL: 'this machine has no such address',
      EACCES: 'ports below 1024 need more rights',
    }
    super(`Cannot listen on ${where}: ${why[errno ?? ''] ?? String(options.cause)}.`, { cause: options.cause })
    this.host = options.host
    this.port = options.port
    this.errno = errno
  }
}

/** Requests of one connection that wait for their answers; no client of registries sends more than one. */
const mostAhead = 100

/**
 * Serves HTTP on one address. Heads must arrive within 10 s; bodies, in either direction, have no total limit: Node's own
 * 300 s would cut slow pulls and large pushes.
 */
export async function listen(
  options: ListenOptions,
  handle: (request: IncomingMessage, response: ServerResponse) => void,
): Promise<Listener> {
  const settings = {
    headersTimeout: 10_000,
    requestTimeout: 0,
    connectionsCheckingInterval: 2000,
    keepAliveTimeout: 75_000,
    noDelay: true,
    IncomingMessage,
    ServerResponse: SecureResponse,
  }
  const server: Server = options.tls ? createTlsServer({ ...settings, ...options.tls }) : createServer(settings)
  let closing = false
  /** Open connections, and how many answers each is owed. */
  const connections = new Map<Duplex, number>()
  const limit = options.maxConnections ?? Infinity

  server.on(options.tls ? 'secureConnection' : 'connection', (socket: Duplex) => {
    connections.set(socket, 0)
    // Every request that a client sends ahead waits for its end.
    socket.setMaxListeners(0)
    socket.once('close', () => connections.delete(socket))
    // Far beyond the limit even saying no takes descriptors that are not there.
    if (closing || connections.size > limit * 1.5) socket.destroy()
  })
  server.on('clientError', (error: Error, socket: Duplex) => {
    // What is not HTTP while an answer is under way would be answered into the middle of its body.
    if (connections.get(socket)) socket.destroy()
    else refuseMalformed(error, socket)
  })
  server.on('request', (request: IncomingMessage, response: ServerResponse) => {
    const { socket } = request
    const ahead = (connections.get(socket) ?? 0) + 1
    // Each has its blob open, though it cannot be sent yet.
    if (ahead > mostAhead) return socket.destroy()
    connections.set(socket, ahead)
    response.once('close', () => {
      const owed = connections.get(socket)
      if (owed !== undefined) connections.set(socket, owed - 1)
    })
    if (closing) response.setHeader('connection', 'close')
    if (connections.size <= limit) return handle(request, response)
    const busy = new OciError('TOOMANYREQUESTS', 503, 'The mirror has as many connections as it can hold.')
    response
      .writeHead(503, { 'retry-after': '1', connection: 'close', 'content-type': 'application/json' })
      .end(busy.body())
  })

  /** Node itself would wait for a connection that has never said a word. */
  const dropIdle = () => {
    for (const [socket, owed] of connections) if (owed === 0) socket.destroy()
  }

  const host = await bind(server, options)
  options.prepare?.(server)
  const { port } = server.address() as AddressInfo
  const scheme = options.tls ? 'https' : 'http'
  return {
    host,
    port,
    url: `${scheme}://${host.includes(':') ? `[${host}]` : host}:${port}`,
    async close(graceMilliseconds) {
      closing = true
      const closed = new Promise<void>((resolve) => server.close(() => resolve()))
      dropIdle()
      const sweep = setInterval(dropIdle, 200)
      const cut = setTimeout(() => server.closeAllConnections(), graceMilliseconds)
      await closed
      clearInterval(sweep)
      clearTimeout(cut)
    },
  }
}

/** The address it listens on: on a machine without IPv6 every address means every IPv4 one. */
async function bind(server: Server, { host, port }: ListenOptions): Promise<string> {
  try {
    await new Promise<void>((resolve, reject) => {
      const onError = (cause: Error) => reject(new ListenError({ host, port, cause }))
      server.once('error', onError)
      server.listen({ host, port, backlog: 1024, ipv6Only: host !== '::' }, () => {
        server.off('error', onError)
        resolve()
      })
    })
    return host
  } catch (error) {
    if (host !== '::' || !(error instanceof ListenError) || error.errno !== 'EAFNOSUPPORT') throw error
    return bind(server, { host: '0.0.0.0', port })
  }
}

/** What never became a request: answered in the specification's form, and the connection closed. */
function refuseMalformed(error: Error, socket: Duplex): void {
  const code = codeOf(error)
  if (code === 'ECONNRESET' || !socket.writable) {
    socket.destroy()
    return
  }
  const [status, phrase] =
    code === 'HPE_HEADER_OVERFLOW'
      ? [431, 'Request Header Fields Too Large']
      : code === 'ERR_HTTP_REQUEST_TIMEOUT'
        ? [408, 'Request Timeout']
        : [400, 'Bad Request']
  const body = new OciError('UNSUPPORTED', status, 'The request is not valid HTTP.').body()
  socket.end(
    `HTTP/1.1 ${status} ${phrase}\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n${securityHeaderLines}\r\n${body}`,
    () => socket.destroy(),
  )
}
