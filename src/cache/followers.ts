import { deferred, nextProgress } from '../lib/async.ts'
import type { Logger } from '../lib/logger.ts'
import { type Clock, later, logFailure } from '../lib/time.ts'
import type { Digest } from '../oci/digest.ts'
import type { Follower, Piece, Portion } from '../oci/registry.ts'
import { type OpenBlob } from '../oci/registry.ts'
import type { BlobWriter } from '../store/blob-store.ts'
import { UpstreamError } from '../upstream/upstream.ts'
import type { DownloadWriter } from './download-writer.ts'

/** A download, as far as its followers depend on it. */
interface FollowedDownload {
  readonly digest: Digest
  readonly writer: DownloadWriter
  /** Bytes of the whole blob, when somebody has said. */
  readonly size: number | undefined
  /** When the upstream began to answer; monotonic ms. */
  readonly begunAt: number | undefined
  /** Whether all has arrived and the digest agrees. */
  readonly isVerified: boolean
  readonly failure: Error | undefined
  /** Called when a follower has left. */
  readonly onLeft: () => void
  /** How long a follower may slow the others down on a full disk, ms. */
  readonly maxLagMs: number
  readonly clock: Pick<Clock, 'monotonic'>
  readonly logger: Logger
}

interface Reader extends Portion {
  position: number
  /** The withheld end of its portion, or what the disk does not have of it. */
  tail: { readonly start: number; readonly bytes: Uint8Array } | undefined
  /** It has all that may leave, and waits for more. */
  isWaiting: boolean
  /** It has slowed the others down for too long: it gets nothing more. */
  isCutOff: boolean
}

/** Bytes held back until the digest agrees; Harbor found 32 KiB in production (its pull request 23911). */
const tailBytes = 32 * 1024
/** Bytes of memory that a follower is given at a time. */
const pieceBytes = 128 * 1024

/** Those who read along with a download. */
export class Followers {
  readonly #readers = new Set<Reader>()
  readonly #download: FollowedDownload
  #progress = deferred()
  /** Bytes a millisecond that came before the memory was full for the first time: nobody had slowed them down. */
  #unblockedRate: number | undefined
  /** Readers that others wait for, and where each of them was when that began. Those who catch up are taken out. */
  #lagging: Map<Reader, number> | undefined

  constructor(download: FollowedDownload) {
    this.#download = download
  }

  get count(): number {
    return this.#readers.size
  }

  /** Whether nobody takes bytes as they arrive. */
  get isAbandoned(): boolean {
    for (const { isAllOrNothing, isCutOff } of this.#readers) if (!isAllOrNothing && !isCutOff) return false
    return true
  }

  /** Wakes everybody: bytes have arrived, or the download is over. */
  notify(): void {
    if (!this.#download.writer.isOnDisk) this.#releaseMemory()
    this.#progress.resolve()
    this.#progress = deferred()
  }

  follow(start: number, portion: Portion): Follower {
    const reader: Reader = { ...portion, position: start, tail: undefined, isWaiting: false, isCutOff: false }
    this.#readers.add(reader)
    return {
      next: (signal) => this.#next(reader, signal),
      close: () => {
        if (!this.#readers.delete(reader)) return
        this.#dropConsumed()
        this.#download.onLeft()
      },
    }
  }

  async #next(reader: Reader, signal?: AbortSignal): Promise<Piece | undefined> {
    const { writer } = this.#download
    for (;;) {
      signal?.throwIfAborted()
      if (reader.isCutOff) throw createTooSlowError()
      const start = reader.position
      const end = this.#getReleasableEnd(reader)
      if (end > start) {
        if (reader.isAllOrNothing && writer.hasDropped) throw createMovedOnError()
        const piece = this.#readPiece(reader, end)
        reader.position += piece.kind === 'file' ? piece.range.end + 1 - start : piece.bytes.length
        if (piece.kind === 'memory') this.#dropConsumed()
        return piece
      }
      const { failure, isVerified } = this.#download
      if (failure) throw failure
      if (isVerified) return undefined
      if (!writer.isOnDisk) this.#releaseMemory()
      reader.isWaiting = true
      this.#lagging?.delete(reader)
      this.#watchLagging()
      await nextProgress(this.#progress.promise, signal)
      reader.isWaiting = false
    }
  }

  /** The position up to which bytes may leave for this reader. */
  #getReleasableEnd({ end = Infinity, isAllOrNothing }: Reader): number {
    const { writer, size, isVerified } = this.#download
    const { arrived } = writer
    if (isVerified) return Math.min(arrived, end)
    if (isAllOrNothing) return 0
    return Math.min(arrived, Math.min(end, size ?? arrived) - tailBytes)
  }

  #readPiece({ position: start, tail }: Reader, end: number): Piece {
    const { writer } = this.#download
    const file = writer.file(start)
    if (file) return { kind: 'file', file: this.#toOpenBlob(file), range: { start, end: Math.min(end, file.size) - 1 } }
    const bytes = tail
      ? tail.bytes.subarray(start - tail.start, end - tail.start)
      : this.#copySpilled(start, Math.min(end, start + pieceBytes))
    if (bytes.length === 0) throw createMovedOnError()
    return { kind: 'memory', bytes }
  }

  /** A copy of bytes that the disk did not take; shorter, or empty, where they were let go. */
  #copySpilled(start: number, end: number): Uint8Array {
    const { writer } = this.#download
    const buffer = new Uint8Array(end - start)
    let filled = 0
    while (filled < buffer.length) {
      const count = writer.readSpilled(buffer.subarray(filled), start + filled)
      if (count === 0) break
      filled += count
    }
    return buffer.subarray(0, filled)
  }

  /** The growing file, for senders: held open as long as somebody follows. */
  #toOpenBlob(file: BlobWriter): OpenBlob {
    const { digest } = this.#download
    const { fd, size } = file
    return { digest, size, fd, read: (buffer, position) => file.read(buffer, position), close: () => Promise.resolve() }
  }

