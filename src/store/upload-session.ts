import type { Clock } from '../lib/time.ts'
import { createDigester, digestAlgorithm, type Digest, type DigestAlgorithm, type Digester } from '../oci/digest.ts'
import type { BlobStore, BlobWriter } from './blob-store.ts'

export interface UploadSessionOptions {
  readonly id: string
  readonly repository: string
  /** Whose it is; undefined where nobody has a name. */
  readonly user: string | undefined
  /** The algorithm the blob's digest will most likely have; another one costs reading everything again. */
  readonly algorithm: DigestAlgorithm
  readonly blobs: Pick<BlobStore, 'create'>
  readonly clock: Clock
  /** Called when it ends, in whatever way. */
  readonly forget: () => void
}

const rereadBytes = 256 * 1024

/** A blob that arrives in pieces, in order. One request at a time may work on it. */
export class UploadSession {
  readonly id: string
  readonly repository: string
  readonly user: string | undefined
  readonly #options: UploadSessionOptions
  readonly #digester: Digester
  #writer: BlobWriter | undefined
  #usedAt: number
  #isBusy = false
  #isOver = false

  constructor(options: UploadSessionOptions) {
    this.#options = options
    this.id = options.id
    this.repository = options.repository
    this.user = options.user
    this.#digester = createDigester(options.algorithm)
    this.#usedAt = options.clock.monotonic()
  }

  /** Bytes held so far. */
  get size(): number {
    return this.#writer?.size ?? 0
  }

  /** Monotonic ms. */
  get usedAt(): number {
    return this.#usedAt
  }

  get isBusy(): boolean {
    return this.#isBusy
  }

  /** Whether it was published or cancelled. */
  get isOver(): boolean {
    return this.#isOver
  }

  /** Runs the task alone; undefined, and nothing is run, while another one does. */
  async exclusively<T>(task: () => Promise<T>): Promise<{ readonly result: T } | undefined> {
    if (this.#isBusy) return undefined
    this.#isBusy = true
    try {
      return { result: await task() }
    } finally {
      this.#isBusy = false
      this.#usedAt = this.#options.clock.monotonic()
      if (this.#isOver) await this.#close()
    }
  }

  /** Adds bytes. A failure leaves what was held before. */
  async append(chunk: Uint8Array): Promise<void> {
    this.#writer ??= await this.#options.blobs.create()
    await this.#writer.write(chunk)
    this.#digester.update(chunk)
    this.#usedAt = this.#options.clock.monotonic()
  }

  /** Publishes what is held if it hashes to the digest, durably. Either way the session is over. */
  async publish(digest: Digest): Promise<boolean> {
    this.#end()
    this.#writer ??= await this.#options.blobs.create()
    const { algorithm } = this.#options
    const isRight =
      digestAlgorithm(digest) === algorithm
        ? this.#digester.digest() === digest
        : (await rehash(this.#writer, digestAlgorithm(digest))) === digest
    if (isRight) await this.#writer.commit(digest)
    return isRight
  }

  /** Ends it; what was held is gone. A request that works on it finds that out with its next bytes. */
  async cancel(): Promise<void> {
    this.#end()
    if (!this.#isBusy) await this.#close()
  }

  #end(): void {
    this.#isOver = true
    this.#options.forget()
  }

  async #close(): Promise<void> {
    const writer = this.#writer
    this.#writer = undefined
    await writer?.close()
  }
}

async function rehash(writer: BlobWriter, algorithm: DigestAlgorithm): Promise<Digest> {
  const digester = createDigester(algorithm)
  const buffer = new Uint8Array(rereadBytes)
  let position = 0
  for (;;) {
    const count = await writer.read(buffer, position)
    if (count === 0) return digester.digest()
    digester.update(buffer.subarray(0, count))
    position += count
  }
}
