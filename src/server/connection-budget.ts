import { readSync } from 'node:fs'
import type { Socket } from 'node:net'
import { errnoOf } from '../lib/errors.ts'
import { type Logger, silentLogger } from '../lib/logger.ts'
import { OciError } from '../oci/errors.ts'
import { PipelineBudget, type Connection, CountedConnection, discardInput, isDiscarding } from './connection.ts'
import { formatErrorResponse } from './respond.ts'

/** Names connections that share one limit: `clients` for the cache and the registry on all addresses, `admin` for the admin listener. */
export type Share = 'clients' | 'admin'

interface Admission {
  readonly share: Share
  /** Whether the connection begins with a TLS handshake. */
  readonly isSecure: boolean
}

interface ConnectionBudgetOptions {
  /** Connections at most, by share. */
  readonly limits: Readonly<Record<Share, number>>
  /** Connections beyond the limits that may wait at a time: for their request, or for their client to read the 503. */
  readonly refusals: number
  readonly logger?: Logger
}

/** How long a connection has to be idle before it gives way to a request. A client in the middle of a pull comes back sooner. */
const minIdleMs = 1000
/** How long a connection beyond the limit may wait for its request. */
const maxWaitMs = 1000
/** How often the log says that connections are refused. */
const warnIntervalMs = 10_000

/**
 * Limits the connections of all listeners of the process together, because they share its file descriptors.
 *
 * A connection beyond the limit waits for its request, for a second at most. The request then takes the place of the connection
 * that has been idle for longest, so that connections which ask for nothing keep nobody out. Where none is idle, it is answered
 * with 503 and Retry-After, and its connection is closed: at once, or when the client that still sends has read the answer. Where
 * too many wait for either, the first of them is ended at once. Before a TLS handshake there is no way to answer, and no request
 * to wait for: the connection takes the place of an idle one, or is closed.
 */
export class ConnectionBudget {
  readonly #options: ConnectionBudgetOptions
  readonly #shares = { clients: newShare(), admin: newShare() }
  readonly #ahead = new PipelineBudget()
  /** Connections beyond the limit, the oldest first, and how to end the waiting of each. */
  readonly #waiting = new Map<Socket, () => void>()
  #warnedAt = -Infinity

  constructor(options: ConnectionBudgetOptions) {
    this.#options = options
  }

  /** Counts admitted connections that are open. */
  count(share: Share): number {
    return this.#shares[share].open.size
  }

  /** Takes a connection that was just accepted. Calls `serve` at once or later, or ends the connection. */
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
    socket.end(busyAnswer(head))
    if (this.#waiting.size >= this.#options.refusals) return void socket.destroy()
    discardInput(socket)
    socket.once('close', () => this.#waiting.delete(socket))
    this.#waiting.set(socket, () => {
      this.#waiting.delete(socket)
      socket.destroy()
    })
  }

  /** Ends those who wait the longest. One whose request has arrived by then may wait once more, for its client to read. */
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
    // On a machine that is busy its request may have come without having been read.
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
    logger.warn({ listener: share, limit: limits[share] }, 'connections are refused: as many are open as may be')
  }
}

function newShare(): { readonly open: Set<CountedConnection>; readonly idle: Set<CountedConnection> } {
  return { open: new Set(), idle: new Set() }
}

/** Answers and closes in one go, so that no descriptor is held. All that has come of the request must have been read. */
function refuse(socket: Socket, head: Buffer | undefined): void {
  // Closing with unread bytes would reset the connection, and the answer might be lost with it.
  socket.end(busyAnswer(head))
  socket.destroy()
}

function ignore(): void {}

/** Reads what has arrived on a socket that nobody has read from; undefined for nothing, and where there is no plain descriptor. */
function readArrived(socket: Socket): Buffer | undefined {
  const { _handle: handle } = socket as { _handle?: { fd?: unknown } | null }
  if (typeof handle?.fd !== 'number' || handle.fd < 0) return undefined
  const buffer = Buffer.allocUnsafe(16 * 1024)
  try {
    const count = readSync(handle.fd, buffer)
    return count > 0 ? buffer.subarray(0, count) : undefined
  } catch (error) {
    // EAGAIN: nothing has arrived. Any other failure ends the connection as well.
    if (errnoOf(error) === undefined) throw error
    return undefined
  }
}

/** Whether more of a request may come than what has arrived. */
function isUnfinished(head: Buffer): boolean {
  const text = head.toString('latin1')
  return !text.endsWith('\r\n\r\n') || /^(?:content-length:[ \t]*0*[1-9]|transfer-encoding:)/im.test(text)
}

/** Writes the 503. It has a body only for a request that is known to be no HEAD. */
function busyAnswer(head: Buffer | undefined): string {
  const isHead = head === undefined || head.toString('latin1', 0, 5) === 'HEAD '
  const message = 'The mirror has as many connections as it can hold.'
  return formatErrorResponse(new OciError('TOOMANYREQUESTS', 503, message, { 'retry-after': '1' }), { isHead })
}
