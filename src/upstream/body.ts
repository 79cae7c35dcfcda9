import { pipeline } from 'node:stream/promises'
import { promisify } from 'node:util'
import { brotliDecompress, createBrotliDecompress, createUnzip, unzip } from 'node:zlib'
import { getCode } from '../lib/errors.ts'
import { JsonError, readJson } from '../lib/json.ts'
import { upstreamBodies } from '../lib/body-memory.ts'
import { BudgetError, type Reservation } from '../lib/memory.ts'
import type { TransportResponse } from './transport.ts'
import { UpstreamError } from './upstream.ts'

/**
 * Limits the time of a body: the largest one arrives in it at 140 kB/s. Without it a slow body would never time out, and would
 * block others.
 */
const maxBodyMs = 120_000
/** Bytes of memory per byte of a body: the byte itself, and what is parsed from it. */
const memoryPerByte = 2
/** Bytes reserved at first for a body of unknown length. */
const initialBytes = 64 * 1024

/** Locates the requested bytes in a response to a request for a blob. */
interface BlobPlan {
  /** Bytes of the whole blob. */
  readonly size: number | undefined
  /** Bytes to skip before the requested ones. */
  readonly skip: number
  readonly encoding: string | undefined
}

/**
 * Reads the head of a 200 or 206 response to a request for the bytes from `from` on. Undefined for a part of an encoded body, which
 * cannot be decoded alone. Throws an UpstreamError (invalid) for a part that was not requested.
 */
export function planBlob(
  response: TransportResponse,
  from: number,
  expectedSize: number | undefined,
  host: string,
): BlobPlan | undefined {
  const length = parseLength(response.header('content-length'))
  const partial = response.status === 206
  let total = length
  if (partial) {
    const range = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(response.header('content-range') ?? '')
    if (!range || Number(range[1]) !== from) {
      response.discard()
      throw new UpstreamError('invalid', 502, `${host} answered with a part of the blob that was not requested.`)
    }
    total = parseLength(range[2]) ?? (length === undefined ? undefined : from + length)
  }
  const encoding = getContentEncoding(response)
  // Storage often sends the encoding of the layer itself: a body of the expected size is the blob, not an encoding of it.
  if (encoding === undefined || (expectedSize !== undefined && total === expectedSize)) {
    return { size: total, skip: partial ? 0 : from, encoding: undefined }
  }
  return partial ? undefined : { size: expectedSize, skip: from, encoding }
}

/**
 * Returns the requested bytes, to be read once. Throws an UpstreamError when they break off or cannot be decoded. The iterator's
 * `return` discards the response at any time: before the first chunk is read, and while a read is pending.
 */
export function readBlob(response: TransportResponse, plan: BlobPlan, host: string): AsyncIterable<Uint8Array> {
  if (plan.skip === 0 && plan.encoding === undefined) return response.body
  // A generator runs no `finally` before its first `next`, nor while it waits for a chunk.
  const chunks = readWantedBytes(response, plan, host)
  const iterator: AsyncIterator<Uint8Array> = {
    next: () => chunks.next(),
    return() {
      response.discard()
      return chunks.return(undefined)
    },
  }
  return { [Symbol.asyncIterator]: () => iterator }
}

async function* readWantedBytes(response: TransportResponse, plan: BlobPlan, host: string): AsyncGenerator<Uint8Array> {
  let skip = plan.skip
  const body = plan.encoding === undefined ? response.body : decodeBody(response, plan.encoding, host)
  for await (const chunk of body) {
    if (skip >= chunk.length) {
      skip -= chunk.length
      continue
    }
    yield skip === 0 ? chunk : chunk.subarray(skip)
    skip = 0
  }
}

/** Parses the number in a header such as Content-Length; undefined for any other text. */
export function parseLength(text: string | undefined): number | undefined {
  return text !== undefined && /^\d+$/.test(text) ? Number(text) : undefined
}

/** Does the same as `readBudgetedBody`, for a body that is used at once. */
export async function readWholeBody(
  response: TransportResponse,
  limit: number,
  where: string,
  milliseconds = maxBodyMs,
): Promise<Uint8Array<ArrayBuffer>> {
  const body = await readBudgetedBody(response, limit, where, milliseconds)
  body.release()
  return body.bytes
}

/**
 * Reads a whole body of at most `limit` bytes, which counts for the memory budget for bodies, and decodes it where it is really
 * encoded. Throws an UpstreamError: invalid for a larger
 * body, whose connection is closed at once; unavailable for a body that is incomplete after `milliseconds`, or when there is no memory
 * for it.
 */
