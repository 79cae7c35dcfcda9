import { readSync } from 'node:fs'
import type { Socket } from 'node:net'
import { getErrno } from '../lib/errors.ts'
import { type Logger, silentLogger } from '../lib/logger.ts'
import { OciError } from '../oci/errors.ts'
import { PipelineBudget, type Connection, CountedConnection, discardInput, isDiscarding } from './connection.ts'
import { formatErrorResponse } from './respond.ts'

/**
 * Sets the idle time after which a connection yields to a request. A client in the middle of a pull sends its next request sooner.
 */
const minIdleMs = 1000
/** Limits the wait of a connection beyond the limit for its request. */
const maxWaitMs = 1000
/** Sets the minimum time between two log lines about refused connections. */
const warnIntervalMs = 10_000

/**
 * Names a group of connections with one limit: `clients` for the cache and the registry on all addresses, `admin` for the admin
 * listener.
 */
export type Share = 'clients' | 'admin'

interface Admission {
  readonly share: Share
  /** Is true if the connection begins with a TLS handshake. */
  readonly isSecure: boolean
}

interface ConnectionBudgetOptions {
  /** Limits the connections, by share. */
  readonly limits: Readonly<Record<Share, number>>
  /** Limits the connections beyond `limits` that wait at a time: for their request, or for their client to read the 503. */
  readonly refusals: number
  readonly logger?: Logger
}

/**
 * Limits the connections of all listeners of the process together, because they share its file descriptors.
 *
 * A connection beyond the limit waits for its request, for a second at most. Then it replaces the connection that has been idle for
 * longest, so that idle connections do not block requests. Where none is idle, the request gets a 503 with Retry-After, and its
 * connection is closed: at once, or when the client that still sends has read the response. Where too many connections wait for
 * either, the oldest of them is ended at once. Before a TLS handshake no response and no wait for a request is possible: the connection
 * replaces an idle one, or is closed.
 */
export class ConnectionBudget {
  readonly #options: ConnectionBudgetOptions
  readonly #shares = { clients: createShare(), admin: createShare() }
  readonly #ahead = new PipelineBudget()
  /** Lists the connections beyond the limit, the oldest first, each with a function that ends its wait. */
  readonly #waiting = new Map<Socket, () => void>()
  #warnedAt = -Infinity

  constructor(options: ConnectionBudgetOptions) {
    this.#options = options
  }

  /** Counts admitted connections that are open. */
  count(share: Share): number {
    return this.#shares[share].open.size
  }

  /** Admits or refuses a connection that was just accepted: calls `serve` at once or later, or ends the connection. */
  admit(socket: Socket, admission: Admission, serve: (connection: Connection) => void): void {
    const { share, isSecure } = admission
    if (this.#isFree(share)) return serve(this.#open(socket, admission))
    if (isSecure) {
      if (this.#endIdle(share)) return serve(this.#open(socket, admission))
      this.#warn(share)
      return void socket.destroy()
    }
    const decide = (head: Buffer | undefined) => {
      if (socket.destroyed) return
      if (head && (this.#isFree(share) || this.#endIdle(share))) {
        socket.unshift(head)
        serve(this.#open(socket, admission))
        socket.resume()
        return
      }
      this.#warn(share)
      if (head && isUnfinished(head)) this.#refuseSlowly(socket, head)
      else refuse(socket, head)
    }
    socket.on('error', ignore)
    const head = readArrived(socket)
    if (head) decide(head)
    else this.#wait(socket, decide)
  }

  #wait(socket: Socket, decide: (head: Buffer | undefined) => void): void {
    const stop = () => {
      clearTimeout(timer)
      socket.off('data', onData)
      socket.off('close', stop)
      this.#waiting.delete(socket)
      socket.pause()
    }
    const onData = (head: Buffer) => {
      stop()
      decide(head)
    }
    const giveUp = () => {
      stop()
      decide(readArrived(socket))
    }
    this.#makeRoom()
    const timer = setTimeout(giveUp, maxWaitMs)
    socket.on('data', onData)
    socket.on('close', stop)
    this.#waiting.set(socket, giveUp)
  }

  /** Answers a client that still sends, and waits until it has read the answer. */
  #refuseSlowly(socket: Socket, head: Buffer): void {
    this.#makeRoom()
    socket.end(formatBusyResponse(head))
    if (this.#waiting.size >= this.#options.refusals) return void socket.destroy()
    discardInput(socket)
    socket.once('close', () => this.#waiting.delete(socket))
    this.#waiting.set(socket, () => {
      this.#waiting.delete(socket)
      socket.destroy()
    })
  }

  /** Ends the longest waits. A connection whose request has arrived by then may wait once more, for its client to read. */
  #makeRoom(): void {
    while (this.#waiting.size > 0 && this.#waiting.size >= this.#options.refusals) {
      const [oldest] = this.#waiting.values()
      oldest!()
    }
  }

  #isFree(share: Share): boolean {
    return this.#shares[share].open.size < this.#options.limits[share]
  }

