import type { FileHandle } from 'node:fs/promises'
import type { Digest } from '../oci/digest.ts'
import type { OpenBlob } from './blob-store.ts'

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
