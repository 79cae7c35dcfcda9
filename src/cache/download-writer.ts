import { deferred, type Deferred } from '../lib/async.ts'
import { type BufferRelease, upstreamBodies } from '../lib/body-memory.ts'
import { errnoOf } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { createDigester, type Digest, digestAlgorithm, type DigestAlgorithm } from '../oci/digest.ts'
import type { BlobStore, BlobWriter } from '../store/blob-store.ts'
import type { HashPool } from '../store/hashing.ts'
import { UpstreamError } from '../upstream/upstream.ts'

interface DownloadWriterOptions {
  readonly digest: Digest
  readonly store: Pick<BlobStore, 'create'>
  readonly hashes: Pick<HashPool, 'follow'>
  /** Takes back the memory of what is on the disk. */
  readonly release: BufferRelease
  /** Asks for room on a full disk; resolves when what could be done was done. */
  readonly makeRoom: (bytes: number) => Promise<void>
  /** Called when more can be read. */
  readonly onArrived: () => void
  /** Whether nobody reads along. */
  readonly isAbandoned: () => boolean
  /** Whether a client has ever wanted it. */
  readonly isClaimed: () => boolean
  readonly logger: Logger
}

/** Memory for what a full disk does not take. */
const maxSpillBytes = 16 * 1024 * 1024
/** Bytes worth a write: each costs a thread's waking, and a client's. */
const writeBytes = 512 * 1024
/** How long fewer bytes wait for others, ms. */
const writeDelayMs = 2
/** Bytes that wait while earlier ones are being written; beyond that the upstream waits. */
const maxPendingBytes = 2 * writeBytes
/** Blobs up to this size are hashed here: a thread would take longer to say so. */
const smallBytes = 256 * 1024

/**
 * Where a download's bytes go, in order: to the disk, in writes as large as they come together, and from a full disk on to
 * memory; and into the hash. What has arrived can be read at any position.
 */
export class DownloadWriter {
  readonly #options: DownloadWriterOptions
  #writer: BlobWriter | undefined
  #spill: SpillBuffer | undefined
  #hash: StreamHash | undefined
  /** The announced size of the blob, for estimates. */
  #size: number | undefined
  #arrived = 0
  #pending: Uint8Array[] = []
  #pendingBytes = 0
  #writing: Promise<void> | undefined
  #timer: NodeJS.Timeout | undefined
  #failure: { readonly error: unknown } | undefined

  constructor(options: DownloadWriterOptions) {
    this.#options = options
  }

  /** Bytes that can be read. */
  get arrived(): number {
    return this.#arrived
  }

  /** Whether the disk has all that has arrived. */
  get isOnDisk(): boolean {
    return !this.#spill
  }

  /** Whether nothing more arrives before readers have taken what is in memory. */
  get isFull(): boolean {
    return this.#spill?.isFull === true
  }

  /** Whether bytes were let go that a newcomer would need. */
  get hasDropped(): boolean {
    return this.#spill?.hasDropped === true
  }

  /** Opens the file. `size`: of the blob, when it is known. `ahead`: it is to be written ahead. */
  async prepare(size: number | undefined, ahead: boolean): Promise<void> {
    const { store, makeRoom, logger, digest } = this.#options
    this.#size = size
    for (let tries = 0; !this.#writer && !this.#spill; tries++) {
      try {
        this.#writer = await store.create()
      } catch (error) {
        if (errnoOf(error) === undefined) throw error
        logger.warn({ digest, error: String(error) }, 'the disk takes no download')
        if (tries === 0) await makeRoom(size ?? 0)
        else this.#spill = new SpillBuffer(maxSpillBytes)
      }
    }
    this.#hash ??= this.#openHash(ahead ? undefined : size)
  }

