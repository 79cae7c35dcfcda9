import { decodeBody, encodingOf } from './content-encoding.ts'
import type { Answer } from './transport.ts'
import { UpstreamError } from './upstream.ts'

/** How the wanted bytes are found in an answer to a request for a blob. */
export interface BlobPlan {
  /** Bytes of the whole blob. */
  readonly size: number | undefined
  /** Bytes that come before the wanted ones. */
  readonly skip: number
  readonly encoding: string | undefined
}

/**
 * Reads the head of a 200 or 206 answer to a request for everything from byte `from` on. `undefined`: it is a part of an encoded
 * body, of which only the whole is of use. Throws an UpstreamError (invalid) for a part that was not asked for.
 */
export function planBlob(
  answer: Answer,
  from: number,
  expectedSize: number | undefined,
  host: string,
): BlobPlan | undefined {
  const length = numberOf(answer.header('content-length'))
  const partial = answer.status === 206
  let total = length
  if (partial) {
    const range = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(answer.header('content-range') ?? '')
    if (!range || Number(range[1]) !== from) {
      answer.discard()
      throw new UpstreamError('invalid', 502, `${host} answered with another part of the blob than was asked for.`)
    }
    total = numberOf(range[2]) ?? (length === undefined ? undefined : from + length)
  }
  const encoding = encodingOf(answer)
  // Storage often carries a label meant for the layer inside: bytes of the right number are the blob itself.
  if (encoding === undefined || (expectedSize !== undefined && total === expectedSize)) {
    return { size: total, skip: partial ? 0 : from, encoding: undefined }
  }
  return partial ? undefined : { size: expectedSize, skip: from, encoding }
}

/**
 * The wanted bytes, once. Throws an UpstreamError when they break off or cannot be decoded. Its iterator's `return` lets go of
 * the answer whenever it is called: before the first byte was asked for, and while one is waited for.
 */
export function readBlob(answer: Answer, plan: BlobPlan, host: string): AsyncIterable<Uint8Array> {
  if (plan.skip === 0 && plan.encoding === undefined) return answer.body
  // A generator that has not begun runs no `finally`, and one that waits for a chunk does not before that has come.
  const chunks = wantedBytes(answer, plan, host)
  const iterator: AsyncIterator<Uint8Array> = {
    next: () => chunks.next(),
    return() {
      answer.discard()
      return chunks.return(undefined)
    },
  }
  return { [Symbol.asyncIterator]: () => iterator }
}

async function* wantedBytes(answer: Answer, plan: BlobPlan, host: string): AsyncGenerator<Uint8Array> {
  let skip = plan.skip
  const body = plan.encoding === undefined ? answer.body : decodeBody(answer, plan.encoding, host)
  for await (const chunk of body) {
    if (skip >= chunk.length) {
      skip -= chunk.length
      continue
    }
    yield skip === 0 ? chunk : chunk.subarray(skip)
    skip = 0
  }
}

/** The number in a header such as Content-Length. */
export function numberOf(text: string | undefined): number | undefined {
  return text !== undefined && /^\d+$/.test(text) ? Number(text) : undefined
}
