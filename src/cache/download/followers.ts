import { createDeferred, waitForProgress } from '../../lib/async.ts'
import type { Logger } from '../../lib/logger.ts'
import { type Clock, runLater, logFailure } from '../../lib/time.ts'
import type { Digest } from '../../oci/reference.ts'
import type { Follower, Piece, Portion } from '../../oci/registry.ts'
import { type OpenBlob } from '../../oci/registry.ts'
import type { BlobWriter } from '../../store/blob-store.ts'
import { UpstreamError } from '../../upstream/upstream.ts'
import type { DownloadWriter } from './writer.ts'

/** Describes the state of a download that its followers depend on. */
interface FollowedDownload {
  readonly digest: Digest
  readonly writer: DownloadWriter
  /** Bytes of the whole blob, if known. */
  readonly size: number | undefined
  /** Holds the time when the upstream responded, monotonic ms. */
  readonly begunAt: number | undefined
  /** Is true when the whole blob has arrived and its digest is right. */
  readonly isVerified: boolean
  readonly failure: Error | undefined
  /** Is called after a follower has left. */
  readonly onLeft: () => void
  /** Limits the time that a follower may slow the others down on a full disk, ms. */
  readonly maxLagMs: number
  readonly clock: Pick<Clock, 'monotonic'>
  readonly logger: Logger
}

interface Reader extends Portion {
  position: number
  /** Holds a copy of the spilled bytes at the withheld end of its portion; it no longer needs the spill buffer. */
  tail: { readonly start: number; readonly bytes: Uint8Array } | undefined
  /** Is true when it has read all releasable bytes and waits for more. */
  isWaiting: boolean
  /** Is true when it was cut off, because it slowed the others down for too long. */
  isCutOff: boolean
}

/** Bytes withheld until the digest is verified. Harbor uses 32 KiB in production (its pull request 23911). */
const tailBytes = 32 * 1024
/** Limits the bytes of a piece from memory. */
const pieceBytes = 128 * 1024

/**
 * Serves the clients that follow a download, each at its own pace. On a full disk they share a bounded memory: then the slowest one
 * sets the pace, and one that is too slow is cut off.
 */
export class Followers {
  readonly #readers = new Set<Reader>()
  readonly #download: FollowedDownload
  #progress = createDeferred()
  /** Bytes per ms before the memory was full for the first time, when no client had slowed the download down. */
  #unblockedRate: number | undefined
  /** Readers that others wait for, with their position when the wait began. Readers that catch up are removed. */
  #lagging: Map<Reader, number> | undefined

  constructor(download: FollowedDownload) {
    this.#download = download
  }

  get count(): number {
    return this.#readers.size
  }

  /** Is true when no reader takes bytes as they arrive. */
  get isAbandoned(): boolean {
    for (const { isAllOrNothing, isCutOff } of this.#readers) if (!isAllOrNothing && !isCutOff) return false
    return true
  }

  /** Wakes all readers: bytes have arrived, or the download has ended. */
  notify(): void {
    if (!this.#download.writer.isOnDisk) this.#releaseMemory()
    this.#progress.resolve()
    this.#progress = createDeferred()
  }

  /** Adds a reader that starts at this position. The caller closes it. */
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
      await waitForProgress(this.#progress.promise, signal)
      reader.isWaiting = false
    }
  }

  /** Returns the position before which bytes may be sent to this reader. */
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

  /** Copies spilled bytes; the result is shorter, or empty, where they were dropped. */
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

  /** Returns the growing file, for senders. It stays open while the download has followers, so closing it does nothing. */
  #toOpenBlob(file: BlobWriter): OpenBlob {
    const { digest } = this.#download
    const { fd, size } = file
    return { digest, size, fd, read: (buffer, position) => file.read(buffer, position), close: () => Promise.resolve() }
  }

  /**
   * Releases memory that no reader needs. The reader of a range waits for its withheld end until the whole blob has arrived; its
   * bytes are copied, because on a full disk the bytes behind the range would fill the memory and stop the download.
   */
  #releaseMemory(): void {
    if (this.isAbandoned) return
    for (const reader of this.#readers) this.#copyTail(reader)
    this.#dropConsumed()
  }

  /** Copies the rest of a range for its reader, once that rest is only the withheld end. */
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

  /** Is true when a reader waits for bytes while the memory is full of bytes for slower readers. */
  get #isBlocked(): boolean {
    return (
      this.#download.writer.isFull && [...this.#readers].some((reader) => reader.isWaiting && !reader.isAllOrNothing)
    )
  }

  /**
   * Watches the readers that others wait for. A reader that takes less than half of the unblocked rate for `maxLagMs` is cut
   * off. Its client can request the blob again, and gets a separate download.
   */
  #watchLagging(): void {
    if (this.#lagging || !this.#isBlocked) return
    const { writer, begunAt, clock, maxLagMs, logger } = this.#download
    const since = clock.monotonic()
    this.#unblockedRate ??= writer.arrived / Math.max(1, since - (begunAt ?? since))
    const behind = new Map<Reader, number>()
    for (const reader of this.#readers)
      if (needsMemory(reader) && this.#getReleasableEnd(reader) > reader.position) behind.set(reader, reader.position)
    this.#lagging = behind
    const onFailure = logFailure(logger, 'could not check for slow clients of a download')
    runLater(maxLagMs, () => this.#cutOffLagging(behind, since), onFailure)
  }

  #cutOffLagging(behind: ReadonlyMap<Reader, number>, since: number): void {
    const { digest, clock, maxLagMs, logger } = this.#download
    const elapsed = clock.monotonic() - since
    // After a pause of the whole process, no reader is known to be slow.
    const isCertain = this.#isBlocked && elapsed < 2 * maxLagMs
    const minBytes = (this.#unblockedRate! * elapsed) / 2
    for (const [reader, position] of isCertain ? behind : []) {
      if (!this.#readers.has(reader) || !needsMemory(reader) || reader.position - position >= minBytes) continue
      reader.isCutOff = true
      const fields = { digest, at: reader.position }
      logger.warn(fields, 'a slow client is cut off: the disk is full, and other clients wait for it')
    }
    this.#lagging = undefined
    this.#dropConsumed()
    this.#watchLagging()
  }
}

/** Reports whether spilled bytes stay in memory for this reader. */
function needsMemory({ tail, isAllOrNothing, isCutOff }: Reader): boolean {
  return !tail && !isAllOrNothing && !isCutOff
}

function createTooSlowError(): UpstreamError {
  return new UpstreamError(
    'unavailable',
    503,
    'The disk is full, and this client is too slow for the others that download the blob.',
  )
}

function createMovedOnError(): UpstreamError {
  return new UpstreamError('unavailable', 503, 'The requested bytes are no longer in memory.')
}
