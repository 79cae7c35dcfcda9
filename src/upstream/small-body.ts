import { decodeBytes, encodingOf } from './content-encoding.ts'
import type { Answer } from './exchange.ts'
import { UpstreamError } from './upstream.ts'

/** The largest of them takes this long at 140 kB/s. A body that drips never stalls, and others wait for it. */
const longestMs = 120_000

/**
 * A whole body of at most `limit` bytes, decoded where it is really encoded. Throws an UpstreamError (invalid) for a larger one,
 * whose connection is dropped at once, and (unavailable) for one that has not come after `milliseconds`.
 */
export async function readSmallBody(
  answer: Answer,
  limit: number,
  where: string,
  milliseconds = longestMs,
): Promise<Uint8Array<ArrayBuffer>> {
  let isLate = false
  const late = setTimeout(() => {
    isLate = true
    answer.discard()
  }, milliseconds)
  let raw: Uint8Array<ArrayBuffer>
  try {
    raw = await readBounded(answer, limit, where)
  } catch (error) {
    if (!isLate) throw error
    const message = `${where} did not send its whole answer within ${Math.ceil(milliseconds / 1000)} s.`
    throw new UpstreamError('unavailable', 504, message, { cause: error })
  } finally {
    clearTimeout(late)
  }
  const encoding = encodingOf(answer)
  if (encoding === undefined || isJson(raw)) return raw
  const decoded = await decodeBytes(raw, encoding, limit, where)
  if (!decoded) throw tooLarge(where, limit)
  return new Uint8Array(decoded)
}

async function readBounded(answer: Answer, limit: number, where: string): Promise<Uint8Array<ArrayBuffer>> {
  if (Number(answer.header('content-length') ?? 0) > limit) {
    answer.discard()
    throw tooLarge(where, limit)
  }
  // Grows in place: pieces that were kept until the end would wait for the collector, all of them, after every refusal.
  const buffer = new ArrayBuffer(0, { maxByteLength: limit })
  const bytes = new Uint8Array(buffer)
  for await (const chunk of answer.body) {
    const at = buffer.byteLength
    if (at + chunk.length > limit) throw tooLarge(where, limit)
    buffer.resize(at + chunk.length)
    bytes.set(chunk, at)
  }
  return bytes.slice()
}

function isJson(bytes: Uint8Array): boolean {
  try {
    JSON.parse(new TextDecoder().decode(bytes))
    return true
  } catch {
    return false
  }
}

function tooLarge(where: string, limit: number): UpstreamError {
  const shown = `${limit / 1024 / 1024} MiB`
  return new UpstreamError('invalid', 502, `${where} answered with more than ${shown}, which is refused.`)
}
