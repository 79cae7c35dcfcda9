import type { IncomingMessage } from 'node:http'
import { parseRange } from '../../src/server/blobs.ts'
import type { Reply } from './faulty-server.ts'

/** Returns the requested range of a body with 206, or the whole body with 200. */
export function ranged(request: IncomingMessage, body: Buffer, headers: Record<string, string>): Reply {
  const range = parseRange(request.headers.range, body.length)
  if (range === undefined) return { status: 200, headers, body }
  if (range === 'unsatisfiable') return { status: 416, headers: { 'content-range': `bytes */${body.length}` } }
  const { start, end } = range
  return {
    status: 206,
    headers: { ...headers, 'content-range': `bytes ${start}-${end}/${body.length}` },
    body: body.subarray(start, end + 1),
  }
}
