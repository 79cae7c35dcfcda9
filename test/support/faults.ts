import { setTimeout as sleep } from 'node:timers/promises'
import { gzipSync } from 'node:zlib'
import { send, type Fault, type Reply } from './faulty-server.ts'

/** Sends the body with one wrong byte in the middle. */
export const corrupt: Fault = ({ response, reply }) => {
  const body = Buffer.from(reply.body!)
  body[body.length >> 1]! ^= 1
  send(response, { ...reply, body })
}

/** Sends the body with a wrong byte at this position; a negative position counts from the end. */
export function withByteFlipped(at: number): Fault {
  return ({ response, reply }) => {
    const body = Buffer.from(reply.body!)
    body[at < 0 ? body.length + at : at]! ^= 1
    send(response, { ...reply, body })
  }
}

/** Sends 200 and a page, as a captive portal does, with its own length or that of the real body. */
export function htmlPage(length: 'own' | 'same'): Fault {
  return ({ response, reply }) => {
    const page = Buffer.from('<html><body>Please log in to use this network.</body></html>')
    const body = length === 'own' ? page : Buffer.alloc(reply.body!.length, page)
    send(response, { status: 200, headers: { 'content-type': 'text/html' }, body })
  }
}

/** Sends another body with correct framing. */
export function otherBody(change: (body: Buffer) => Buffer): Fault {
  return ({ response, reply }) => send(response, withBody(reply, change(reply.body!)))
}

/** Ends the connection after so many bytes of the body; `end`: with FIN, `reset`: with RST. */
export function cutAt(bytes: number, how: 'end' | 'reset' = 'end'): Fault {
  return async ({ response, reply }) => {
    writeHead(response, reply)
    await new Promise((resolve) => response.write(reply.body!.subarray(0, bytes), resolve))
    // Wait until the bytes have arrived, because a reset overtakes them.
    await sleep(20)
    if (how === 'reset') response.socket?.resetAndDestroy()
    else response.socket?.destroy()
  }
}

/** Sends nothing more after so many bytes of the body, and keeps the connection open. */
export function stallAt(bytes: number): Fault {
  return ({ response, reply }) => {
    writeHead(response, reply)
    response.write(reply.body!.subarray(0, bytes))
  }
}

/** Holds the body after so many bytes, and sends the rest when `until` has resolved. */
export function heldAt(bytes: number, until: Promise<unknown>): Fault {
  return async ({ response, reply }) => {
    writeHead(response, reply)
    response.write(reply.body!.subarray(0, bytes))
    await until
    response.end(reply.body!.subarray(bytes))
  }
}

/** Sends single bytes after so many bytes of the body, and the rest when `until` has resolved. */
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

/** Sends the body at so many bytes a second. */
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

/** Waits, then sends the correct reply. */
export function late(milliseconds: number): Fault {
  return async ({ response, reply }) => {
    await sleep(milliseconds)
    if (!response.destroyed) send(response, reply)
  }
}

/** Keeps the connection open and sends nothing. */
export const hang: Fault = () => {}

/** Resets the connection before any response. */
export const reset: Fault = ({ response }) => void response.socket?.resetAndDestroy()

/** Sends a status with these headers and this body. */
export function status(code: number, headers: Record<string, string> = {}, body = ''): Fault {
  return ({ response }) => send(response, { status: code, headers, body: Buffer.from(body) })
}

/** Applies one fault to each request, in order; after the last one the server is healthy. */
export function inTurn(...faults: readonly Fault[]): Fault {
  return (exchange) => {
    const fault = faults[exchange.nth]
    return fault ? fault(exchange) : send(exchange.response, exchange.reply)
  }
}

/** Applies the same fault so many times; then the server is healthy. */
export function times(count: number, fault: Fault): Fault {
  return inTurn(...Array.from({ length: count }, () => fault))
}

/** Sends the body gzipped, whatever the client accepts. */
export const gzipped: Fault = ({ response, reply }) =>
  send(response, {
    ...withBody(reply, gzipSync(reply.body!)),
    headers: { ...reply.headers, 'content-encoding': 'gzip' },
  })

/** Sends the plain body with `Content-Encoding: gzip`. */
export const mislabelledGzip: Fault = ({ response, reply }) =>
  send(response, { ...reply, headers: { ...reply.headers, 'content-encoding': 'gzip' } })

/** Sends the reply with changed headers; `undefined` removes one. */
export function headers(changed: Record<string, string | undefined>): Fault {
  return ({ response, reply }) => {
    const all = Object.entries({ ...reply.headers, ...changed })
    const kept = all.filter((entry): entry is [string, string] => entry[1] !== undefined)
    send(response, { ...reply, headers: Object.fromEntries(kept) })
  }
}

/** Redirects the client to this address, unless the reply is an error. */
export function redirect(target: string | ((path: string) => string), code = 307): Fault {
  return ({ request, response, reply }) => {
    if (reply.status >= 400) return send(response, reply)
    const location = typeof target === 'string' ? target : target(request.url!)
    send(response, { status: code, headers: { location } })
  }
}

/** Sends a body without an end until the client closes the connection. */
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
