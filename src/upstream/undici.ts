import { deferred, type Deferred } from '../lib/async.ts'

/** What can be done with a response that is under way. */
export interface ResponseControl {
  pause(): void
  resume(): void
  /** Ends its connection. */
  abort(reason: Error): void
}

export interface ResponseBodyOptions {
  readonly control: ResponseControl
  /** The reason for a body that broke off, as its reader shall have it. */
  readonly explain: (error: unknown) => Error
  /** Called once, when nothing more will come. */
  readonly onClose: () => void
}

/** Bytes that wait for the reader; beyond that the upstream waits. */
const mostWaiting = 256 * 1024

/** A body as it comes from the network, to be read once: without a stream between, which would cost more than all the rest. */
export class ResponseBody implements AsyncIterableIterator<Uint8Array> {
  readonly #options: ResponseBodyOptions
  readonly #chunks: Uint8Array[] = []
  #bytes = 0
  #paused = false
  #closed = false
  #failure: { readonly error: unknown } | undefined
  #reader: Deferred<IteratorResult<Uint8Array>> | undefined
  /** Bytes that may still be read for nobody; undefined for a body that somebody reads. */
  #unwanted: number | undefined
  #late: NodeJS.Timeout | undefined

  constructor(options: ResponseBodyOptions) {
    this.#options = options
  }

  [Symbol.asyncIterator](): this {
    return this
  }

  next(): Promise<IteratorResult<Uint8Array>> {
    const chunk = this.#chunks.shift()
    if (chunk) {
      this.#bytes -= chunk.length
      if (this.#bytes < mostWaiting) this.#resume()
      return Promise.resolve({ done: false, value: chunk })
    }
    if (this.#failure) return Promise.reject(this.#options.explain(this.#failure.error))
    if (this.#closed) return Promise.resolve({ done: true, value: undefined })
    this.#reader = deferred()
    return this.#reader.promise
  }

  /** Stopping early ends the connection; who waits for a chunk is told so. */
  return(): Promise<IteratorResult<Uint8Array>> {
    this.destroy()
    return Promise.resolve({ done: true, value: undefined })
  }

  push(chunk: Uint8Array): void {
    if (this.#unwanted !== undefined) {
      this.#unwanted -= chunk.length
      if (this.#unwanted < 0) this.destroy()
      return
    }
    if (this.#reader) return this.#answer((reader) => reader.resolve({ done: false, value: chunk }))
    this.#chunks.push(chunk)
    this.#bytes += chunk.length
    if (this.#bytes < mostWaiting) return
    this.#paused = true
    this.#options.control.pause()
  }

  end(): void {
    this.#close()
    this.#answer((reader) => reader.resolve({ done: true, value: undefined }))
  }

  fail(error: unknown): void {
    if (this.#closed) return
    this.#failure = { error }
    this.#close()
    this.#answer((reader) => reader.reject(this.#options.explain(error)))
  }

  /** Ends the connection, if there is more to come. */
  destroy(): void {
    this.#chunks.length = 0
    if (this.#closed) return
    const gone = new Error('the body was let go of')
    this.#close()
    this.#answer((reader) => reader.reject(this.#options.explain(gone)))
    this.#options.control.abort(gone)
  }

  /** Reads what is left for nobody, to keep the connection: so many bytes at most, for so long (ms). */
  dump(limit: number, milliseconds: number): void {
    if (this.#closed) return
    this.#unwanted = limit - this.#bytes
    this.#chunks.length = 0
    this.#late = setTimeout(() => this.destroy(), milliseconds).unref()
    this.#resume()
  }

  #resume(): void {
    if (!this.#paused) return
    this.#paused = false
    this.#options.control.resume()
  }

  #answer(give: (reader: Deferred<IteratorResult<Uint8Array>>) => void): void {
    const reader = this.#reader
    this.#reader = undefined
    if (reader) give(reader)
  }

  #close(): void {
    if (this.#closed) return
    this.#closed = true
    clearTimeout(this.#late)
    this.#options.onClose()
  }
}
