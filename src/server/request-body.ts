import type { IncomingMessage } from 'node:http'
import { OciError } from '../oci/errors.ts'

/** A body must bring so much within every idle time: one that drips a byte now and then is not alive. */
const leastBytes = 1024

const received = new WeakMap<IncomingMessage, number>()

/** Bytes of the body that were read. */
export function receivedBytes(request: IncomingMessage): number {
  return received.get(request) ?? 0
}

/**
 * The body of a request as it comes, at the reader's pace. There is no limit on the whole; a client that has kept us waiting
 * for `idle` ms is cut off. Time that the reader takes is not the client's.
 */
export async function* readBody(request: IncomingMessage, idle: number): AsyncGenerator<Buffer, void> {
  let arrived = 0
  let patience = idle
  let waitingSince = performance.now()
  const hangUp = () => void request.destroy(new Error('the client stopped sending'))
  let watch = setTimeout(hangUp, patience)
  try {
    // Leaving a stream early destroys it by default, and with it the connection that is to carry the answer.
    for await (const chunk of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
      clearTimeout(watch)
      patience -= performance.now() - waitingSince
      arrived += chunk.length
      received.set(request, receivedBytes(request) + chunk.length)
      if (arrived >= leastBytes) {
        arrived = 0
        patience = idle
      }
      yield chunk
      waitingSince = performance.now()
      watch = setTimeout(hangUp, Math.max(0, patience))
    }
  } finally {
    clearTimeout(watch)
  }
}

/** All of a small body. Throws an OciError 413 when it is larger than the limit. */
export async function readSmallBody(request: IncomingMessage, limit: number, idle: number): Promise<Buffer> {
  const tooLarge = () => new OciError('SIZE_INVALID', 413, `It is larger than ${limit} bytes.`)
  if (Number(request.headers['content-length'] ?? 0) > limit) throw tooLarge()
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of readBody(request, idle)) {
    size += chunk.length
    if (size > limit) throw tooLarge()
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

const drainMs = 5000

/** Lets a client that is still sending read its answer: takes what comes for a while, then hangs up. */
export function drainBody(request: IncomingMessage): void {
  if (request.complete) return
  request.resume()
  const hangUp = setTimeout(() => request.destroy(), drainMs)
  hangUp.unref()
  request.once('close', () => clearTimeout(hangUp))
}