  #open(socket: Socket, { share, isSecure }: Admission): Connection {
    const { open, idle } = this.#shares[share]
    socket.off('error', ignore)
    const connection = new CountedConnection(socket, { isSecure, idle, ahead: this.#ahead })
    open.add(connection)
    socket.once('close', () => open.delete(connection))
    return connection
  }

  /** Ends the connection that has been idle for longest. Its descriptor is free at once. */
  #endIdle(share: Share): boolean {
    const { open, idle } = this.#shares[share]
    const [oldest] = idle
    if (!oldest || performance.now() - oldest.idleSince < minIdleMs) return false
    open.delete(oldest)
    idle.delete(oldest)
    // Reads the socket, because on a busy machine a request may have arrived that was not read yet.
    const head = oldest.isSecure || isDiscarding(oldest.socket) ? undefined : readArrived(oldest.socket)
    if (head) refuse(oldest.socket, head)
    else oldest.socket.destroy()
    return true
  }

  #warn(share: Share): void {
    const now = performance.now()
    if (now - this.#warnedAt < warnIntervalMs) return
    this.#warnedAt = now
    const { logger = silentLogger, limits } = this.#options
    logger.warn({ listener: share, limit: limits[share] }, 'connections are refused: the limit is reached')
  }
}

function createShare(): { readonly open: Set<CountedConnection>; readonly idle: Set<CountedConnection> } {
  return { open: new Set(), idle: new Set() }
}

/** Sends the 503 and closes the connection at once, so that its descriptor is free. The caller has read all input that arrived. */
function refuse(socket: Socket, head: Buffer | undefined): void {
  // Requires that no input is unread, because the connection would be reset then, and the response might be lost.
  socket.end(formatBusyResponse(head))
  socket.destroy()
}

function ignore(): void {}

/** Reads the input that arrived on a socket without a reader; undefined without input, and without a plain descriptor. */
function readArrived(socket: Socket): Buffer | undefined {
  const { _handle: handle } = socket as { _handle?: { fd?: unknown } | null }
  if (typeof handle?.fd !== 'number' || handle.fd < 0) return undefined
  const buffer = Buffer.allocUnsafe(16 * 1024)
  try {
    const count = readSync(handle.fd, buffer)
    return count > 0 ? buffer.subarray(0, count) : undefined
  } catch (error) {
    // EAGAIN: nothing has arrived. Any other failure ends the connection as well.
    if (getErrno(error) === undefined) throw error
    return undefined
  }
}

/** Checks whether a part of the request has not arrived yet. */
function isUnfinished(head: Buffer): boolean {
  const text = head.toString('latin1')
  return !text.endsWith('\r\n\r\n') || /^(?:content-length:[ \t]*0*[1-9]|transfer-encoding:)/im.test(text)
}

/** Formats the 503, without a body unless the request is known not to be a HEAD. */
function formatBusyResponse(head: Buffer | undefined): string {
  const isHead = head === undefined || head.toString('latin1', 0, 5) === 'HEAD '
  const message = 'The mirror has too many connections.'
  return formatErrorResponse(new OciError('TOOMANYREQUESTS', 503, message, { 'retry-after': '1' }), { isHead })
}
