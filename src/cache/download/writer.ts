import { createDeferred, type Deferred } from '../../lib/async.ts'
import { type BufferRelease, upstreamBodies } from '../../lib/body-memory.ts'
import { getErrno } from '../../lib/errors.ts'
import type { Logger } from '../../lib/logger.ts'
import { createDigester, type Digest, getDigestAlgorithm, type DigestAlgorithm } from '../../oci/reference.ts'
import type { BlobStore, BlobWriter } from '../../store/blob-store.ts'
import type { HashPool } from '../../store/hashing.ts'
import { UpstreamError } from '../../upstream/upstream.ts'

interface DownloadWriterOptions {
  readonly digest: Digest
  readonly store: Pick<BlobStore, 'create'>
  readonly hashes: Pick<HashPool, 'follow'>
  /** Reuses the memory of bytes that are on disk. */
  readonly release: BufferRelease
  /** Tries to free so many bytes on a full disk; resolves when it cannot free more. */
  readonly makeRoom: (bytes: number) => Promise<void>
  /** Is called when more bytes can be read. */
  readonly onArrived: () => void
  /** Reports whether no client reads the bytes as they arrive. */
  readonly isAbandoned: () => boolean
  /** Reports whether a client has ever requested the blob. */
  readonly isClaimed: () => boolean
  readonly logger: Logger
}

/** Limits the memory of one download for bytes that a full disk does not take. */
const maxSpillBytes = 16 * 1024 * 1024
/** Bytes to collect for one write, because each write wakes a thread and the followers. */
const writeBytes = 512 * 1024
/** Sets the time that fewer bytes wait for more, ms. */
const writeDelayMs = 2
/** Limits the bytes that wait for a write; beyond that the upstream waits. */
const maxPendingBytes = 2 * writeBytes
/** Guarantees each spill buffer these bytes, however many there are: with less than a chunk no download would make progress. */
const minSpillBytes = 512 * 1024
/** Limits the blobs that are hashed on this thread, bytes, because waking another one takes longer. */
const smallBytes = 256 * 1024

/**
 * Writes a download's bytes in order to disk and into the hash. Small chunks are written together. Once the disk is full, the
 * rest goes to a spill buffer in memory. Arrived bytes can be read at any position.
 */
export class DownloadWriter {
  readonly #options: DownloadWriterOptions
  #writer: BlobWriter | undefined
  #spill: SpillBuffer | undefined
  #hash: StreamHash | undefined
  /** Holds the announced size of the blob, for estimates. */
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

  /** Returns the bytes that can be read. */
  get arrived(): number {
    return this.#arrived
  }

  /** Is true when all arrived bytes are on disk. */
  get isOnDisk(): boolean {
    return !this.#spill
  }

  /** Is true when the upstream waits until followers have read bytes from memory. */
  get isFull(): boolean {
    return this.#spill?.isFull === true
  }

  /** Is true when bytes were dropped that a new follower would need. */
  get hasDropped(): boolean {
    return this.#spill?.hasDropped === true
  }

  /** Opens the temp file. `size`: bytes of the blob, if known. `ahead`: whether `writeAt` will be used. */
  async prepare(size: number | undefined, ahead: boolean): Promise<void> {
    const { store, makeRoom, logger, digest } = this.#options
    this.#size = size
    for (let tries = 0; !this.#writer && !this.#spill; tries++) {
      try {
        this.#writer = await store.create()
      } catch (error) {
        if (getErrno(error) === undefined) throw error
        logger.warn({ digest, error: String(error) }, 'could not create the file of a download')
        if (tries === 0) await makeRoom(size ?? 0)
        else this.#spill = new SpillBuffer(maxSpillBytes)
      }
    }
    this.#hash ??= this.#openHash(ahead ? undefined : size)
  }

