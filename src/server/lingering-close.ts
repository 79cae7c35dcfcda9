import type { IncomingMessage, OutgoingHttpHeader, OutgoingHttpHeaders, ServerResponse } from 'node:http'
import type { Duplex, Readable } from 'node:stream'
import { bodyLength, hasBody } from './request-body.ts'
import { SecureResponse } from './security-headers.ts'

/** What a client may still send when it has its answer. */
export interface DiscardLimits {
  readonly bytes: number
  /** Until the connection is closed, ms. */
  readonly total: number
  /** Without a byte until the connection is closed, ms. */
  readonly silence: number
}

/** The times are those of nginx's `lingering_time` and `lingering_timeout`. */
const usualLimits: DiscardLimits = { bytes: 64 * 1024 * 1024, total: 30_000, silence: 5000 }

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
  { bytes, total, silence }: DiscardLimits = usualLimits,
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
    if (!this.req.complete && (bodyLength(this.req) ?? 0) > usualLimits.bytes) this.shouldKeepAlive = false
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
  const stop = discardInput(socket, usualLimits, request)
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
