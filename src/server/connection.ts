import type { IncomingMessage } from 'node:http'
import type { Socket } from 'node:net'

/** An accepted connection and its requests. */
export interface Connection {
  readonly socket: Socket
  /** Answers that the client waits for. */
  readonly owed: number
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
const mostAhead = 100
/** Memory for requests that wait behind others, of all connections, bytes. No client of registries sends more than one ahead. */
const mostAheadBytes = 4 * 1024 * 1024
/** Memory that a request takes besides its head, bytes. */
const requestBytes = 4096

/** The memory for requests that were sent ahead. */
export class AheadBudget {
  #held = 0

  take(bytes: number): boolean {
    if (this.#held + bytes > mostAheadBytes) return false
    this.#held += bytes
    return true
  }

  give(bytes: number): void {
    this.#held -= bytes
  }
}

interface Taken {
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
  readonly #ahead: AheadBudget
  /** The request that is being answered, and those sent ahead of its answer. */
  readonly #requests: Taken[] = []
  /** Since when it has been idle, `performance.now()`. */
  since = performance.now()

  constructor(
    socket: Socket,
    { isSecure, idle, ahead }: { isSecure: boolean; idle: Set<CountedConnection>; ahead: AheadBudget },
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

  get owed(): number {
    return this.#requests.length
  }

  begin(request: RequestHead, start: () => void): boolean {
    const waiting = this.#requests.length
    if (waiting >= mostAhead || this.socket.destroyed) return false
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
    this.since = performance.now()
    this.#idle.add(this)
  }

  #giveBack(taken: Taken): void {
    this.#ahead.give(taken.aheadBytes)
    taken.aheadBytes = 0
  }
}

/** Characters of a head, roughly. */
function headLength({ url = '', rawHeaders }: RequestHead): number {
  return rawHeaders.reduce((sum, { length }) => sum + length, url.length)
}