export async function readBudgetedBody(
  response: TransportResponse,
  limit: number,
  where: string,
  milliseconds = maxBodyMs,
) {
  let ended: UpstreamError | undefined
  let reservation: Reservation | undefined
  const end = (error: UpstreamError) => {
    ended ??= error
    response.discard()
    // Releases it here, because it may be waiting for more memory.
    reservation?.release()
  }
  const evict = (error: BudgetError) => end(createOutOfMemoryError(error))
  const length = getContentLength(response)
  if (length !== undefined && length > limit) {
    response.discard()
    throw createTooLargeError(where, limit)
  }
  let late: NodeJS.Timeout | undefined
  try {
    reservation = await upstreamBodies.reserve(memoryPerByte * (length ?? Math.min(initialBytes, limit)), {
      evict,
      expected: length,
    })
    // Starts after the reservation, because the upstream does not cause the wait for memory.
    late = setTimeout(() => {
      const message = `${where} did not send its whole answer within ${Math.ceil(milliseconds / 1000)} s.`
      end(new UpstreamError('unavailable', 504, message))
    }, milliseconds)
    const raw = await readRawBody(response, limit, where, length ?? Math.min(initialBytes, limit), reservation)
    clearTimeout(late)
    reservation.settle()
    const budgeted = reservation
    return {
      bytes: await decodeUnlessJson(response, raw, limit, where, budgeted),
      /** Returns the memory: when the bytes are no longer used, or when their new owner counts them itself. */
      release: () => budgeted.release(),
    }
  } catch (error) {
    clearTimeout(late)
    reservation?.release()
    if (ended) {
      ended.cause ??= error
      throw ended
    }
    response.discard()
    throw error instanceof BudgetError ? createOutOfMemoryError(error) : error
  }
}

async function readRawBody(
  response: TransportResponse,
  limit: number,
  where: string,
  reserved: number,
  reservation: Reservation,
): Promise<Uint8Array<ArrayBuffer>> {
  let room = reserved
  // Grows in place, because separate chunks would wait for the garbage collector after every refusal.
  const buffer = new ArrayBuffer(0, { maxByteLength: limit })
  const bytes = new Uint8Array(buffer)
  for await (const chunk of response.body) {
    const at = buffer.byteLength
    if (at + chunk.length > limit) throw createTooLargeError(where, limit)
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
  response: TransportResponse,
  raw: Uint8Array<ArrayBuffer>,
  limit: number,
  where: string,
  reservation: Reservation,
): Promise<Uint8Array<ArrayBuffer>> {
  const encoding = getContentEncoding(response)
  if (encoding === undefined || (await isJson(raw))) return raw
  await reservation.grow(limit)
  const bytes = await decodeBytes(raw, encoding, limit, where)
  if (!bytes) throw createTooLargeError(where, limit)
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

function getContentLength(response: TransportResponse): number | undefined {
  const length = Number(response.header('content-length') ?? NaN)
  return Number.isSafeInteger(length) && length >= 0 ? length : undefined
}

/** Reports the mirror's own lack of memory as an outage, so that cached content is served instead. */
function createOutOfMemoryError(error: BudgetError): UpstreamError {
  const { message, retryAfterSeconds } = error
  return new UpstreamError('unavailable', 503, message, { retryAfterSeconds, cause: error })
}

function createTooLargeError(where: string, limit: number): UpstreamError {
  const shown = `${limit / 1024 / 1024} MiB`
  return new UpstreamError('invalid', 502, `${where} answered with more than ${shown}, which is refused.`)
}

/** Returns the encoding that a response claims in spite of `Accept-Encoding: identity`; some claim it for bytes that are not encoded. */
export function getContentEncoding(response: TransportResponse): string | undefined {
  const encoding = response.header('content-encoding')?.trim().toLowerCase()
  return encoding === undefined || encoding === '' || encoding === 'identity' ? undefined : encoding
}

/** Decodes a response's body. Throws an UpstreamError (invalid) for a body that cannot be decoded. */
async function* decodeBody(response: TransportResponse, encoding: string, where: string): AsyncGenerator<Uint8Array> {
  const decoder = isUnzippable(encoding) ? createUnzip() : encoding === 'br' ? createBrotliDecompress() : undefined
  if (!decoder) {
    response.discard()
    throw createUndecodableError(where, encoding)
  }
  // Source errors surface through the decoder stream.
  pipeline(response.body, decoder).catch(() => {})
  try {
    for await (const chunk of decoder) yield chunk as Uint8Array
  } catch (error) {
    throw isDecoderError(error) ? createUndecodableError(where, encoding) : error
  } finally {
    response.discard()
  }
}

/** Decodes bytes, to at most `limit` bytes; undefined when there are more. Throws an UpstreamError (invalid) for broken bytes. */
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
    if (getCode(error) === 'ERR_BUFFER_TOO_LARGE') return undefined
    if (!isDecoderError(error)) throw error
  }
  throw createUndecodableError(where, encoding)
}

function isUnzippable(encoding: string): boolean {
  return encoding === 'gzip' || encoding === 'x-gzip' || encoding === 'deflate'
}

function isDecoderError(error: unknown): boolean {
  return /^(Z_|ERR_)/.test(getCode(error) ?? '')
}

function createUndecodableError(where: string, encoding: string): UpstreamError {
  const shown = encoding.replaceAll(/[^\w, .-]/g, '?').slice(0, 40)
  return new UpstreamError('invalid', 502, `${where} answered with a body that cannot be decoded (${shown}).`)
}
