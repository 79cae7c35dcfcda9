import { type FileHandle, open, rm, statfs } from 'node:fs/promises'
import { getErrno, createReserveError, createSystemError } from '../lib/errors.ts'
import type { Digest } from '../oci/reference.ts'
import type { BlobWriter } from './blob-store.ts'

const checkIntervalBytes = 8 * 1024 * 1024

interface FileBlobWriterOptions {
  /** Holds the path of the temp file, in the store's file system. Must not exist. */
  readonly path: string
  /** Bytes to leave free on the disk. */
  readonly minFree: number
  readonly freeSpace: (path: string) => Promise<number>
  /** Moves the complete, durable temp file into the store. */
  readonly publish: (path: string, digest: Digest, size: number) => Promise<void>
}

/** Writes a blob to a temp file. Throws ENOSPC when a write would use the disk's reserve (`minFree`). */
export class FileBlobWriter implements BlobWriter {
  readonly #handle: FileHandle
  readonly #options: FileBlobWriterOptions
  #state: 'open' | 'damaged' | 'published' | 'aborted' = 'open'
  #size = 0
  /** Bytes that may be written before the next check of the free space. */
  #allowance = 0

  private constructor(handle: FileHandle, options: FileBlobWriterOptions) {
    this.#handle = handle
    this.#options = options
  }

  static async create(options: FileBlobWriterOptions): Promise<FileBlobWriter> {
    const handle = await open(options.path, 'wx+', 0o600)
    const writer = new FileBlobWriter(handle, options)
    try {
      await writer.#reserve(0)
    } catch (error) {
      await writer.close()
      throw error
    }
    return writer
  }

  get size(): number {
    return this.#size
  }

  get fd(): number {
    return this.#handle.fd
  }

  async write(chunk: Uint8Array): Promise<void> {
    await this.#prepare(chunk.length)
    try {
      await this.#writeFully(this.#size, chunk)
    } catch (error) {
      await this.#truncateToSize()
      throw error
    }
    this.#size += chunk.length
  }

  async writeAt(position: number, chunk: Uint8Array): Promise<void> {
    await this.#prepare(chunk.length)
    // Keep the file after a failure, because the partial chunk lies beyond the size, like other chunks written ahead.
    await this.#writeFully(position, chunk)
  }

  extend(size: number): void {
    this.#size = size
  }

  async read(buffer: Uint8Array, position: number): Promise<number> {
    const length = Math.min(buffer.length, this.#size - position)
    if (length <= 0) return 0
    return (await this.#handle.read(buffer, 0, length, position)).bytesRead
  }

  async commit(digest: Digest): Promise<void> {
    this.#assertOpen()
    await this.#handle.sync()
    await this.#options.publish(this.#options.path, digest, this.#size)
    this.#state = 'published'
  }

  async abort(): Promise<void> {
    if (this.#state === 'published' || this.#state === 'aborted') return
    this.#state = 'aborted'
    await rm(this.#options.path, { force: true })
  }

  async close(): Promise<void> {
    try {
      await this.abort()
    } finally {
      await this.#handle.close()
    }
  }

  async #prepare(bytes: number): Promise<void> {
    this.#assertOpen()
    if (bytes > this.#allowance) await this.#reserve(bytes)
    this.#allowance -= bytes
  }

  async #writeFully(position: number, chunk: Uint8Array): Promise<void> {
    let written = 0
    while (written < chunk.length)
      written += (await this.#handle.write(chunk, written, chunk.length - written, position + written)).bytesWritten
  }

  #assertOpen(): void {
    if (this.#state === 'damaged') throw createSystemError('EIO', 'write', 'EIO: the blob being written is damaged')
    if (this.#state !== 'open') throw new Error(`the blob being written is ${this.#state}`)
  }

  async #reserve(bytes: number): Promise<void> {
    const { minFree, path, freeSpace } = this.#options
    const spare = minFree === 0 ? Infinity : (await freeSpace(path)) - minFree
    if (spare < bytes) throw createReserveError(minFree)
    this.#allowance = Math.max(bytes, Math.min(spare, checkIntervalBytes))
  }

  /** Removes the part of a chunk that a failed write may have left. */
  async #truncateToSize(): Promise<void> {
    try {
      await this.#handle.truncate(this.#size)
    } catch (error) {
      if (getErrno(error) === undefined) throw error
      this.#state = 'damaged'
    }
  }
}

/** Returns the free space of a path's file system for ordinary users, bytes; Infinity when the file system does not report it. */
export async function freeSpace(path: string): Promise<number> {
  try {
    const { bavail, bsize } = await statfs(path)
    return bavail * bsize
  } catch (error) {
    if (getErrno(error) === 'ENOSYS') return Infinity
    throw error
  }
}
