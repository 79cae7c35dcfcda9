import { pipeline } from 'node:stream/promises'
import { promisify } from 'node:util'
import { brotliDecompress, createBrotliDecompress, createUnzip, unzip } from 'node:zlib'
import { codeOf } from '../lib/errors.ts'
import { JsonError, readJson } from '../lib/json.ts'
import { upstreamBodies } from '../lib/body-memory.ts'
import { BudgetError, type Reservation } from '../lib/memory.ts'
import type { TransportResponse } from './transport.ts'
import { UpstreamError } from './upstream.ts'

/** How the wanted bytes are found in an answer to a request for a blob. */
interface BlobPlan {
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
  answer: TransportResponse,
  from: number,
  expectedSize: number | undefined,
  host: string,
): BlobPlan | undefined {
  const length = parseLength(answer.header('content-length'))
  const partial = answer.status === 206
  let total = length
  if (partial) {
    const range = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(answer.header('content-range') ?? '')
    if (!range || Number(range[1]) !== from) {
      answer.discard()
      throw new UpstreamError('invalid', 502, `${host} answered with another part of the blob than was asked for.`)
    }
    total = parseLength(range[2]) ?? (length === undefined ? undefined : from + length)
  }
  const encoding = getContentEncoding(answer)
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
export function readBlob(answer: TransportResponse, plan: BlobPlan, host: string): AsyncIterable<Uint8Array> {
  if (plan.skip === 0 && plan.encoding === undefined) return answer.body
  // A generator that has not begun runs no `finally`, and one that waits for a chunk does not before that has come.
  const chunks = readWantedBytes(answer, plan, host)
  const iterator: AsyncIterator<Uint8Array> = {
    next: () => chunks.next(),
    return() {
      answer.discard()
      return chunks.return(undefined)
    },
  }
  return { [Symbol.asyncIterator]: () => iterator }
}

async function* readWantedBytes(answer: TransportResponse, plan: BlobPlan, host: string): AsyncGenerator<Uint8Array> {
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
export function parseLength(text: string | undefined): number | undefined {
  return text !== undefined && /^\d+$/.test(text) ? Number(text) : undefined
}

/** The largest of them takes this long at 140 kB/s. A body that drips never stalls, and others wait for it. */
const maxBodyMs = 120_000

/** Bytes of memory for each byte of a body: itself, and what is read out of it. */
const memoryPerByte = 2
/** What a body of untold length has to begin with, bytes. */
const initialBytes = 64 * 1024

/** A whole body, and its part of the memory for bodies. */
interface BudgetedBody {
  readonly bytes: Uint8Array<ArrayBuffer>
  /** Call it when the bytes are used up, or kept by somebody who counts them himself. */
  release(): void
}

/** The same as `readBudgetedBody`, of a body that is used up at once. */
export async function readWholeBody(
  answer: TransportResponse,
  limit: number,
  where: string,
  milliseconds = maxBodyMs,
): Promise<Uint8Array<ArrayBuffer>> {
  const body = await readBudgetedBody(answer, limit, where, milliseconds)
  body.release()
  return body.bytes
}

/**
 * A whole body of at most `limit` bytes, decoded where it is really encoded. Throws an UpstreamError (invalid) for a larger one,
 * whose connection is dropped at once, and (unavailable) for one that has not come after `milliseconds`, or that there is no
 * memory for.
 */
export async function readBudgetedBody(
  answer: TransportResponse,
  limit: number,
  where: string,
  milliseconds = maxBodyMs,
): Promise<BudgetedBody> {
  let ended: UpstreamError | undefined
  let reservation: Reservation | undefined
  const end = (error: UpstreamError) => {
    ended ??= error
    answer.discard()
    // It may wait for more.
    reservation?.release()
  }
  const evict = (error: BudgetError) => end(outOfMemory(error))
  const length = getContentLength(answer)
  if (length !== undefined && length > limit) {
    answer.discard()
    throw tooLarge(where, limit)
  }
  let late: NodeJS.Timeout | undefined
  try {
    reservation = await upstreamBodies.reserve(memoryPerByte * (length ?? Math.min(initialBytes, limit)), {
      evict,
      expected: length,
    })
    // The wait for memory is not the upstream's.
    late = setTimeout(() => {
      const message = `${where} did not send its whole answer within ${Math.ceil(milliseconds / 1000)} s.`
      end(new UpstreamError('unavailable', 504, message))
    }, milliseconds)
    const raw = await readRawBody(answer, limit, where, length ?? Math.min(initialBytes, limit), reservation)
    clearTimeout(late)
    reservation.settle()
    const held = reservation
    return { bytes: await decodeUnlessJson(answer, raw, limit, where, held), release: () => held.release() }
  } catch (error) {
    clearTimeout(late)
    reservation?.release()
    if (ended) {
      ended.cause ??= error
      throw ended
    }
    answer.discard()
    throw error instanceof BudgetError ? outOfMemory(error) : error
  }
}

async function readRawBody(
  answer: TransportResponse,
  limit: number,
  where: string,
  reserved: number,
  reservation: Reservation,
): Promise<Uint8Array<ArrayBuffer>> {
  let room = reserved
  // Grows in place: pieces that were kept until the end would wait for the collector, all of them, after every refusal.
  const buffer = new ArrayBuffer(0, { maxByteLength: limit })
  const bytes = new Uint8Array(buffer)
  for await (const chunk of answer.body) {
    const at = buffer.byteLength
    if (at + chunk.length > limit) throw tooLarge(where, limit)
    if (at + chunk.length > room) {
      const more = Math.min(limit, Math.max(2 * room, at + chunk.length)) - room
      await reservation.grow(memoryPerByte * more)
      room += more
    }
    buffer.resize(at + chunk.length)
    bytes.set(chunk, at)
    reservation.progress(chunk.length)
  }
  const whole = bytes.slice()
  buffer.resize(0)
  return whole
}

async function decodeUnlessJson(
  answer: TransportResponse,
  raw: Uint8Array<ArrayBuffer>,
  limit: number,
  where: string,
  reservation: Reservation,
): Promise<Uint8Array<ArrayBuffer>> {
  const encoding = getContentEncoding(answer)
  if (encoding === undefined || (await isJson(raw))) return raw
  await reservation.grow(limit)
  const bytes = await decodeBytes(raw, encoding, limit, where)
  if (!bytes) throw tooLarge(where, limit)
  return new Uint8Array(bytes)
}

async function isJson(bytes: Uint8Array): Promise<boolean> {
  try {
    await readJson(bytes)
    return true
  } catch (error) {
    if (!(error instanceof JsonError)) throw error
    return error.problem !== 'not-json'
  }
}

function getContentLength(answer: TransportResponse): number | undefined {
  const length = Number(answer.header('content-length') ?? NaN)
  return Number.isSafeInteger(length) && length >= 0 ? length : undefined
}

/** No failure of the upstream's: what is cached stands in for it. */
function outOfMemory(error: BudgetError): UpstreamError {
  const { message, retryAfterSeconds } = error
  return new UpstreamError('unavailable', 503, message, { retryAfterSeconds, cause: error })
}

function tooLarge(where: string, limit: number): UpstreamError {
  const shown = `${limit / 1024 / 1024} MiB`
  return new UpstreamError('invalid', 502, `${where} answered with more than ${shown}, which is refused.`)
}

/** The encoding an answer claims in spite of `Accept-Encoding: identity`; some claim it of bytes that were never encoded. */
export function getContentEncoding(answer: TransportResponse): string | undefined {
  const encoding = answer.header('content-encoding')?.trim().toLowerCase()
  return encoding === undefined || encoding === '' || encoding === 'identity' ? undefined : encoding
}

/** An answer's body without its encoding. Throws an UpstreamError (invalid) for what cannot be decoded. */
async function* decodeBody(answer: TransportResponse, encoding: string, where: string): AsyncGenerator<Uint8Array> {
  const decoder = isUnzippable(encoding) ? createUnzip() : encoding === 'br' ? createBrotliDecompress() : undefined
  if (!decoder) {
    answer.discard()
    throw undecodable(where, encoding)
  }
  // Its failure is the decoder's, and is met there.
  pipeline(answer.body, decoder).catch(() => {})
  try {
    for await (const chunk of decoder) yield chunk as Uint8Array
  } catch (error) {
    throw isDecoderError(error) ? undecodable(where, encoding) : error
  } finally {
    answer.discard()
  }
}

/** Bytes without their encoding, at most `limit` of them; undefined when there are more. */
export async function decodeBytes(
  bytes: Uint8Array,
  encoding: string,
  limit: number,
  where: string,
): Promise<Uint8Array | undefined> {
  const options = { maxOutputLength: limit }
  try {
    if (isUnzippable(encoding)) return await promisify(unzip)(bytes, options)
    if (encoding === 'br') return await promisify(brotliDecompress)(bytes, options)
  } catch (error) {
    if (codeOf(error) === 'ERR_BUFFER_TOO_LARGE') return undefined
    if (!isDecoderError(error)) throw error
  }
  throw undecodable(where, encoding)
}

function isUnzippable(encoding: string): boolean {
  return encoding === 'gzip' || encoding === 'x-gzip' || encoding === 'deflate'
}

function isDecoderError(error: unknown): boolean {
  return /^(Z_|ERR_)/.test(codeOf(error) ?? '')
}

function undecodable(where: string, encoding: string): UpstreamError {
  const shown = encoding.replaceAll(/[^\w, .-]/g, '?').slice(0, 40)
  return new UpstreamError('invalid', 502, `${where} answered with a body whose encoding (${shown}) makes no sense.`)
}
