import { LRUCache } from 'lru-cache'
import type { Clock } from '../lib/time.ts'
import type { Digest } from '../oci/digest.ts'
import type { Reference } from '../oci/reference.ts'
import type { RefStore, RepositoryRecord } from '../store/records.ts'

/** Requests of one client this close together belong to one pull. */
const pullWindow = 10_000

/** A manifest that was just asked for by some client. */
interface Sighting {
  readonly tag: string | undefined
  readonly at: number
  counted: boolean
}

/**
 * Counts pulls. A client's requests for an image (its tag by HEAD or GET, then the index and manifest by digest) are one pull,
 * and only a GET makes it one: whoever just polls with HEAD keeps nothing alive.
 */
export class PullTracker {
  readonly #sightings = new LRUCache<string, Sighting>({ max: 20_000 })
  readonly #refs: Pick<RefStore, 'touch'>
  readonly #clock: Clock
  readonly #runningTime: () => number
  readonly #onPull: () => void

  constructor(refs: Pick<RefStore, 'touch'>, clock: Clock, runningTime: () => number, onPull = () => {}) {
    this.#refs = refs
    this.#onPull = onPull
    this.#clock = clock
    this.#runningTime = runningTime
  }

  /** Notes that a client was given a manifest of the repository. */
  saw(client: string, record: RepositoryRecord, reference: Reference, digest: Digest, head: boolean): void {
    const key = (of: Digest) => `${client} ${record.host}/${record.name} ${of}`
    const now = this.#clock.monotonic()
    const seen = (of: Digest): Sighting | undefined => {
      const sighting = this.#sightings.get(key(of))
      return sighting && now - sighting.at < pullWindow ? sighting : undefined
    }

    if (reference.kind === 'tag') {
      const sighting: Sighting = { tag: reference.tag, at: now, counted: seen(digest)?.counted ?? false }
      this.#sightings.set(key(digest), sighting)
      if (!head) this.#count(record, digest, sighting)
      return
    }
    if (head) return
    const own = seen(digest)
    if (own) return this.#count(record, digest, own)
    for (const [parent, manifest] of record.manifests) {
      const above = seen(parent)
      if (above && manifest.links.some((link) => link.digest === digest)) return this.#count(record, parent, above)
    }
    const sighting: Sighting = { tag: undefined, at: now, counted: false }
    this.#sightings.set(key(digest), sighting)
    this.#count(record, digest, sighting)
  }

  #count(record: RepositoryRecord, digest: Digest, sighting: Sighting): void {
    const manifest = record.manifests.get(digest)
    if (manifest) manifest.usedAt = this.#runningTime()
    if (sighting.counted) return
    const counter = sighting.tag === undefined ? manifest : record.tags.get(sighting.tag)
    if (!counter) return
    sighting.counted = true
    counter.pulls += 1
    this.#onPull()
    counter.lastPulled = this.#clock.wall()
    this.#refs.touch(record)
  }
}
