import { lstat, opendir } from 'node:fs/promises'
import { getErrno } from '../lib/errors.ts'
import { ignoreMissing } from '../lib/fs.ts'
import { type Digest, type DigestAlgorithm, parseDigest } from '../oci/reference.ts'
import type { OpenBlob } from '../oci/registry.ts'
import type { StoreLayout } from './layout.ts'

/** Stores content by its digest. Returns `undefined` for absent blobs, and throws disk failures as Node's system errors. */
export interface BlobStore {
  /** Returns the size of a published blob, bytes. */
  stat(digest: Digest): Promise<number | undefined>
  /**
   * Opens a blob for reading; the caller must close it. `expectedSize`: the size in its descriptor. A blob of another size counts as
   * absent, and is quarantined when its hash differs. When reads are verified (`FileBlobStore`), a blob with another hash is
   * quarantined too.
   */
  open(digest: Digest, expectedSize?: number): Promise<OpenBlob | undefined>
  /** Reads a small blob (a manifest) of at most `limit` bytes, and verifies its hash; undefined when it is absent, larger or damaged. */
  read(digest: Digest, limit: number): Promise<Uint8Array<ArrayBuffer> | undefined>
  /** Throws a system error when no blob can be written: a read-only disk, no permission. */
  checkWritable(): Promise<void>
  /** Creates the writer of a new blob, which is not published yet. */
  create(): Promise<BlobWriter>
  /** Stores a small blob. The caller has computed its digest. */
  put(digest: Digest, bytes: Uint8Array): Promise<void>
  /** Removes a blob. Readers that have it open can finish. */
  remove(digest: Digest): Promise<void>
  /** Moves a damaged blob to the quarantine, so that it is fetched again. A blob that has replaced it since the open stays. */
  quarantine(blob: OpenBlob): Promise<void>
  /** Returns digest and size (bytes) of all published blobs. Complete once `ready` has resolved. */
  entries(): Iterable<readonly [Digest, number]>
  /** Resolves when the scan of the disk at start is done. */
  readonly ready: Promise<void>
  /** Holds the total size and the number of published blobs. */
  readonly usage: { readonly bytes: number; readonly blobs: number }
}

/** Writes a blob to a temp file, which can be read while it grows. */
export interface BlobWriter {
  /** Counts the bytes written so far, without a gap. */
  readonly size: number
  /** Holds the file descriptor, for readers that read the file themselves. */
  readonly fd: number
  /** Appends a chunk. Throws system errors such as ENOSPC; the file then has exactly `size` bytes. */
  write(chunk: Uint8Array): Promise<void>
  /** Writes a chunk at a position beyond `size`; `extend` adds it to the blob. Throws as `write` does. */
  writeAt(position: number, chunk: Uint8Array): Promise<void>
  /** Extends the blob to this size, up to which `writeAt` has written everything. */
  extend(size: number): void
  /** Reads bytes written so far, also after commit and abort, until `close`. Returns the number of bytes read. */
  read(buffer: Uint8Array, position: number): Promise<number>
  /** Publishes the blob: fsync, rename, fsync of the folder. The caller has verified the digest. */
  commit(digest: Digest): Promise<void>
  /** Deletes the temp file. The bytes can still be read until `close`. */
  abort(): Promise<void>
  /** Closes the file, and deletes it when it is not committed. */
  close(): Promise<void>
}

const algorithms: readonly DigestAlgorithm[] = ['sha256', 'sha512']
const batchSize = 64

/** Keeps the sizes of the published blobs in memory: those found at start, and all changes since. */
export class BlobIndex {
  readonly #sizes = new Map<Digest, number>()
  /** Holds the blobs removed during the scan, which may have listed them before. */
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

  /** Scans the disk once. Changes during the scan take precedence over its findings. Ignores files that are not blobs. */
  async scan(layout: StoreLayout, signal: AbortSignal): Promise<void> {
    try {
      for (const algorithm of algorithms) {
        let batch: Digest[] = []
        const folder = await ignoreMissing(() => opendir(layout.blobFolder(algorithm), { bufferSize: 256 }))
        for await (const entry of folder ?? []) {
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
      if (getErrno(error) !== 'ENOENT') throw error
    }
  }
}
