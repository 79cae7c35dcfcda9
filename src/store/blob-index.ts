import { lstat, opendir } from 'node:fs/promises'
import { errnoOf } from '../lib/errors.ts'
import { parseDigest, type Digest, type DigestAlgorithm } from '../oci/digest.ts'
import type { StoreLayout } from './layout.ts'

const algorithms: readonly DigestAlgorithm[] = ['sha256', 'sha512']
const batchSize = 64

/** Sizes of the published blobs, in memory: what is there at start, and every change since. */
export class BlobIndex {
  readonly #sizes = new Map<Digest, number>()
  /** Taken away while the scan goes on, which may have seen them before. */
  readonly #gone = new Set<Digest>()
  #scanning = true
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
    this.#gone.delete(digest)
  }

  delete(digest: Digest): void {
    this.#bytes -= this.#sizes.get(digest) ?? 0
    this.#sizes.delete(digest)
    if (this.#scanning) this.#gone.add(digest)
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
      this.#scanning = false
      this.#gone.clear()
    }
  }

  async #addAll(batch: readonly Digest[], layout: StoreLayout): Promise<void> {
    await Promise.all(batch.map((digest) => this.#add(digest, layout.blob(digest))))
  }

  async #add(digest: Digest, path: string): Promise<void> {
    try {
      const found = await lstat(path)
      if (found.isFile() && !this.#sizes.has(digest) && !this.#gone.has(digest)) this.set(digest, found.size)
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') throw error
    }
  }
}
