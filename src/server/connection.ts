import type { IncomingMessage, OutgoingHttpHeader, OutgoingHttpHeaders, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { Duplex, Readable } from 'node:stream'
import { bodyLength, hasBody } from './request-body.ts'
import { SecureResponse } from './request-guard.ts'

/** An accepted connection and its requests. */
export interface Connection {
  readonly socket: Socket
  /** Answers that the client waits for. */
  readonly pending: number
  /**
   * Takes a request and starts it when those before it are over, so that a connection has one file open at most. False when too
   * much was sent ahead: then the connection is to be ended.
   */
  begin(request: RequestHead, start: () => void): boolean
  /** Notes that a request that was taken is over. */
  end(start: () => void): void
}

type RequestHead = Pick<IncomingMessage, 'url' | 'rawHeaders'>

/** Requests of one connection that wait for their answers. */
const maxPipelined = 100
/** Memory for requests that wait behind others, of all connections, bytes. No client of registries sends more than one ahead. */
const maxPipelinedBytes = 4 * 1024 * 1024
/** Memory that a request takes besides its head, bytes. */
const requestBytes = 4096

/** The memory for requests that were sent ahead. */
export class PipelineBudget {
  #held = 0

  take(bytes: number): boolean {
    if (this.#held + bytes > maxPipelinedBytes) return false
    this.#held += bytes
    return true
  }

  give(bytes: number): void {
    this.#held -= bytes
  }
}

interface PendingRequest {
  readonly start: () => void
  /** What it holds of the memory for requests that were sent ahead. */
  aheadBytes: number
}

/** A connection that counts. */
export class CountedConnection implements Connection {
  readonly socket: Socket
  readonly isSecure: boolean
  /** Connections that owe nothing, the one that has been idle for longest first. */
  readonly #idle: Set<CountedConnection>
  readonly #ahead: PipelineBudget
  /** The request that is being answered, and those sent ahead of its answer. */
  readonly #requests: PendingRequest[] = []
  /** Since when it has been idle, `performance.now()`. */
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
    // A client may have its answer before this process knows that it has left: one request behind another is no sign of more.
    const aheadBytes = waiting > 1 ? requestBytes + headLength(request) : 0
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

/** Characters of a head, roughly. */
function headLength({ url = '', rawHeaders }: RequestHead): number {
  return rawHeaders.reduce((sum, { length }) => sum + length, url.length)
}

/** What a client may still send when it has its answer. */
export interface DiscardLimits {
  readonly bytes: number
  /** Until the connection is closed, ms. */
  readonly total: number
  /** Without a byte until the connection is closed, ms. */
  readonly silence: number
}

/** The times are those of nginx's `lingering_time` and `lingering_timeout`. */
const defaultLimits: DiscardLimits = { bytes: 64 * 1024 * 1024, total: 30_000, silence: 5000 }

const discarding = new WeakSet<Duplex>()

/** Whether a client has its answer, and what it still sends is dropped. */
export function isDiscarding(socket: Duplex): boolean {
  return discarding.has(socket)
}

/**
 * Reads and drops what a client sends; destroys the socket at the limits, or when the client has sent everything. Returns how to
 * stop. A socket that is closed with unread bytes is reset, and the client may lose an answer that it has not read yet:
 * https://www.rfc-editor.org/rfc/rfc9112#section-9.6
 *
 * `input`: the body of a request, for a socket whose bytes the HTTP parser takes.
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
 * The response that listeners create. An answer may leave before its request has arrived: 401, 413, 429, 503 and others. The rest
 * of the body is dropped then, and only after that the connection is closed or takes the next request. A client that waits for the
 * end of the connection sees it at once, because the sending side is closed with the answer.
 */
export class LingeringResponse extends SecureResponse {
  /** Says that the connection ends where the body is longer than what is dropped. */
  override writeHead(
    status: number,
    message?: string | OutgoingHttpHeaders | OutgoingHttpHeader[],
    headers?: OutgoingHttpHeaders | OutgoingHttpHeader[],
  ): this {
    if (!this.req.complete && (bodyLength(this.req) ?? 0) > defaultLimits.bytes) this.shouldKeepAlive = false
    return super.writeHead(status, message, headers)
  }

  override end(...args: unknown[]): this {
    if (!this.req.complete && hasBody(this.req)) discardBody(this.req)
    return super.end(...(args as Parameters<ServerResponse['end']>))
  }
}

/** Drops what is still to come of a request whose answer is about to leave. */
function discardBody(request: IncomingMessage): void {
  const { socket } = request
  if (socket.destroyed || isDiscarding(socket)) return
  const stop = discardInput(socket, defaultLimits, request)
  let closes = false
  // Node calls it after an answer that ends its connection.
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

/** Whether, and when, a client leaves before it has its answer. */
export class ClientAbort {
  readonly #request: IncomingMessage
  readonly #response: ServerResponse
  #controller: AbortController | undefined

  constructor(request: IncomingMessage, response: ServerResponse) {
    this.#request = request
    this.#response = response
  }

  get hasHappened(): boolean {
    return this.#request.socket.destroyed || this.#response.destroyed || this.#response.closed
  }

  /** Aborts when it happens. Made when it is first asked for: most answers are out before anybody could leave. */
  get signal(): AbortSignal {
    this.#controller ??= this.#watch()
    return this.#controller.signal
  }

  #watch(): AbortController {
    const controller = new AbortController()
    const leave = () => controller.abort(new Error('the client is gone'))
    if (this.hasHappened) leave()
    // A response that waits for its turn on a pipelined connection is not told that the connection is gone.
    const { socket } = this.#request
    socket.once('close', leave)
    this.#response.once('close', () => {
      socket.off('close', leave)
      leave()
    })
    return controller
  }
}
