import type { IncomingMessage, ServerResponse } from 'node:http'
import { bodyBudget } from '../lib/memory-budget.ts'
import type { ClientDeparture } from './client-departure.ts'
import { addCommon, sendWhole, type Headers } from './respond.ts'
import { turnOf, writeChunk } from './send-blob.ts'

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
  const reservation = bodyBudget.reserveNow(body.length, { evict: () => response.destroy() })
  try {
    const { signal } = client
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