  /** Appends bytes; waits while too many are pending. Throws the error of writing these or earlier ones. */
  async push(chunk: Uint8Array): Promise<void> {
    this.#pending.push(chunk)
    this.#pendingBytes += chunk.length
    if (this.#pendingBytes >= writeBytes) this.#startWriting()
    else this.#timer ??= setTimeout(() => this.#startWriting(), writeDelayMs)
    if (this.#pendingBytes > maxPendingBytes) await this.#writing
    this.#throwFailure()
  }

  /** Resolves when all pushed bytes have arrived; throws the error of writing them. */
  async flush(): Promise<void> {
    this.#startWriting()
    await this.#writing
    this.#throwFailure()
  }

  /** Writes to disk ahead of the arrived bytes. Throws the disk's error; nothing goes to memory. */
  async writeAt(position: number, bytes: Uint8Array): Promise<void> {
    if (!this.#writer || this.#spill) throw new Error('there is no file to write to ahead')
    await this.#writer.writeAt(position, bytes)
  }

  /** Marks everything before this position as arrived: `writeAt` has written it. */
  extend(size: number): void {
    if (size <= this.#arrived) return
    this.#writer!.extend(size)
    this.#arrived = size
    this.#hash!.advance(size)
    this.#options.onArrived()
  }

  /** Returns the digest of all arrived bytes. Call it once. */
  async digest(): Promise<Digest> {
    return this.#hash!.digest()
  }

  /** Commits the blob to the store, durably. Returns false when it is not completely on disk. */
  async publish(digest: Digest): Promise<boolean> {
    if (this.#spill || !this.#writer) return false
    await this.#writer.commit(digest)
    return true
  }

  /** Returns the temp file, if it has the byte at this position. */
  file(position: number): BlobWriter | undefined {
    return this.#writer && this.#writer.size > position ? this.#writer : undefined
  }

  /** Copies spilled bytes into the buffer. Returns their number; 0 when they were dropped. */
  readSpilled(buffer: Uint8Array, position: number): number {
    return this.#spill?.read(buffer, position) ?? 0
  }

  /** Drops spilled bytes before this position, which every follower has read. */
  dropBefore(position: number): void {
    this.#spill?.dropBefore(position)
  }

  /** Closes the temp file; an uncommitted one is removed. */
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
          // Spilled bytes are not released, because followers read them.
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

  /** Throws a failure once. The arrived bytes stay valid, so a further attempt may continue behind them. */
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
      throw new UpstreamError('unavailable', 503, 'The disk is full.')
    await room
  }

  #markArrived(bytes: Uint8Array, isStored: boolean): void {
    this.#arrived += bytes.length
    this.#hash!.take(bytes, isStored ? this.#arrived : undefined)
    this.#options.onArrived()
  }

  async #writeToDisk(bytes: Uint8Array): Promise<boolean> {
    const { digest, makeRoom, logger } = this.#options
    for (const isLastTry of [false, true]) {
      try {
        await this.#writer!.write(bytes)
        return true
      } catch (error) {
        if (getErrno(error) === undefined) throw error
        logger.warn({ digest, error: String(error) }, 'could not write a download to disk')
        if (!isLastTry) await makeRoom((this.#size ?? this.#arrived) - this.#arrived + bytes.length)
      }
    }
    return false
  }

  #openHash(size: number | undefined): StreamHash {
    const algorithm = getDigestAlgorithm(this.#options.digest)
    if (!this.#writer || (size !== undefined && size <= smallBytes)) return createInlineHash(algorithm)
    return createThreadHash(this.#options.hashes, algorithm, this.#writer.fd)
  }
}

/** Hashes the arriving bytes in order. */
interface StreamHash {
  /** Adds bytes. `storedUpTo`: the file's size with these bytes; undefined when the file does not have them. */
  take(bytes: Uint8Array, storedUpTo: number | undefined): void
  /** Adds the file's bytes up to this size. Only for a hash on a thread. */
  advance(size: number): void
  /** Returns the digest of all bytes. Call it once. */
  digest(): Promise<Digest>
  /** Resolves when the file is no longer in use. */
  close(): Promise<void>
}

/** Hashes on this thread. */
function createInlineHash(algorithm: DigestAlgorithm): StreamHash {
  const digester = createDigester(algorithm)
  return {
    take: (bytes) => digester.update(bytes),
    advance() {
      throw new Error('an inline hash does not read the file')
    },
    digest: () => Promise.resolve(digester.digest()),
    close: () => Promise.resolve(),
  }
}

/** Hashes on a separate thread, which reads the file as it grows. */
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

/** Holds the buffers in use. They share the memory for upstream bodies. */
const openSpillBuffers = new Set<SpillBuffer>()

/**
 * Keeps the bytes of a download that the disk had no room for, in memory until every follower has read them. `push` waits while the
 * buffer is full, so that a full disk slows the upstream down instead of filling the memory.
 */
class SpillBuffer {
  readonly #limit: number
  readonly #chunks: { readonly start: number; readonly bytes: Uint8Array }[] = []
  /** Holds the position of the first byte that a follower still needs. */
  #needed = 0
  /** Holds the position behind the last byte. */
  #end = 0
  #room: Deferred<void> | undefined
  /** Is true when bytes were dropped that a new follower would need. */
  hasDropped = false

  constructor(limit: number) {
    this.#limit = limit
  }

  /**
   * Is true when the needed bytes exceed this buffer's share. Bytes that no follower needs do not count, though they stay until
   * their whole chunk is dropped: else followers would wait for more bytes, and those bytes for room.
   */
  get isFull(): boolean {
    const share = upstreamBodies.bytes / Math.max(1, openSpillBuffers.size)
    return this.#end - this.#needed > Math.max(minSpillBytes, Math.min(this.#limit, share))
  }

  /** Adds bytes that start at this position of the blob; resolves when there is room for more. */
  async push(start: number, bytes: Uint8Array): Promise<void> {
    openSpillBuffers.add(this)
    if (this.#end === 0) this.#needed = start
    this.#chunks.push({ start, bytes })
    this.#end = start + bytes.length
    if (!this.isFull) return
    this.#room ??= createDeferred()
    await this.#room.promise
  }

  /** Gives this buffer's share of memory to the others. */
  close(): void {
    openSpillBuffers.delete(this)
  }

  /** Copies bytes at the position into the buffer. Returns their number; 0 when they are not in memory. */
  read(buffer: Uint8Array, position: number): number {
    const chunk = this.#chunks.find(({ start, bytes }) => position >= start && position < start + bytes.length)
    if (!chunk) return 0
    const part = chunk.bytes.subarray(position - chunk.start, position - chunk.start + buffer.length)
    buffer.set(part)
    return part.length
  }

  /** Drops everything before this position: that of the slowest follower. */
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
