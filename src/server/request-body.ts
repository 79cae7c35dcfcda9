import type { IncomingMessage } from 'node:http'
import { createDeferred } from '../lib/async.ts'
import { clientBodies, createBufferRelease } from '../lib/body-memory.ts'
import { type BudgetError, type MemoryBudget } from '../lib/memory.ts'
import { OciError } from '../oci/errors.ts'
import { getBodyLength } from './connection.ts'

/** Bytes that must arrive within every idle time, so that a client that sends a byte now and then is disconnected too. */
const minProgressBytes = 1024
const received = new WeakMap<IncomingMessage, number>()
/** Bytes of memory per byte of a body that is read as a whole: the byte itself, and what is parsed from it. */
const memoryPerByte = 2
const release = createBufferRelease()

/** Returns the number of body bytes that were read. */
export function getReceivedBytes(request: IncomingMessage): number {
  return received.get(request) ?? 0
}

/**
 * Reads the body of a request at the reader's pace, without a limit on its size. A client that keeps the reader waiting for `idle` ms
 * is disconnected; the reader's own time does not count.
 */
export async function* readBody(request: IncomingMessage, idle: number): AsyncGenerator<Buffer, void> {
  let arrived = 0
  let remainingMs = idle
  let waitingSince = performance.now()
  const hangUp = () => void request.destroy(new Error('the client stopped sending'))
  let watch = setTimeout(hangUp, remainingMs)
  try {
    // Keeps the stream when the reader stops early, because destroying it would end the connection that carries the response.
    for await (const chunk of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
      clearTimeout(watch)
      remainingMs -= performance.now() - waitingSince
      arrived += chunk.length
      received.set(request, getReceivedBytes(request) + chunk.length)
      if (arrived >= minProgressBytes) {
        arrived = 0
        remainingMs = idle
      }
      yield chunk
      waitingSince = performance.now()
      watch = setTimeout(hangUp, Math.max(0, remainingMs))
    }
  } finally {
    clearTimeout(watch)
  }
}

/**
 * Reads the whole of a small body, and reserves memory of the budget for it until `use` ends. Throws an OciError 413 for a body larger
 * than `limit` bytes, and a BudgetError when there is no memory for it, or when it arrives too slowly while others wait.
 */
export async function withSmallBody<T>(
  request: IncomingMessage,
  { limit, idle, budget = clientBodies }: { limit: number; idle: number; budget?: MemoryBudget },
  use: (bytes: Buffer) => Promise<T> | T,
): Promise<T> {
  const announced = getBodyLength(request)
  if (announced !== undefined && announced > limit) throw createTooLargeError(limit)
  const body = readBody(request, idle)
  // Reserves memory only after the first bytes, because an announcement alone proves no body.
  const first = await body.next()
  if (first.done) return use(Buffer.alloc(0))
  const isWhole = request.complete && request.readableLength === 0
  const length = announced ?? (isWhole ? first.value.length : undefined)
  const departure = new AbortController()
  const leave = () => departure.abort(new Error('the client is gone'))
  // Listens to the socket, because the request also closes when it is read completely, perhaps before its reservation.
  const { socket } = request
  if (socket.destroyed) leave()
  socket.once('close', leave)
  const evicted = createDeferred<never>()
  evicted.promise.catch(() => {})
  try {
    const evict = (error: BudgetError) => evicted.reject(error)
    const options = { signal: departure.signal, evict, expected: length }
    const reservation = await budget.reserve(memoryPerByte * (length ?? limit), options)
    try {
      const bytes = new BodyBuffer(length, limit)
      let chunk: IteratorResult<Buffer, void> = first
      for (; !chunk.done; chunk = await raceEviction(body.next(), evicted.promise)) {
        reservation.progress(chunk.value.length)
        bytes.add(chunk.value)
        release([chunk.value])
      }
      reservation.settle()
      return await use(bytes.all())
    } finally {
      reservation.release()
    }
  } finally {
    socket.off('close', leave)
    body.return().catch(() => {})
  }
}

/** Reads the whole of a small body like `withSmallBody`, for a body that is used at once. */
export function readSmallBody(request: IncomingMessage, limit: number, idle: number): Promise<Buffer> {
  return withSmallBody(request, { limit, idle }, (bytes) => bytes)
}

/** Settles as the first of the two promises does. A later failure of `one` is ignored. */
function raceEviction<T>(one: Promise<T>, other: Promise<never>): Promise<T> {
  one.catch(() => {})
  return Promise.race([one, other])
}

/** Creates the 503 for a request for which there is no memory. */
export function toBusyError({ message, retryAfterSeconds }: BudgetError): OciError {
  return new OciError('TOOMANYREQUESTS', 503, message, { 'retry-after': String(retryAfterSeconds) })
}

function createTooLargeError(limit: number): OciError {
  return new OciError('SIZE_INVALID', 413, `The body is larger than ${limit} bytes.`)
}

/** Collects a body in one buffer, because joining separate chunks would take the memory twice. */
class BodyBuffer {
  readonly #limit: number
  readonly #buffer: ArrayBuffer
  readonly #isSized: boolean
  #size = 0

  /** `length`: the announced length of the body, if any. */
  constructor(length: number | undefined, limit: number) {
    this.#limit = length ?? limit
    this.#isSized = length !== undefined
    this.#buffer = this.#isSized ? new ArrayBuffer(this.#limit) : new ArrayBuffer(0, { maxByteLength: limit })
  }

  add(chunk: Uint8Array): void {
    const size = this.#size + chunk.length
    if (size > this.#limit) throw createTooLargeError(this.#limit)
    if (!this.#isSized) this.#buffer.resize(size)
    new Uint8Array(this.#buffer).set(chunk, this.#size)
    this.#size = size
  }

  all(): Buffer {
    if (this.#isSized) return Buffer.from(this.#buffer, 0, this.#size)
    const copy = Buffer.from(this.#buffer.slice(0))
    this.#buffer.resize(0)
    return copy
  }
}
