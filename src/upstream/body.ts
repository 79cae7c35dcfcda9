import { upstreamBodies } from '../lib/body-memory.ts'
import { JsonError, readJson } from '../lib/json.ts'
import { BudgetError, type Reservation } from '../lib/memory.ts'
import { decodeBytes, encodingOf } from './content-encoding.ts'
import type { Answer } from './transport.ts'
import { UpstreamError } from './upstream.ts'

/** The largest of them takes this long at 140 kB/s. A body that drips never stalls, and others wait for it. */
const longestMs = 120_000

/** Bytes of memory for each byte of a body: itself, and what is read out of it. */
const weight = 2
/** What a body of untold length has to begin with, bytes. */
const firstBytes = 64 * 1024

/** A whole body, and its part of the memory for bodies. */
export interface HeldBody {
  readonly bytes: Uint8Array<ArrayBuffer>
  /** Call it when the bytes are used up, or kept by somebody who counts them himself. */
  release(): void
}

/** The same as `holdSmallBody`, of a body that is used up at once. */
export async function readSmallBody(
  answer: Answer,
  limit: number,
  where: string,
  milliseconds = longestMs,
): Promise<Uint8Array<ArrayBuffer>> {
  const body = await holdSmallBody(answer, limit, where, milliseconds)
  body.release()
  return body.bytes
}

/**
 * A whole body of at most `limit` bytes, decoded where it is really encoded. Throws an UpstreamError (invalid) for a larger one,
 * whose connection is dropped at once, and (unavailable) for one that has not come after `milliseconds`, or that there is no
 * memory for.
 */
export async function holdSmallBody(
  answer: Answer,
  limit: number,
  where: string,
  milliseconds = longestMs,
): Promise<HeldBody> {
  let ended: UpstreamError | undefined
  let reservation: Reservation | undefined
  const end = (error: UpstreamError) => {
    ended ??= error
    answer.discard()
    // It may wait for more.
    reservation?.release()
  }
  const evict = (error: BudgetError) => end(outOfMemory(error))
  const length = lengthOf(answer)
  if (length !== undefined && length > limit) {
    answer.discard()
    throw tooLarge(where, limit)
  }
  let late: NodeJS.Timeout | undefined
  try {
    reservation = await upstreamBodies.reserve(weight * (length ?? Math.min(firstBytes, limit)), {
      evict,
      expected: length,
    })
    // The wait for memory is not the upstream's.
    late = setTimeout(() => {
      const message = `${where} did not send its whole answer within ${Math.ceil(milliseconds / 1000)} s.`
      end(new UpstreamError('unavailable', 504, message))
    }, milliseconds)
    const raw = await readBounded(answer, limit, where, length ?? Math.min(firstBytes, limit), reservation)
    clearTimeout(late)
    reservation.settle()
    const held = reservation
    return { bytes: await decoded(answer, raw, limit, where, held), release: () => held.release() }
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

async function readBounded(
  answer: Answer,
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
      await reservation.grow(weight * more)
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

async function decoded(
  answer: Answer,
  raw: Uint8Array<ArrayBuffer>,
  limit: number,
  where: string,
  reservation: Reservation,
): Promise<Uint8Array<ArrayBuffer>> {
  const encoding = encodingOf(answer)
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

function lengthOf(answer: Answer): number | undefined {
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
