import type { BufferRelease } from '../lib/body-memory.ts'
import { errnoOf } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import type { Slots } from '../lib/async.ts'
import type { Digest } from '../oci/digest.ts'
import type { BlobStore } from '../store/blob-store.ts'
import type { HashPool } from '../store/hashing.ts'
import type { RefStore } from '../store/records.ts'
import type { RangePolicy } from './fetch-ranges.ts'
import type { Stats } from '../cache/stats.ts'

/** What the caches of manifests and blobs stand on. */
export interface CacheParts {
  readonly blobs: BlobStore
  readonly refs: RefStore
  /** How large blobs are fetched. */
  readonly ranges: RangePolicy
  readonly hashes: Pick<HashPool, 'follow'>
  readonly release: BufferRelease
  /** Fetches of blobs under way: each holds a file open, and connections. */
  readonly fills: Slots
  /** Bytes at most of a blob whose size nobody has said. */
  readonly mostUnsized: number
  readonly stats: Stats
  /** Running time in ms, for eviction. */
  readonly runningTime: () => number
  /** Frees disk space; resolves when what could be done was done. */
  readonly makeRoom: (bytes: number) => Promise<void>
  /** Called when something new was stored. */
  readonly onStored: () => void
  readonly logger: Logger
}

type Publishing = Pick<CacheParts, 'blobs' | 'makeRoom' | 'onStored' | 'logger'>

/** Keeps a manifest or a list. A disk that takes no more costs the next client a question, and this one nothing. */
export async function publishSmall(parts: Publishing, digest: Digest, bytes: Uint8Array<ArrayBuffer>): Promise<void> {
  for (const lastTry of [false, true]) {
    try {
      await parts.blobs.put(digest, bytes)
      return parts.onStored()
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
      parts.logger.warn({ digest, error: String(error) }, 'the disk takes no manifest')
      if (!lastTry) await parts.makeRoom(bytes.length)
    }
  }
}
