import { type FileHandle, lstat, opendir } from 'node:fs/promises'
import { errnoOf } from '../lib/errors.ts'
import { type Digest, type DigestAlgorithm, parseDigest } from '../oci/digest.ts'
import type { OpenBlob } from '../oci/registry.ts'
import { hashesTo } from './hashing.ts'
import type { StoreLayout } from './layout.ts'

/** Content-addressed bytes. Absent is `undefined`, never thrown; disk failures are thrown as Node's system errors. */
export interface BlobStore {
  /** Size in bytes of a published blob. */
  stat(digest: Digest): Promise<number | undefined>
  /**
   * Opens a blob for reading. `expectedSize`: what its descriptor says; a blob of another size is damaged: it is quarantined
   * and counts as absent. When reads are to be verified (see `FileBlobStore`) a blob whose hash differs is treated the same.
   */
  open(digest: Digest, expectedSize?: number): Promise<OpenBlob | undefined>
  /** All bytes of a small blob (a manifest), hashed on every load; damaged or absent is undefined. */
  read(digest: Digest, limit: number): Promise<Uint8Array<ArrayBuffer> | undefined>
  /** Throws what the system says where no blob can be written: a read-only disk, no permission. */
  checkWritable(): Promise<void>
  /** A new, unpublished blob. */
  create(): Promise<BlobWriter>
  /** Publishes small bytes whose digest the caller has computed. */
  put(digest: Digest, bytes: Uint8Array): Promise<void>
  /** Takes a blob away; readers that hold it open finish. */
  remove(digest: Digest): Promise<void>
  /** Moves a damaged blob aside, so that it is fetched again; one that was published in its place since it was opened stays. */
  quarantine(blob: OpenBlob): Promise<void>
  /** What is published: digest and bytes. Complete once `ready` has resolved. */
  entries(): Iterable<readonly [Digest, number]>
  /** Resolves when the look through the disk at start is done. */
  readonly ready: Promise<void>
  /** Sum and number of published blobs. */
  readonly usage: { readonly bytes: number; readonly blobs: number }
}

/** A blob being written to a temp file that others may read while it grows. */
export interface BlobWriter {
  /** Bytes written so far, without a gap. */
  readonly size: number
  /** The descriptor, for those that read along by themselves. */
  readonly fd: number
  /** Appends. ENOSPC and other failures are thrown as they come; the file then holds exactly `size` bytes. */
  write(chunk: Uint8Array): Promise<void>
  /** Writes ahead, at a position beyond `size`; `extend` makes it count. A failure is a failure of `write`. */
  writeAt(position: number, chunk: Uint8Array): Promise<void>
  /** Says that everything up to this size has been written by `writeAt`. */
  extend(size: number): void
  /** Reads back what was written, also after commit and abort, until `close`. */
  read(buffer: Uint8Array, position: number): Promise<number>
  /** fsync, rename into place, fsync of the folder. The caller has checked that the bytes hash to this digest. */
  commit(digest: Digest): Promise<void>
  /** Unlinks the temp file; what was written can still be read until `close`. */
  abort(): Promise<void>
  /** Lets go of the file; an uncommitted one is unlinked. */
  close(): Promise<void>
}

/** A published blob, held open: it stays readable when it is removed meanwhile. */
export class FileOpenBlob implements OpenBlob {
  readonly digest: Digest
  readonly size: number
  readonly #handle: FileHandle

  constructor(digest: Digest, size: number, handle: FileHandle) {
    this.digest = digest
    this.size = size
    this.#handle = handle
  }

  get fd(): number {
    return this.#handle.fd
  }

