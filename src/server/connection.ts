import type { IncomingMessage, OutgoingHttpHeader, OutgoingHttpHeaders, Server, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { Duplex, Readable } from 'node:stream'
import type { TLSSocket } from 'node:tls'
import { normalizeAddress } from '../lib/network.ts'
import { cutText } from '../stats/requests.ts'
import { SecureResponse } from './request-guard.ts'

/** Limits the pending requests of one connection. */
const maxPipelined = 100
/** Limits the memory for pipelined requests of all connections, bytes. Registry clients pipeline at most one request. */
const maxPipelinedBytes = 4 * 1024 * 1024
/** Estimates the memory of a request without its head, bytes. */
const requestBytes = 4096
/** Times of nginx's `lingering_time` and `lingering_timeout`. */
const defaultLimits: DiscardLimits = { bytes: 64 * 1024 * 1024, total: 30_000, silence: 5000 }
const discarding = new WeakSet<Duplex>()

/** Describes an accepted connection and its requests. */
export interface Connection {
  readonly socket: Socket
  /** Counts the requests without a complete response. */
  readonly pending: number
  /**
   * Queues a request and starts it after those before it, so that a connection has at most one open file. Returns false when too much
   * is pipelined: the caller then ends the connection.
   */
  begin(request: RequestHead, start: () => void): boolean
  /** Records that a queued request is over. */
  end(start: () => void): void
}

type RequestHead = Pick<IncomingMessage, 'url' | 'rawHeaders'>

/** Limits the memory for pipelined requests. */
export class PipelineBudget {
  #usedBytes = 0

  take(bytes: number): boolean {
    if (this.#usedBytes + bytes > maxPipelinedBytes) return false
    this.#usedBytes += bytes
    return true
  }

  give(bytes: number): void {
    this.#usedBytes -= bytes
  }
}

interface PendingRequest {
  readonly start: () => void
  /** Holds the request's share of the budget for pipelined requests. */
  aheadBytes: number
}

/** Represents a connection that counts for a budget. */
export class CountedConnection implements Connection {
  readonly socket: Socket
  readonly isSecure: boolean
  /** Lists idle connections, the longest idle first. */
  readonly #idle: Set<CountedConnection>
  readonly #ahead: PipelineBudget
  /** Holds the request that is being answered, and the pipelined ones behind it. */
  readonly #requests: PendingRequest[] = []
  /** Holds the start of the idle time, `performance.now()`. */
  idleSince = performance.now()

  constructor(
    socket: Socket,
    { isSecure, idle, ahead }: { isSecure: boolean; idle: Set<CountedConnection>; ahead: PipelineBudget },
  ) {
    this.socket = socket
    this.isSecure = isSecure
    this.#idle = idle
    this.#ahead = ahead
    idle.add(this)
    socket.once('close', () => {
      idle.delete(this)
      for (const taken of this.#requests) this.#giveBack(taken)
    })
  }

  get pending(): number {
    return this.#requests.length
  }

  begin(request: RequestHead, start: () => void): boolean {
    const waiting = this.#requests.length
    if (waiting >= maxPipelined || this.socket.destroyed) return false
    // Counts from the second pipelined request: a client may have its response, and send the next request, before this process knows.
    const aheadBytes = waiting > 1 ? requestBytes + estimateHeadLength(request) : 0
    if (!this.#ahead.take(aheadBytes)) return false
    this.#idle.delete(this)
    this.#requests.push({ start, aheadBytes })
    if (waiting === 0) start()
    return true
  }

  end(start: () => void): void {
    const at = this.#requests.findIndex((taken) => taken.start === start)
    if (at !== -1) this.#requests.splice(at, 1).forEach((taken) => this.#giveBack(taken))
    if (this.socket.destroyed) return
    const [next] = this.#requests
    if (next && at === 0) {
      this.#giveBack(next)
      next.start()
    }
    if (next) return
    this.idleSince = performance.now()
    this.#idle.add(this)
  }

  #giveBack(taken: PendingRequest): void {
    this.#ahead.give(taken.aheadBytes)
    taken.aheadBytes = 0
  }
}

/** Estimates the characters of a head. */
function estimateHeadLength({ url = '', rawHeaders }: RequestHead): number {
  return rawHeaders.reduce((sum, { length }) => sum + length, url.length)
}

interface ServeOptions {
  /** Is true if the server's requests have other sockets than the accepted ones, because it speaks TLS. */
  readonly isSecure: boolean
  /** Admits or refuses an accepted connection before anything is read from it. Calls `serve` with an admitted one, at once or later. */
  readonly admit: (socket: Socket, serve: (connection: Connection) => void) => void
  readonly handle: (request: IncomingMessage, response: ServerResponse) => void
}

/** Serves the connections of a server: calls `handle` with one request of a connection at a time. */
export function serveConnections(server: Server, { isSecure, admit, handle }: ServeOptions) {
  const accept = server.listeners('connection') as ((socket: Socket) => void)[]
  const open = new Map<Duplex, Connection>()
  /** Holds the connections of a TLS listener, whose requests have other sockets than the accepted ones. */
  const byEndpoints = new Map<string, Connection>()
  /** Lists accepted sockets, admitted or not. */
  const accepted = new Set<Socket>()
  const serve = (connection: Connection) => {
    const { socket } = connection
    const endpoints = getEndpoints(socket)
    if (isSecure) byEndpoints.set(endpoints, connection)
    open.set(socket, connection)
    socket.once('close', () => {
      open.delete(socket)
      byEndpoints.delete(endpoints)
    })
    // Removes the limit, because each pipelined request listens to the socket.
    socket.setMaxListeners(0)
    for (const listener of accept) listener.call(server, socket)
  }
  server.removeAllListeners('connection')
  server.on('connection', (socket: Socket) => {
    accepted.add(socket)
    socket.once('close', () => accepted.delete(socket))
    admit(socket, serve)
  })
  server.on('secureConnection', (socket: TLSSocket) => {
    const connection = byEndpoints.get(getEndpoints(socket))
    if (!connection) return void socket.destroy()
    socket.setMaxListeners(0)
    open.set(socket, connection)
    socket.once('close', () => open.delete(socket))
  })
  let isClosing = false
  server.on('request', (request: IncomingMessage, response: ServerResponse) => {
    const { socket } = request
    // Ignores a request behind the last response of its connection (RFC 9112 §9.6).
    if (socket.writableEnded) return
    if (isClosing) response.setHeader('connection', 'close')
    const connection = open.get(socket)
    const start = () => handle(request, response)
    response.once('close', () => connection?.end(start))
    // Ends the connection when too many pipelined requests occupy memory.
    if (!connection?.begin(request, start)) socket.destroy()
  })
  return {
    /** Returns the connection of a request's socket; undefined after its end. */
    find: (socket: Duplex): Connection | undefined => open.get(socket),
    /** Ends each connection without a request, and every other one with its next response. */
    dropIdle(): void {
      isClosing = true
      // Node itself would wait for a connection that never sent a byte.
      const busy = new Set<Connection>()
      for (const [socket, connection] of open) if (connection.pending > 0 || isDiscarding(socket)) busy.add(connection)
      for (const socket of accepted) {
        const connection = open.get(socket)
        if (!connection || !busy.has(connection)) socket.destroy()
      }
    },
  }
}

/** Identifies a connection by both endpoints, because a client may use one port for connections to two addresses of a listener. */
function getEndpoints({ localAddress, remoteAddress, remotePort }: Socket): string {
  return `${localAddress} ${remoteAddress} ${remotePort}`
}

/** Limits for input that arrives after the response. */
export interface DiscardLimits {
  readonly bytes: number
  /** Limits the total time until the connection is closed, ms. */
  readonly total: number
  /** Limits the time without a byte until the connection is closed, ms. */
  readonly silence: number
}

/** Checks whether the response is sent and further input is dropped. */
export function isDiscarding(socket: Duplex): boolean {
  return discarding.has(socket)
}

/**
 * Reads and drops a client's input; destroys the socket at the limits, or at the end of the input. Returns a function that stops it. A
 * socket that is closed with unread bytes is reset, and the client may lose a response that it has not read yet:
 * https://www.rfc-editor.org/rfc/rfc9112#section-9.6
 *
 * `input`: the body of a request, for a socket that the HTTP parser reads.
 */
export function discardInput(
  socket: Duplex,
  { bytes, total, silence }: DiscardLimits = defaultLimits,
  input: Readable = socket,
): () => void {
  let left = bytes
  const destroy = () => void socket.destroy()
  const late = setTimeout(destroy, total).unref()
  const silent = setTimeout(destroy, silence).unref()
  const onData = ({ length }: Buffer) => {
    left -= length
    if (left < 0) destroy()
    else silent.refresh()
  }
  const stop = () => {
    clearTimeout(late)
    clearTimeout(silent)
    input.off('data', onData)
    socket.off('end', destroy)
    socket.off('close', stop)
    discarding.delete(socket)
  }
  discarding.add(socket)
  input.on('data', onData)
  input.resume()
  socket.on('end', destroy)
  socket.on('close', stop)
  return stop
}

/**
 * Is the response class of all listeners. A response may be sent before its request has arrived: 401, 413, 429, 503 and others. The
 * rest of the body is dropped then, and only after that the connection is closed or accepts the next request. A client that waits
 * for the end of the connection sees it at once, because the sending side is closed with the response.
 */
export class LingeringResponse extends SecureResponse {
  /** Announces the end of the connection where the body is longer than the limit for dropped input. */
  override writeHead(
    status: number,
    message?: string | OutgoingHttpHeaders | OutgoingHttpHeader[],
    headers?: OutgoingHttpHeaders | OutgoingHttpHeader[],
  ): this {
    if (!this.req.complete && (getBodyLength(this.req) ?? 0) > defaultLimits.bytes) this.shouldKeepAlive = false
    return super.writeHead(status, message, headers)
  }

  override end(...args: unknown[]): this {
    if (!this.req.complete && hasBody(this.req)) discardBody(this.req)
    return super.end(...(args as Parameters<ServerResponse['end']>))
  }
}

/** Drops the rest of a request whose response is about to be sent. */
function discardBody(request: IncomingMessage): void {
  const { socket } = request
  if (socket.destroyed || isDiscarding(socket)) return
  const stop = discardInput(socket, defaultLimits, request)
  let closes = false
  // Node calls it after a response that ends its connection.
  socket.destroySoon = () => {
    closes = true
    socket.end()
  }
  request.once('close', () => {
    stop()
    Reflect.deleteProperty(socket, 'destroySoon')
    if (closes) socket.destroySoon()
  })
}

/** Checks whether a request announces a body. */
export function hasBody(request: IncomingMessage): boolean {
  return request.headers['transfer-encoding'] !== undefined || (getBodyLength(request) ?? 0) > 0
}

/** Returns the length that a request announces for its body; undefined without one. */
export function getBodyLength({ headers }: IncomingMessage): number | undefined {
  const length = headers['content-length']
  return length === undefined ? undefined : Number(length)
}

/** Describes the client on a connection, from its last request. */
export interface Peer {
  /** IPv4 also where the listener has IPv6, and without a zone. */
  readonly address: string
  /** Holds the whole User-Agent. */
  readonly userAgent: string | undefined
  /** Holds the User-Agent for the log, at most 200 characters. */
  readonly agent: string | undefined
  /** Identifies the client for counting pulls: its address and user agent. */
  readonly id: string
}

/** Limits the characters of a user agent in the log. */
const maxAgentLength = 200
const peers = new WeakMap<Socket, Peer>()

/** Returns the client of a request. It is one object for all requests of a connection, unless the client changes its User-Agent. */
export function getPeer({ socket, headers }: IncomingMessage): Peer {
  const userAgent = headers['user-agent']
  let peer = peers.get(socket)
  if (peer?.userAgent !== userAgent || peer === undefined) peers.set(socket, (peer = createPeer(socket, userAgent)))
  return peer
}

function createPeer({ remoteAddress = '' }: Socket, userAgent: string | undefined): Peer {
  const address = normalizeAddress(remoteAddress)
  const agent =
    userAgent === undefined || userAgent.length <= maxAgentLength ? userAgent : cutText(userAgent, maxAgentLength)
  return { address, userAgent, agent, id: `${address} ${userAgent ?? ''}` }
}

/** Tells whether and when a client disconnects before it has its response. */
export class ClientAbort {
  readonly #request: IncomingMessage
  readonly #response: ServerResponse
  #controller: AbortController | undefined

  constructor(request: IncomingMessage, response: ServerResponse) {
    this.#request = request
    this.#response = response
  }

  get isAborted(): boolean {
    return this.#request.socket.destroyed || this.#response.destroyed || this.#response.closed
  }

  /** Aborts when the client disconnects. Created on first use, because most responses are sent without it. */
  get signal(): AbortSignal {
    this.#controller ??= this.#watch()
    return this.#controller.signal
  }

  #watch(): AbortController {
    const controller = new AbortController()
    const leave = () => controller.abort(new Error('the client is gone'))
    if (this.isAborted) leave()
    // Listens to the socket, because a response that waits on a pipelined connection gets no event for its end.
    const { socket } = this.#request
    socket.once('close', leave)
    this.#response.once('close', () => {
      socket.off('close', leave)
      leave()
    })
    return controller
  }
}