  /** Takes bytes; waits when enough are under way. Throws what became of them, or of earlier ones. */
  async push(chunk: Uint8Array): Promise<void> {
    this.#pending.push(chunk)
    this.#pendingBytes += chunk.length
    if (this.#pendingBytes >= writeBytes) this.#startWriting()
    else this.#timer ??= setTimeout(() => this.#startWriting(), writeDelayMs)
    if (this.#pendingBytes > maxPendingBytes) await this.#writing
    this.#throwFailure()
  }

  /** Resolves when all that was pushed has arrived, or throws why not. */
  async flush(): Promise<void> {
    this.#startWriting()
    await this.#writing
    this.#throwFailure()
  }

  /** Writes ahead of what has arrived, to the disk or not at all. */
  async writeAt(position: number, bytes: Uint8Array): Promise<void> {
    if (!this.#writer || this.#spill) throw new Error('there is no file to write ahead in')
    await this.#writer.writeAt(position, bytes)
  }

  /** Says that everything before this position has been written ahead. */
  extend(size: number): void {
    if (size <= this.#arrived) return
    this.#writer!.extend(size)
    this.#arrived = size
    this.#hash!.advance(size)
    this.#options.onArrived()
  }

  /** The digest of all that has arrived. */
  async digest(): Promise<Digest> {
    return this.#hash!.digest()
  }

  /** Keeps what has arrived under the digest, durably; false for what is not on the disk as a whole. */
  async publish(digest: Digest): Promise<boolean> {
    if (this.#spill || !this.#writer) return false
    await this.#writer.commit(digest)
    return true
  }

  /** The file, when it has the byte at this position: it goes up to `arrived` in `size`. */
  file(position: number): BlobWriter | undefined {
    return this.#writer && this.#writer.size > position ? this.#writer : undefined
  }

  /** Copies bytes that the disk did not take; how many, 0 when they were let go. */
  readSpilled(buffer: Uint8Array, position: number): number {
    return this.#spill?.read(buffer, position) ?? 0
  }

  /** Lets go of memory before this position: the slowest reader's. */
  dropBefore(position: number): void {
    this.#spill?.dropBefore(position)
  }

  /** Lets go of the file. */
  async close(): Promise<void> {
    await this.#writing
    this.#spill?.close()
    await this.#hash?.close()
    await this.#writer?.close()
  }

  #startWriting(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    if (this.#pendingBytes > 0) this.#writing ??= this.#writePending()
  }

  async #writePending(): Promise<void> {
    try {
      while (this.#pending.length > 0) {
        const bytes = this.#takePending()
        if (this.#spill || !(await this.#writeToDisk(bytes))) await this.#keepInMemory(bytes)
        else {
          this.#markArrived(bytes, true)
          // From memory followers still read.
          this.#options.release([bytes])
        }
      }
    } catch (error) {
      this.#failure = { error }
      this.#pending = []
      this.#pendingBytes = 0
    } finally {
      this.#writing = undefined
    }
  }

  /** Once: what has arrived is good, and a further attempt may go on from there. */
  #throwFailure(): void {
    const failed = this.#failure
    this.#failure = undefined
    if (failed) throw failed.error
  }

  #takePending(): Uint8Array {
    const chunks = this.#pending
    this.#pending = []
    this.#pendingBytes = 0
    if (chunks.length === 1) return chunks[0]!
    const bytes = Buffer.concat(chunks)
    this.#options.release(chunks)
    return bytes
  }

  async #keepInMemory(bytes: Uint8Array): Promise<void> {
    this.#spill ??= new SpillBuffer(maxSpillBytes)
    const room = this.#spill.push(this.#arrived, bytes)
    this.#markArrived(bytes, false)
    const { isAbandoned, isClaimed } = this.#options
    // Keep a claimed download in memory: the client may reconnect.
    if (isAbandoned() && (this.#spill.isFull || this.#spill.hasDropped || !isClaimed()))
      throw new UpstreamError('unavailable', 503, 'There is no room on the disk for it.')
    await room
  }

  #markArrived(bytes: Uint8Array, isStored: boolean): void {
    this.#arrived += bytes.length
    this.#hash!.take(bytes, isStored ? this.#arrived : undefined)
    this.#options.onArrived()
  }

  async #writeToDisk(bytes: Uint8Array): Promise<boolean> {
    const { digest, makeRoom, logger } = this.#options
    for (const lastTry of [false, true]) {
      try {
        await this.#writer!.write(bytes)
        return true
      } catch (error) {
        if (errnoOf(error) === undefined) throw error
        logger.warn({ digest, error: String(error) }, 'the disk takes no more of a download')
        if (!lastTry) await makeRoom((this.#size ?? this.#arrived) - this.#arrived + bytes.length)
      }
    }
    return false
  }

  #openHash(size: number | undefined): StreamHash {
    const algorithm = digestAlgorithm(this.#options.digest)
    if (!this.#writer || (size !== undefined && size <= smallBytes)) return createInlineHash(algorithm)
    return createThreadHash(this.#options.hashes, algorithm, this.#writer.fd)
  }
}

/** Hashes what arrives, in order. */
interface StreamHash {
  /** `storedUpTo`: the size of the file with these bytes; undefined where it does not have them. */
  take(bytes: Uint8Array, storedUpTo: number | undefined): void
  /** Takes what the file has by now. Only where a thread reads it. */
  advance(size: number): void
  /** The digest of everything; the hash is used up. */
  digest(): Promise<Digest>
  /** Resolves when the file is not used any more. */
  close(): Promise<void>
}

/** On this thread: for what is hashed sooner than another thread wakes. */
function createInlineHash(algorithm: DigestAlgorithm): StreamHash {
  const digester = createDigester(algorithm)
  return {
    take: (bytes) => digester.update(bytes),
    advance() {
      throw new Error('nobody reads the file here')
    },
    digest: () => Promise.resolve(digester.digest()),
    close: () => Promise.resolve(),
  }
}

/** On a thread of its own, which reads the file as it grows. */
function createThreadHash(
  hashes: Pick<HashPool, 'follow'>,
  algorithm: DigestAlgorithm,
  descriptor: number,
): StreamHash {
  const hash = hashes.follow(algorithm, descriptor)
  return {
    take(bytes, storedUpTo) {
      if (storedUpTo === undefined) hash.append(bytes)
      else hash.advance(storedUpTo)
    },
    advance: (size) => hash.advance(size),
    digest: () => hash.digest(),
    close: () => hash.close(),
  }
}

/** All that hold something: what they may hold together is shared by them. */
const openSpillBuffers = new Set<SpillBuffer>()
/** Bytes that each may hold, however many there are: without a chunk nothing would go on. */
const minSpillBytes = 512 * 1024

/**
 * The part of a download that the disk had no room for, held in memory until every follower has it. Bounded: `push` waits
 * while it is full, so that a full disk slows the upstream down instead of filling the memory.
 */
class SpillBuffer {
  readonly #limit: number
  readonly #chunks: { readonly start: number; readonly bytes: Uint8Array }[] = []
  /** From where on a follower still needs the bytes. */
  #needed = 0
  /** The position behind the last byte. */
  #end = 0
  #room: Deferred<void> | undefined
  /** Whether bytes were let go that a newcomer would need. */
  hasDropped = false

  constructor(limit: number) {
    this.#limit = limit
  }

  /**
   * Only bytes that a follower still needs count. The rest of a chunk goes with the chunk: if it counted, followers that have all
   * they may get would wait for further bytes, and those for room.
   */
  get isFull(): boolean {
    const share = upstreamBodies.bytes / Math.max(1, openSpillBuffers.size)
    return this.#end - this.#needed > Math.max(minSpillBytes, Math.min(this.#limit, share))
  }

  /** Takes bytes that start at this position of the blob; resolves when there is room for more. */
  async push(start: number, bytes: Uint8Array): Promise<void> {
    openSpillBuffers.add(this)
    if (this.#end === 0) this.#needed = start
    this.#chunks.push({ start, bytes })
    this.#end = start + bytes.length
    if (!this.isFull) return
    this.#room ??= deferred()
    await this.#room.promise
  }

  /** Says that nobody reads it any more. */
  close(): void {
    openSpillBuffers.delete(this)
  }

  /** Copies bytes at the position into the buffer; how many, 0 when they are not here. */
  read(buffer: Uint8Array, position: number): number {
    const chunk = this.#chunks.find(({ start, bytes }) => position >= start && position < start + bytes.length)
    if (!chunk) return 0
    const part = chunk.bytes.subarray(position - chunk.start, position - chunk.start + buffer.length)
    buffer.set(part)
    return part.length
  }

  /** Lets go of everything before this position: the slowest follower's. */
  dropBefore(position: number): void {
    this.#needed = Math.max(this.#needed, Math.min(position, this.#end))
    while (this.#chunks[0] && this.#chunks[0].start + this.#chunks[0].bytes.length <= position) {
      this.#chunks.shift()
      this.hasDropped = true
    }
    if (!this.isFull) {
      this.#room?.resolve()
      this.#room = undefined
    }
  }
}
