import { LRUCache } from 'lru-cache'
import type { Clock } from '../lib/time.ts'
import type { Metadata, Repository } from '../metadata/metadata.ts'
import type { Digest, Reference } from '../oci/reference.ts'

/** Limits the time between requests of one client that belong to one pull, ms. */
const pullWindowMs = 10_000

/** Describes a manifest that a client has just requested. */
interface RecentRequest {
  readonly tag: string | undefined
  /** Monotonic ms. */
  readonly at: number
  /** Is true when its pull was counted. */
  counted: boolean
}

/**
 * Counts pulls. A client's requests for an image (its tag by HEAD or GET, then the index and manifest by digest) are one pull. It
 * needs a GET: a client that only polls with HEAD does not keep an image from being evicted.
 */
export class PullTracker {
  readonly #recent = new LRUCache<string, RecentRequest>({ max: 20_000 })
  readonly #metadata: Pick<Metadata, 'recordUse'>
  readonly #clock: Clock
  readonly #runningTime: () => number
  readonly #onPull: () => void

  constructor(metadata: Pick<Metadata, 'recordUse'>, clock: Clock, runningTime: () => number, onPull = () => {}) {
    this.#metadata = metadata
    this.#onPull = onPull
    this.#clock = clock
    this.#runningTime = runningTime
  }

  /** Records that a client got a manifest of the repository. */
  record(client: string, repository: Repository, reference: Reference, digest: Digest, head: boolean): void {
    const toKey = (of: Digest) => `${client} ${repository.host}/${repository.name} ${of}`
    const now = this.#clock.monotonic()
    const findRecent = (of: Digest): RecentRequest | undefined => {
      const request = this.#recent.get(toKey(of))
      return request && now - request.at < pullWindowMs ? request : undefined
    }

    if (reference.kind === 'tag') {
      const request: RecentRequest = { tag: reference.tag, at: now, counted: findRecent(digest)?.counted ?? false }
      this.#recent.set(toKey(digest), request)
      if (!head) this.#count(repository, digest, request)
      return
    }
    if (head) return
    const own = findRecent(digest)
    if (own) return this.#count(repository, digest, own)
    for (const parent of repository.getParents(digest)) {
      const above = findRecent(parent)
      if (above) return this.#count(repository, parent, above)
    }
    const request: RecentRequest = { tag: undefined, at: now, counted: false }
    this.#recent.set(toKey(digest), request)
    this.#count(repository, digest, request)
  }

  /** Records the use of the manifest, and one more pull of its tag or of itself if the request was not counted yet. */
  #count(repository: Repository, digest: Digest, request: RecentRequest): void {
    const { tag } = request
    const manifest = repository.manifests.get(digest)
    const counter = tag === undefined ? manifest : repository.tags.get(tag)
    const counted = !request.counted && counter && { pulls: counter.pulls + 1, lastPulled: this.#clock.wall() }
    if (manifest) {
      const { pulls, lastPulled } = tag === undefined && counted ? counted : manifest
      const usedAt = this.#runningTime()
      this.#metadata.recordUse(repository, { op: 'use-manifest', digest, pulls, lastPulled, usedAt })
    }
    if (!counted) return
    if (tag !== undefined) this.#metadata.recordUse(repository, { op: 'use-tag', tag, ...counted })
    request.counted = true
    this.#onPull()
  }
}