  async read(buffer: Uint8Array, position: number): Promise<number> {
    const length = Math.min(buffer.length, this.size - position)
    if (length <= 0) return 0
    return (await this.#handle.read(buffer, 0, length, position)).bytesRead
  }

  close(): Promise<void> {
    return this.#handle.close()
  }
}

const algorithms: readonly DigestAlgorithm[] = ['sha256', 'sha512']
const batchSize = 64

/** Sizes of the published blobs, in memory: what is there at start, and every change since. */
export class BlobIndex {
  readonly #sizes = new Map<Digest, number>()
  /** Taken away while the scan goes on, which may have seen them before. */
  readonly #removed = new Set<Digest>()
  #isScanning = true
  #bytes = 0

  get sizes(): ReadonlyMap<Digest, number> {
    return this.#sizes
  }

  get bytes(): number {
    return this.#bytes
  }

  set(digest: Digest, size: number): void {
    this.#bytes += size - (this.#sizes.get(digest) ?? 0)
    this.#sizes.set(digest, size)
    this.#removed.delete(digest)
  }

  delete(digest: Digest): void {
    this.#bytes -= this.#sizes.get(digest) ?? 0
    this.#sizes.delete(digest)
    if (this.#isScanning) this.#removed.add(digest)
  }

  /** Looks through the disk once. Changes made meanwhile win over what it sees. Files that are no blobs are ignored. */
  async scan(layout: StoreLayout, signal: AbortSignal): Promise<void> {
    try {
      for (const algorithm of algorithms) {
        let batch: Digest[] = []
        for await (const entry of await opendir(layout.blobFolder(algorithm), { bufferSize: 256 })) {
          if (signal.aborted) return
          const digest = parseDigest(`${algorithm}:${entry.name}`)
          if (digest === undefined) continue
          batch.push(digest)
          if (batch.length < batchSize) continue
          await this.#addAll(batch, layout)
          batch = []
        }
        await this.#addAll(batch, layout)
      }
    } finally {
      this.#isScanning = false
      this.#removed.clear()
    }
  }

  async #addAll(batch: readonly Digest[], layout: StoreLayout): Promise<void> {
    await Promise.all(batch.map((digest) => this.#add(digest, layout.blob(digest))))
  }

  async #add(digest: Digest, path: string): Promise<void> {
    try {
      const found = await lstat(path)
      if (found.isFile() && !this.#sizes.has(digest) && !this.#removed.has(digest)) this.set(digest, found.size)
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') throw error
    }
  }
}

export interface BlobTrustOptions {
  /** `always` hashes a blob on every open; `auto` only while it is suspect. */
  readonly verifyReads: 'auto' | 'always'
  /** The last stop was not clean: every blob is suspect until it has been hashed once. */
  readonly suspect: boolean
}

/** Decides whether a file is hashed before its bytes are believed to be the blob's. */
export class BlobTrust {
  readonly #options: BlobTrustOptions
  /** Hashed or written since the start; kept only while the others are suspect. */
  readonly #sound = new Set<Digest>()
  readonly #checks = new Map<string, Promise<boolean>>()

  constructor(options: BlobTrustOptions) {
    this.#options = options
  }

  /** Remembers that a blob's bytes are good. */
  add(digest: Digest): void {
    if (this.#options.suspect) this.#sound.add(digest)
  }

  delete(digest: Digest): void {
    this.#sound.delete(digest)
  }

  /** Whether none of these is suspect. */
  hasAll(digests: Iterable<Digest>): boolean {
    if (!this.#options.suspect) return true
    for (const digest of digests) if (!this.#sound.has(digest)) return false
    return true
  }

  async isSound(digest: Digest, handle: FileHandle, inode: number): Promise<boolean> {
    if (this.#options.verifyReads === 'always') return hashesTo(digest, handle)
    if (this.hasAll([digest])) return true
    // One hashing serves all who open the same file meanwhile.
    const key = `${digest} ${inode}`
    const running = this.#checks.get(key)
    if (running) return running
    const check = hashesTo(digest, handle).finally(() => this.#checks.delete(key))
    this.#checks.set(key, check)
    const isSound = await check
    if (isSound) this.add(digest)
    return isSound
  }
}
