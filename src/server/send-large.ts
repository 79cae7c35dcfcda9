import type { IncomingMessage, ServerResponse } from 'node:http'
import { clientBodies } from '../lib/body-memory.ts'
import { BudgetError, type ReserveOptions, type Reservation } from '../lib/memory.ts'
import type { ClientDeparture } from './client-departure.ts'
import { addCommon, sendWhole, type Headers } from './respond.ts'
import { turnOf, writeChunk } from './send/send-blob.ts'

/** Up to this many bytes a body goes out at once, and is not counted. */
const smallBytes = 64 * 1024
/** Bytes a write. */
const chunkBytes = 128 * 1024

/**
 * Ends a response with a whole body, at the client's pace. A large one holds its part of the memory for bodies until the client has
 * it; a client that takes too little while others wait for that memory is cut off, and so is one that takes nothing for `idle` ms.
 * Returns the body bytes that left. Throws a BudgetError before anything is sent.
 */
export async function sendLarge(
  request: IncomingMessage,
  response: ServerResponse,
  headers: Headers,
  body: Uint8Array | string,
  { idle, client }: { readonly idle: number; readonly client: ClientDeparture },
): Promise<number> {
  if (typeof body === 'string' || body.length <= smallBytes || request.method === 'HEAD')
    return sendWhole(request, response, 200, headers, body)
  const { signal } = client
  const reservation = await reserveFor(body.length, { signal, evict: () => response.destroy() })
  try {
    addCommon(headers)
    headers['content-length'] = body.length
    response.writeHead(200, headers)
    await turnOf(response, signal)
    for (let at = 0; at < body.length; at += chunkBytes) {
      const chunk = body.subarray(at, at + chunkBytes)
      await writeChunk(response, chunk, { signal, idle })
      reservation.progress(chunk.length)
    }
    response.end()
    return body.length
  } finally {
    reservation.release()
  }
}

/** Bytes of the bodies that wait for their part. They are in memory already, so that they must not be many. */
let waiting = 0

/** Waits for its turn as everybody does. Throws a BudgetError at once while as much waits as there may be in all. */
async function reserveFor(bytes: number, options: ReserveOptions): Promise<Reservation> {
  if (waiting > 0 && waiting + bytes > clientBodies.bytes) throw new BudgetError()
  waiting += bytes
  try {
    return await clientBodies.reserve(bytes, options)
  } finally {
    waiting -= bytes
  }
}
