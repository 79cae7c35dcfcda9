import { createServer, type IncomingMessage, type RequestListener, type Server, type ServerResponse } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import type { AddressInfo, Socket } from 'node:net'
import { onTestFinished } from 'vitest'

/** A real HTTP server of one test, and its requests. */
export interface Served {
  readonly url: string
  readonly port: number
  /** Method and path of each request, in order: `GET /v2/…`. */
  readonly log: string[]
  readonly requests: IncomingMessage[]
  readonly sockets: Set<Socket>
  /** Number of connections so far, including those that ended. */
  connections: number
  close(): Promise<void>
}

type Answer = (request: IncomingMessage, response: ServerResponse) => void

/** Serves on 127.0.0.1 until the test ends. */
export async function serve(answer: Answer, tls?: { key: string; cert: string }): Promise<Served> {
  const log: string[] = []
  const requests: IncomingMessage[] = []
  const sockets = new Set<Socket>()
  const listener: RequestListener = (request, response) => {
    log.push(`${request.method} ${request.url}`)
    requests.push(request)
    answer(request, response)
  }
  const server: Server = tls ? createTlsServer(tls, listener) : createServer(listener)
  server.keepAliveTimeout = 60_000
  server.on('connection', (socket: Socket) => {
    served.connections += 1
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  const served: Served = {
    url: `${tls ? 'https' : 'http'}://127.0.0.1:${port}`,
    port,
    log,
    requests,
    sockets,
    connections: 0,
    async close() {
      const closed = new Promise((resolve) => server.close(resolve))
      for (const socket of sockets) socket.destroy()
      await closed
    },
  }
  onTestFinished(() => served.close())
  return served
}

/** Sends a complete response. */
export function reply(
  response: ServerResponse,
  status: number,
  headers: Record<string, string | number> = {},
  body: string | Uint8Array = '',
): void {
  response.writeHead(status, { 'content-length': Buffer.byteLength(body), ...headers })
  response.end(response.req.method === 'HEAD' ? undefined : body)
}

/** Waits until a condition is true. Throws after `ms`. */
export async function eventually(holds: () => boolean, ms = 20_000): Promise<void> {
  const end = performance.now() + ms
  while (!holds() && performance.now() < end) await new Promise((resolve) => setTimeout(resolve, 10))
  if (!holds()) throw new Error('The condition did not become true.')
}
