import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { extname, join } from 'node:path'
import type { HistoryReport, LiveEvents } from '../../../src/admin/activity.ts'
import type { Seed } from './seed.ts'

export interface SeededServer {
  readonly url: string
  /** Lists the changes that pages have sent, with their bodies. */
  readonly changes: readonly { readonly path: string; readonly body: unknown }[]
  /** Counts the pages that listen. */
  countPages(): number
  /** Sends an event to all pages. */
  send<K extends keyof LiveEvents>(name: K, value: LiveEvents[K]): void
  close(): Promise<void>
}

const policy =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; " +
  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"

const types: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.svg': 'image/svg+xml',
}

/**
 * Serves the built page with the policy of the mirror, and answers its requests with made-up data: for what a real mirror shows only
 * after months, or never. `port` lets a server come back.
 */
export async function startSeededServer(folder: string, seed: Seed, port = 0): Promise<SeededServer> {
  const pages = new Set<ServerResponse>()
  const changes: { path: string; body: unknown }[] = []
  const send = (response: ServerResponse, name: string, value: unknown) =>
    void response.write(`event: ${name}\ndata: ${JSON.stringify(value)}\n\n`)
  const answers: Readonly<Record<string, (query: URLSearchParams) => unknown>> = {
    '/api/session': () => (seed.secret === undefined ? { active: false } : { active: true, secret: seed.secret }),
    '/api/status': () => seed.status,
    '/api/cache': () => seed.images,
    '/api/registry': () => seed.pushed,
    '/api/clients': () => seed.clients,
    '/api/clients/configured': () => ({ clients: seed.configured }),
    '/api/doctor': () => seed.doctor,
    '/api/requests': () => seed.requests,
    '/api/history': (query) => seed.history(query.get('range') as HistoryReport['range']),
  }
  const server = createServer((request, response) => {
    answer(request, response).catch(() => response.destroy())
  })
  const answer = async (request: IncomingMessage, response: ServerResponse) => {
    const { pathname, searchParams } = new URL(request.url!, 'http://mirror')
    if (request.method === 'POST') {
      const chunks = (await request.toArray()) as Buffer[]
      changes.push({ path: pathname, body: JSON.parse(Buffer.concat(chunks).toString() || '{}') })
      return sendJson(
        response,
        (await seed.answer?.(pathname)) ?? {
          images: ['docker.io/library/redis:7'],
          blobs: 8,
          bytes: 45_000_000,
          unknown: [],
        },
      )
    }
    if (pathname === '/api/events') {
      response.writeHead(200, { 'content-type': 'text/event-stream' })
      pages.add(response)
      response.once('close', () => pages.delete(response))
      send(response, 'summary', seed.summary())
      send(response, 'downloads', seed.downloads)
      return
    }
    const find = answers[pathname]
    if (find) return sendJson(response, find(searchParams))
    const file = pathname === '/' ? 'index.html' : pathname.slice(1)
    const body = await readFile(join(folder, file)).catch(() => undefined)
    if (!body) return response.writeHead(404).end()
    response.writeHead(200, {
      'content-type': types[extname(file)],
      'content-security-policy': policy,
      'x-content-type-options': 'nosniff',
    })
    return response.end(body)
  }
  server.listen(port, '127.0.0.1')
  await once(server, 'listening')
  const timer = setInterval(() => {
    for (const page of pages) send(page, 'summary', seed.summary())
  }, 2000)
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    changes,
    countPages: () => pages.size,
    send: (name, value) => {
      for (const page of pages) send(page, name, value)
    },
    async close() {
      clearInterval(timer)
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
}

function sendJson(response: ServerResponse, value: unknown): void {
  response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(value))
}
