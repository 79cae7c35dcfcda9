import type { FileHandle } from 'node:fs/promises'
import type { Digest } from '../oci/digest.ts'
import { hashesTo } from './hash-file.ts'

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