  /**
   * Lets go of memory that no reader needs. A reader of a part waits for its end until the whole blob has arrived: on a full disk
   * the bytes behind that part would fill the memory, and nothing more would arrive.
   */
  #releaseMemory(): void {
    if (this.isAbandoned) return
    for (const reader of this.#readers) this.#copyTail(reader)
    this.#dropConsumed()
  }

  /** Copies what a reader of a part still has to get, once that is no more than its withheld end. */
  #copyTail(reader: Reader): void {
    const { writer } = this.#download
    const { end, position } = reader
    if (!needsMemory(reader) || end === undefined || writer.arrived < end) return
    if (writer.file(end - 1)) reader.tail = { start: end, bytes: new Uint8Array() }
    else if (position >= end - tailBytes) {
      const start = writer.file(position)?.size ?? position
      reader.tail = { start, bytes: this.#copySpilled(start, end) }
    }
  }

  #dropConsumed(): void {
    const { writer } = this.#download
    let needed = writer.arrived
    for (const reader of this.#readers) if (needsMemory(reader)) needed = Math.min(needed, reader.position)
    writer.dropBefore(needed)
  }

  /** Whether somebody waits for room in memory that others take up. */
  get #isBlocked(): boolean {
    return (
      this.#download.writer.isFull && [...this.#readers].some((reader) => reader.isWaiting && !reader.isAllOrNothing)
    )
  }

  /**
   * On a full disk all readers share a bounded memory, so that the slowest one sets the pace of all. One that takes it below half
   * of what it was, and does not catch up within the patience, is cut off. It can ask again, and gets a download of its own.
   */
  #watchLagging(): void {
    if (this.#lagging || !this.#isBlocked) return
    const { writer, begunAt, clock, maxLagMs: patience, logger } = this.#download
    const since = clock.monotonic()
    this.#unblockedRate ??= writer.arrived / Math.max(1, since - (begunAt ?? since))
    const behind = new Map<Reader, number>()
    for (const reader of this.#readers)
      if (needsMemory(reader) && this.#getReleasableEnd(reader) > reader.position) behind.set(reader, reader.position)
    this.#lagging = behind
    const onFailure = logFailure(logger, 'could not look for slow clients of a download')
    later(patience, () => this.#cutOffLagging(behind, since), onFailure)
  }

  #cutOffLagging(behind: ReadonlyMap<Reader, number>, since: number): void {
    const { digest, clock, maxLagMs: patience, logger } = this.#download
    const elapsed = clock.monotonic() - since
    // After the whole process stood still, nobody is known to be slow.
    const isCertain = this.#isBlocked && elapsed < 2 * patience
    const least = (this.#unblockedRate! * elapsed) / 2
    for (const [reader, position] of isCertain ? behind : []) {
      if (!this.#readers.has(reader) || !needsMemory(reader) || reader.position - position >= least) continue
      reader.isCutOff = true
      logger.warn({ digest, at: reader.position }, 'a slow client is cut off: the disk is full, and others wait for it')
    }
    this.#lagging = undefined
    this.#dropConsumed()
    this.#watchLagging()
  }
}

/** Whether bytes that the disk did not take have to stay in memory for it. */
function needsMemory({ tail, isAllOrNothing, isCutOff }: Reader): boolean {
  return !tail && !isAllOrNothing && !isCutOff
}

function createTooSlowError(): UpstreamError {
  return new UpstreamError(
    'unavailable',
    503,
    'There is no room on the disk for it, and others could not wait any longer.',
  )
}

function createMovedOnError(): UpstreamError {
  return new UpstreamError('unavailable', 503, 'The download has moved on.')
}
