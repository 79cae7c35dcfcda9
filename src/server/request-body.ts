import type { IncomingMessage } from 'node:http'
import { deferred } from '../lib/async.ts'
import { clientBodies, createBufferRelease } from '../lib/body-memory.ts'
import { type BudgetError, type MemoryBudget } from '../lib/memory.ts'
import { OciError } from '../oci/errors.ts'

/** A body must bring so much within every idle time: one that drips a byte now and then is not alive. */
const minProgressBytes = 1024

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
      if (arrived >= minProgressBytes) {
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

/** Bytes of memory for each byte of a body that is read as a whole: itself, and what is read out of it. */
const memoryPerByte = 2
const release = createBufferRelease()

/**
 * Reads all of a small body, and holds memory of the budget for it until `use` has ended. Throws an OciError 413 for a body that is
 * larger than the limit, and a BudgetError when there is no memory for it, or it comes too slowly while others wait.
 */
export async function withSmallBody<T>(
  request: IncomingMessage,
  { limit, idle, budget = clientBodies }: { limit: number; idle: number; budget?: MemoryBudget },
  use: (bytes: Buffer) => Promise<T> | T,
): Promise<T> {
  const told = bodyLength(request)
  if (told !== undefined && told > limit) throw tooLarge(limit)
  const body = readBody(request, idle)
  // A client that only announces a body gets no memory for it.
  const first = await body.next()
  if (first.done) return use(Buffer.alloc(0))
  const isWhole = request.complete && request.readableLength === 0
  const length = told ?? (isWhole ? first.value.length : undefined)
  const gone = new AbortController()
  const leave = () => gone.abort(new Error('the client is gone'))
  // A request closes as well when all of it was read, which may be before it is let in.
  const { socket } = request
  if (socket.destroyed) leave()
  socket.once('close', leave)
  const evicted = deferred<never>()
  evicted.promise.catch(() => {})
  try {
    const evict = (error: BudgetError) => evicted.reject(error)
    const options = { signal: gone.signal, evict, expected: length }
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

/** All of a small body, as `withSmallBody` reads it; for one that is used up at once. */
export function readSmallBody(request: IncomingMessage, limit: number, idle: number): Promise<Buffer> {
  return withSmallBody(request, { limit, idle }, (bytes) => bytes)
}

/** Settles as the first of the two. A later failure of the other one is ignored. */
function raceEviction<T>(one: Promise<T>, other: Promise<never>): Promise<T> {
  one.catch(() => {})
  return Promise.race([one, other])
}

/** The answer to a request for which there is no memory now. */
export function tooBusy({ message, retryAfterSeconds }: BudgetError): OciError {
  return new OciError('TOOMANYREQUESTS', 503, message, { 'retry-after': String(retryAfterSeconds) })
}

/** Whether a request announces a body. */
export function hasBody(request: IncomingMessage): boolean {
  return request.headers['transfer-encoding'] !== undefined || (bodyLength(request) ?? 0) > 0
}

/** The length that a request announces for its body; undefined where it announces none. */
export function bodyLength({ headers }: IncomingMessage): number | undefined {
  const length = headers['content-length']
  return length === undefined ? undefined : Number(length)
}

function tooLarge(limit: number): OciError {
  return new OciError('SIZE_INVALID', 413, `It is larger than ${limit} bytes.`)
}

/** Collects a body in one buffer. Pieces that were joined at the end would take the memory twice. */
class BodyBuffer {
  readonly #limit: number
  readonly #buffer: ArrayBuffer
  readonly #isSized: boolean
  #size = 0

  /** `length`: of the body, where the client has announced it. */
  constructor(length: number | undefined, limit: number) {
    this.#limit = length ?? limit
    this.#isSized = length !== undefined
    this.#buffer = this.#isSized ? new ArrayBuffer(this.#limit) : new ArrayBuffer(0, { maxByteLength: limit })
  }

  add(chunk: Uint8Array): void {
    const size = this.#size + chunk.length
    if (size > this.#limit) throw tooLarge(this.#limit)
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
