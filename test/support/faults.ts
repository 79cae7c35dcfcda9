import { setTimeout as sleep } from 'node:timers/promises'
import { gzipSync } from 'node:zlib'
import { send, type Fault, type Reply } from './faulty-server.ts'

/** Right length, one byte in the middle wrong. */
export const corrupt: Fault = ({ response, reply }) => {
  const body = Buffer.from(reply.body!)
  body[body.length >> 1]! ^= 1
  send(response, { ...reply, body })
}

/** Right length, the byte at this position wrong; from the end where it is negative. */
export function withByteFlipped(at: number): Fault {
  return ({ response, reply }) => {
    const body = Buffer.from(reply.body!)
    body[at < 0 ? body.length + at : at]! ^= 1
    send(response, { ...reply, body })
  }
}

/** A captive portal: 200 and a page, of its own length or of the real body's. */
export function htmlPage(length: 'own' | 'same'): Fault {
  return ({ response, reply }) => {
    const page = Buffer.from('<html><body>Please log in to use this network.</body></html>')
    const body = length === 'own' ? page : Buffer.alloc(reply.body!.length, page)
    send(response, { status: 200, headers: { 'content-type': 'text/html' }, body })
  }
}

/** Another body, framed as it should be. */
export function otherBody(change: (body: Buffer) => Buffer): Fault {
  return ({ response, reply }) => send(response, withBody(reply, change(reply.body!)))
}

/** The connection ends (`end`: politely, `reset`: by RST) after so many bytes of the body. */
export function cutAt(bytes: number, how: 'end' | 'reset' = 'end'): Fault {
  return async ({ response, reply }) => {
    writeHead(response, reply)
    await new Promise((resolve) => response.write(reply.body!.subarray(0, bytes), resolve))
    // What was written must have arrived: a reset overtakes it.
    await sleep(20)
    if (how === 'reset') response.socket?.resetAndDestroy()
    else response.socket?.destroy()
  }
}

/** Nothing more comes after so many bytes of the body, and the connection stays. */
export function stallAt(bytes: number): Fault {
  return ({ response, reply }) => {
    writeHead(response, reply)
    response.write(reply.body!.subarray(0, bytes))
  }
}

/** After so many bytes of the body, the rest comes once `until` has resolved. */
export function heldAt(bytes: number, until: Promise<unknown>): Fault {
  return async ({ response, reply }) => {
    writeHead(response, reply)
    response.write(reply.body!.subarray(0, bytes))
    await until
    response.end(reply.body!.subarray(bytes))
  }
}

/** After so many bytes of the body, a byte comes now and then, and the rest once `until` has resolved. */
export function drippingAt(bytes: number, until: Promise<unknown>): Fault {
  return async ({ response, reply }) => {
    writeHead(response, reply)
    let at = bytes
    response.write(reply.body!.subarray(0, at))
    const over = until.then(() => true)
    while (!(await Promise.race([over, sleep(20, false)])) && !response.destroyed)
      response.write(reply.body!.subarray(at, (at += 1)))
    response.end(reply.body!.subarray(at))
  }
}

/** The body comes at so many bytes a second. */
export function slow(bytesPerSecond: number): Fault {
  return async ({ request, response, reply }) => {
    writeHead(response, reply)
    if (request.method === 'HEAD') return void response.end()
    const step = Math.max(1, Math.round(bytesPerSecond / 50))
    const begun = performance.now()
    for (let at = 0; at < reply.body!.length && !response.destroyed; at += step) {
      await sleep(Math.max(0, begun + (at / bytesPerSecond) * 1000 - performance.now()))
      response.write(reply.body!.subarray(at, at + step))
    }
    response.end()
  }
}

/** Waits, then answers rightly. */
export function late(milliseconds: number): Fault {
  return async ({ response, reply }) => {
    await sleep(milliseconds)
    if (!response.destroyed) send(response, reply)
  }
}

/** The connection stays open and nothing comes. */
export const hang: Fault = () => {}

/** The connection is reset before any answer. */
export const reset: Fault = ({ response }) => void response.socket?.resetAndDestroy()

/** A status with its headers, and a body if any. */
export function status(code: number, headers: Record<string, string> = {}, body = ''): Fault {
  return ({ response }) => send(response, { status: code, headers, body: Buffer.from(body) })
}

/** Each request gets the next fault; when they are used up the server is well. */
export function inTurn(...faults: readonly Fault[]): Fault {
  return (exchange) => {
    const fault = faults[exchange.nth]
    return fault ? fault(exchange) : send(exchange.response, exchange.reply)
  }
}

/** The same fault so many times; then the server is well. */
export function times(count: number, fault: Fault): Fault {
  return inTurn(...Array.from({ length: count }, () => fault))
}

/** The body is sent gzipped, whatever the client accepts. */
export const gzipped: Fault = ({ response, reply }) =>
  send(response, {
    ...withBody(reply, gzipSync(reply.body!)),
    headers: { ...reply.headers, 'content-encoding': 'gzip' },
  })

/** The body is right and not encoded, but said to be. */
export const mislabelledGzip: Fault = ({ response, reply }) =>
  send(response, { ...reply, headers: { ...reply.headers, 'content-encoding': 'gzip' } })

/** Other headers; `undefined` leaves one out. */
export function headers(changed: Record<string, string | undefined>): Fault {
  return ({ response, reply }) => {
    const all = Object.entries({ ...reply.headers, ...changed })
    const kept = all.filter((entry): entry is [string, string] => entry[1] !== undefined)
    send(response, { ...reply, headers: Object.fromEntries(kept) })
  }
}

/** Sends the client, unless it is refused, to the address made for its request. */
export function redirect(target: string | ((path: string) => string), code = 307): Fault {
  return ({ request, response, reply }) => {
    if (reply.status >= 400) return send(response, reply)
    const location = typeof target === 'string' ? target : target(request.url!)
    send(response, { status: code, headers: { location } })
  }
}

/** A body without an end, until the client has enough. */
export const endless: Fault = ({ response, reply }) => {
  response.writeHead(200, { ...reply.headers })
  const chunk = Buffer.alloc(64 * 1024, ' ')
  const more = () => {
    while (!response.destroyed && response.write(chunk));
  }
  response.on('drain', more)
  more()
}

function withBody({ status, headers }: Reply, body: Buffer): Reply {
  return { status, ...(headers ? { headers } : {}), body }
}

function writeHead(response: Parameters<Fault>[0]['response'], { status, headers, body }: Reply): void {
  response.writeHead(status, { 'content-length': String(body?.length ?? 0), ...headers })
  response.flushHeaders()
}
