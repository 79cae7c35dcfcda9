import { LRUCache } from 'lru-cache'
import type { Digest } from '../oci/digest.ts'
import type { BlobStore } from '../store/blob-store.ts'

/** Content that is small enough to be kept in memory. */
export interface SmallContent {
  /** Bytes. */
  readonly size: number
  /** What to send: where it is short, as a string with a character for each byte, which leaves with its head in one write. */
  readonly body: string | Uint8Array
}

/** Bytes. Content up to this size is sent as a string, which is faster; a manifest beyond it leaves from the disk. */
export const longestString = 64 * 1024
/** What an entry costs besides its bytes. */
const entryBytes = 256

export function smallContent(bytes: Uint8Array<ArrayBuffer>): SmallContent {
  const { length: size } = bytes
  if (size > longestString) return { size, body: bytes }
  return { size, body: Buffer.from(bytes.buffer, bytes.byteOffset, size).toString('latin1') }
}

export function bytesOf({ body }: SmallContent): Uint8Array {
  return typeof body === 'string' ? Buffer.from(body, 'latin1') : body
}

/** Stored manifests and configs that were asked for of late, in memory: bounded, and each hashed when it was loaded (decision D2). */
export class SmallContents {
  readonly #blobs: Pick<BlobStore, 'read' | 'stat'>
  readonly #memory: LRUCache<Digest, SmallContent>

  constructor(blobs: Pick<BlobStore, 'read' | 'stat'>, memoryBytes: number) {
    this.#blobs = blobs
    this.#memory = new LRUCache({ maxSize: memoryBytes, sizeCalculation: ({ size }) => size + entryBytes })
  }

  /** Stored content of at most so many bytes, whether or not the disk still has it: it is what it was. */
  async load(digest: Digest, limit: number): Promise<SmallContent | undefined> {
    const known = this.#memory.get(digest)
    if (known) return known
    const bytes = await this.#blobs.read(digest, limit)
    if (!bytes) return undefined
    const content = smallContent(bytes)
    this.set(digest, content)
    return content
  }

  /** The same of content that must still be stored with this size. */
  async loadStored(digest: Digest, size: number): Promise<SmallContent | undefined> {
    if ((await this.#blobs.stat(digest)) !== size) return undefined
    const content = await this.load(digest, size)
    return content?.size === size ? content : undefined
  }

  /** What is in memory now. */
  get(digest: Digest): SmallContent | undefined {
    return this.#memory.get(digest)
  }

  set(digest: Digest, content: SmallContent): void {
    this.#memory.set(digest, content)
  }

  /** Drops everything, so that the disk is asked again. */
  clear(): void {
    this.#memory.clear()
  }
}
