import { createServer, IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import type { Duplex } from 'node:stream'
import { getCode, getErrno, MirrorError } from '../lib/errors.ts'
import { type Logger, silentLogger } from '../lib/logger.ts'
import { runEvery, logFailure } from '../lib/time.ts'
import { OciError } from '../oci/errors.ts'
import { ConnectionBudget, type Share } from './connection-budget.ts'
import { discardInput, isDiscarding, LingeringResponse, serveConnections } from './connection.ts'
import { IdentifiedResponse } from './request-id.ts'
import { formatErrorResponse } from './respond.ts'

/**
 * Limits the connections that wait to be accepted; Linux allows at most `net.core.somaxconn`, 4096 by default. A client whose
 * connection does not fit waits for seconds until a kernel retries.
 */
const backlog = 4096

export interface ListenOptions {
  readonly host: string
  /** Sets the port; 0 chooses a free one. */
  readonly port: number
  /** Holds PEM texts. */
  readonly tls?: { readonly cert: string; readonly key: string } | undefined
  /** Limits the connections of all listeners of the process; no limit when absent. */
  readonly connections?: ConnectionBudget | undefined
  /** Names the share that this listener's connections count for; default: `clients`. */
  readonly share?: Share | undefined
  readonly logger?: Logger | undefined
  /** Is called with the server as soon as it listens. */
  readonly prepare?: ((server: Server) => void) | undefined
}

export interface Listener {
  readonly host: string
  readonly port: number
  /** `http://127.0.0.1:5055` */
  readonly url: string
  /** Stops accepting requests, lets those under way finish for `graceMilliseconds`, then ends their connections. */
  close(graceMilliseconds: number): Promise<void>
}

/** Reports a failure to listen: the port is in use, or the machine does not have the address. */
export class ListenError extends MirrorError {
  override name = 'ListenError'
  readonly host: string
  readonly port: number
  readonly errno: string | undefined

  constructor(options: { host: string; port: number; cause: unknown }) {
    const errno = getErrno(options.cause)
    const where = `${options.host.includes(':') ? `[${options.host}]` : options.host}:${options.port}`
    const why: Record<string, string> = {
      EADDRINUSE: 'another program is listening there',
      EADDRNOTAVAIL: 'this machine has no such address',
      EACCES: 'ports below 1024 need more rights',
      EMFILE: 'the mirror has too many files open',
      ENFILE: 'the system has too many files open',
    }
    super(`Cannot listen on ${where}: ${why[errno ?? ''] ?? String(options.cause)}.`, { cause: options.cause })
    this.host = options.host
    this.port = options.port
    this.errno = errno
  }
}

/**
 * Serves HTTP on one address. Heads must arrive within 10 s. Bodies have no total limit in either direction, because Node's default of
 * 300 s would cut slow pulls and large pushes. Throws a ListenError.
 */
export async function listen(
  options: ListenOptions,
  handle: (request: IncomingMessage, response: ServerResponse) => void,
): Promise<Listener> {
  const { connections = createUnlimitedBudget(), share = 'clients', logger = silentLogger } = options
  const settings = {
    headersTimeout: 10_000,
    requestTimeout: 0,
    connectionsCheckingInterval: 2000,
    keepAliveTimeout: 75_000,
    noDelay: true,
    IncomingMessage,
    ServerResponse: share === 'admin' ? LingeringResponse : IdentifiedResponse,
  }
  const server: Server = options.tls ? createTlsServer({ ...settings, ...options.tls }) : createServer(settings)
  const isSecure = options.tls !== undefined
  const served = serveConnections(server, {
    isSecure,
    admit: (socket, serve) => connections.admit(socket, { share, isSecure }, serve),
    handle,
  })

  server.on('clientError', (error: Error, socket: Duplex) => {
    // Sends no second response, because the client would take it for the response to its next request.
    if (isDiscarding(socket)) return void socket.end()
    // Destroys the connection while a response is under way, because an error would land in the middle of its body.
    if (served.find(socket)?.pending) socket.destroy()
    else refuseMalformed(error, socket)
  })
  const host = await bind(server, options)
  // Accepting fails while no descriptor is left. The server accepts the next connection when one is free again.
  server.on('error', (error: Error) => logger.warn({ error: String(error) }, 'a connection could not be accepted'))
  options.prepare?.(server)
  const { port } = server.address() as AddressInfo
  const scheme = options.tls ? 'https' : 'http'
  return {
    host,
    port,
    url: `${scheme}://${host.includes(':') ? `[${host}]` : host}:${port}`,
    async close(graceMilliseconds) {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()))
      served.dropIdle()
      const stopClosing = runEvery(200, () => served.dropIdle(), logFailure(logger, 'could not end idle connections'))
      const cut = setTimeout(() => server.closeAllConnections(), graceMilliseconds)
      await closed
      stopClosing()
      clearTimeout(cut)
    },
  }
}

function createUnlimitedBudget(): ConnectionBudget {
  return new ConnectionBudget({ limits: { clients: Infinity, admin: Infinity }, refusals: 0 })
}

/** Listens, and returns the address: on a machine without IPv6, `::` becomes `0.0.0.0`. Throws a ListenError. */
async function bind(server: Server, { host, port }: ListenOptions): Promise<string> {
  try {
    await new Promise<void>((resolve, reject) => {
      const onError = (cause: Error) => reject(new ListenError({ host, port, cause }))
      server.once('error', onError)
      server.listen({ host, port, backlog, ipv6Only: host !== '::' }, () => {
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

/** Answers malformed HTTP with the specification's error body, and closes the connection. */
function refuseMalformed(error: Error, socket: Duplex): void {
  const code = getCode(error)
  if (code === 'ECONNRESET' || !socket.writable) {
    socket.destroy()
    return
  }
  const status = code === 'HPE_HEADER_OVERFLOW' ? 431 : code === 'ERR_HTTP_REQUEST_TIMEOUT' ? 408 : 400
  socket.end(formatErrorResponse(new OciError('UNSUPPORTED', status, 'The request is not valid HTTP.')))
  discardInput(socket)
}
