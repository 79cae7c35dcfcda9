import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { onTestFinished } from 'vitest'

/** An address of each worker, so that the port of a stopped server stays free until it starts again. */
const loopback = process.platform === 'linux' ? `127.0.1.${process.env['VITEST_POOL_ID'] ?? 1}` : '127.0.0.1'

/** A request that the server has received. */
export interface SeenRequest {
  readonly method: string
  /** The path with its query. */
  readonly path: string
  readonly headers: IncomingHttpHeaders
}

/** A response of the server. Default of `content-length`: the length of the body. */
export interface Reply {
  readonly status: number
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: Buffer
}

export interface Exchange {
  readonly request: IncomingMessage
  readonly response: ServerResponse
  /** The response of a healthy server. */
  readonly reply: Reply
  /** Index of the request among those of its rule, from 0. */
  readonly nth: number
}

/** Answers a request instead of the server. */
export type Fault = (exchange: Exchange) => void | Promise<void>

/** Matches a request when every member fits. A string is the path without its query; an expression tests path and query. */
export interface Match {
  readonly method?: string
  readonly path?: string | RegExp
}

export interface FaultyServer {
  readonly url: string
  /** Host and port: `127.0.1.1:40000`. */
  readonly host: string
  /** Every request since the start, oldest first. */
  readonly requests: readonly SeenRequest[]
  count(match?: Match): number
  /** Connections accepted since the start, and those open now. */
  readonly connections: { readonly accepted: number; readonly open: number }
  /** Applies a fault to each request that matches; the latest matching rule applies. Returns a function that removes the rule. */
  on(match: Match, fault: Fault): () => void
  /** Removes every rule. */
  heal(): void
  /** Ends all connections and refuses new ones. */
  stop(): Promise<void>
  /** Accepts connections again, on the same port. */
  start(): Promise<void>
  close(): Promise<void>
}

/** Starts a real HTTP server on a free loopback port that faults can break while it runs, until the test ends. */
export async function startFaultyServer(
  answer: (request: IncomingMessage) => Reply | Promise<Reply>,
): Promise<FaultyServer> {
  const requests: SeenRequest[] = []
  const rules: { match: Match; fault: Fault; seen: number }[] = []
  const sockets = new Set<Socket>()
  let accepted = 0

  async function respond(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const seen = { method: request.method!, path: request.url!, headers: request.headers }
    requests.push(seen)
    const reply = await answer(request)
    const rule = rules.findLast(({ match }) => fits(match, seen))
    if (rule) await rule.fault({ request, response, reply, nth: rule.seen++ })
    else send(response, reply)
  }
  const server = createServer((request, response) => void respond(request, response))
  server.keepAliveTimeout = 60_000
  server.on('connection', (socket) => {
    accepted += 1
    sockets.add(socket)
    socket.on('error', () => {})
    socket.once('close', () => sockets.delete(socket))
  })

  let port = 0
  const start = () => new Promise<void>((resolve) => server.listen(port, loopback, resolve))
  const stop = () =>
    new Promise<void>((resolve) => {
      server.close(() => resolve())
      for (const socket of sockets) socket.destroy()
    })
  await start()
  port = (server.address() as AddressInfo).port
  onTestFinished(stop)

  return {
    url: `http://${loopback}:${port}`,
    host: `${loopback}:${port}`,
    requests,
    count: (match = {}) => requests.filter((seen) => fits(match, seen)).length,
    get connections() {
      return { accepted, open: sockets.size }
    },
    on(match, fault) {
      const rule = { match, fault, seen: 0 }
      rules.push(rule)
      return () => void rules.splice(rules.indexOf(rule), 1)
    },
    heal: () => void rules.splice(0),
    stop,
    start,
    close: stop,
  }
}

/** Sends a reply unchanged. */
export function send(response: ServerResponse, { status, headers, body }: Reply): void {
  response.writeHead(status, { 'content-length': String(body?.length ?? 0), ...headers })
  response.end(response.req.method === 'HEAD' ? undefined : body)
}

function fits({ method, path }: Match, seen: SeenRequest): boolean {
  if (method !== undefined && method !== seen.method) return false
  if (path === undefined) return true
  return typeof path === 'string' ? seen.path.split('?', 1)[0] === path : path.test(seen.path)
}
