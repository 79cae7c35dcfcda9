import type { BufferRelease } from '../lib/buffer-release.ts'
import type { Logger } from '../lib/logger.ts'
import type { BlobStore } from '../store/blob-store.ts'
import type { HashPool } from '../store/hash-pool.ts'
import type { RefStore } from '../store/ref-store.ts'
import type { RangePolicy } from './fetch-ranges.ts'
import type { Stats } from './stats.ts'

/** What the caches of manifests and blobs stand on. */
export interface CacheParts {
  readonly blobs: BlobStore
  readonly refs: RefStore
  /** How large blobs are fetched. */
  readonly ranges: RangePolicy
  readonly hashes: Pick<HashPool, 'follow'>
  readonly release: BufferRelease
  readonly stats: Stats
  /** Running time in ms, for eviction. */
  readonly runningTime: () => number
  /** Frees disk space; resolves when what could be done was done. */
  readonly makeRoom: (bytes: number) => Promise<void>
  /** Called when something new was stored. */
  readonly onStored: () => void
  readonly logger: Logger
}
