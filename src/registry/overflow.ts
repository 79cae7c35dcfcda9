import { deferred, type Deferred } from '../lib/async.ts'
import { upstreamBodies } from '../lib/body-memory.ts'

/** All that hold something: what they may hold together is shared by them. */
const live = new Set<Overflow>()
/** Bytes that each may hold, however many there are: without a chunk nothing would go on. */
const leastBytes = 512 * 1024

/**
 * The part of a download that the disk had no room for, held in memory until every follower has it. Bounded: `push` waits
 * while it is full, so that a full disk slows the upstream down instead of filling the memory.
 */
export class Overflow {
  readonly #limit: number
  readonly #chunks: { readonly start: number; readonly bytes: Uint8Array }[] = []
  /** From where on a follower still needs the bytes. */
  #needed = 0
  /** The position behind the last byte. */
  #end = 0
  #room: Deferred<void> | undefined
  /** Whether bytes were let go that a newcomer would need. */
  dropped = false

  constructor(limit: number) {
    this.#limit = limit
  }

  /**
   * Only bytes that a follower still needs count. The rest of a chunk goes with the chunk: if it counted, followers that have all
   * they may get would wait for further bytes, and those for room.
   */
  get full(): boolean {
    const share = upstreamBodies.bytes / Math.max(1, live.size)
    return this.#end - this.#needed > Math.max(leastBytes, Math.min(this.#limit, share))
  }

  /** Takes bytes that start at this position of the blob; resolves when there is room for more. */
  async push(start: number, bytes: Uint8Array): Promise<void> {
    live.add(this)
    if (this.#end === 0) this.#needed = start
    this.#chunks.push({ start, bytes })
    this.#end = start + bytes.length
    if (!this.full) return
    this.#room ??= deferred()
    await this.#room.promise
  }

  /** Says that nobody reads it any more. */
  close(): void {
    live.delete(this)
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
      this.dropped = true
    }
    if (!this.full) {
      this.#room?.resolve()
      this.#room = undefined
    }
  }
}
