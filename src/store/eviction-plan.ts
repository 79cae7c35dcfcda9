import type { Digest } from '../oci/digest.ts'
import type { Forgotten } from './forget.ts'
import type { Holdings } from './holdings.ts'

/** What shall go. Nothing has happened yet. */
export interface EvictionPlan {
  readonly forget: readonly Forgotten[]
  readonly blobs: readonly Digest[]
  /** Sum of the blobs. */
  readonly bytes: number
}

/** Gathers a plan: a blob goes with the last holding that names it, unless it is in use. Uses the survey up. */
export class EvictionPlanner {
  readonly #holders: Map<Digest, number>
  readonly #sizes: ReadonlyMap<Digest, number>
  readonly #isInUse: (digest: Digest) => boolean
  readonly #forget: Forgotten[] = []
  readonly #blobs = new Set<Digest>()
  #bytes = 0

  constructor(holdings: Holdings, sizes: ReadonlyMap<Digest, number>, isInUse: (digest: Digest) => boolean) {
    this.#holders = holdings.holders
    this.#sizes = sizes
    this.#isInUse = isInUse
  }

  get bytes(): number {
    return this.#bytes
  }

  forget(forgotten: Forgotten): void {
    this.#forget.push(forgotten)
    if (!forgotten.whole) return
    for (const digest of forgotten.holding.contents) {
      const left = (this.#holders.get(digest) ?? 1) - 1
      this.#holders.set(digest, left)
      if (left === 0) this.drop(digest)
    }
  }

  /** Lets a blob go, whoever names it. */
  drop(digest: Digest): void {
    const size = this.#sizes.get(digest)
    if (size === undefined || this.#blobs.has(digest) || this.#isInUse(digest)) return
    this.#blobs.add(digest)
    this.#bytes += size
  }

  plan(): EvictionPlan {
    return { forget: this.#forget, blobs: [...this.#blobs], bytes: this.#bytes }
  }
}
