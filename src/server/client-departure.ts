import type { IncomingMessage, ServerResponse } from 'node:http'

/** Whether, and when, a client leaves before it has its answer. */
export class ClientDeparture {
  readonly #request: IncomingMessage
  readonly #response: ServerResponse
  #gone: AbortController | undefined

  constructor(request: IncomingMessage, response: ServerResponse) {
    this.#request = request
    this.#response = response
  }

  get hasHappened(): boolean {
    return this.#request.socket.destroyed || this.#response.destroyed || this.#response.closed
  }

  /** Aborts when it happens. Made when it is first asked for: most answers are out before anybody could leave. */
  get signal(): AbortSignal {
    this.#gone ??= this.#watch()
    return this.#gone.signal
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
