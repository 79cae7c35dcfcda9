import { LRUCache } from 'lru-cache'
import { errnoOf } from '../lib/errors.ts'
import { readSmallFile, writeFileAtomic } from '../lib/fs.ts'
import { isObject, parseObject } from '../lib/json.ts'
import type { Clock } from '../lib/time.ts'
import type { Digest } from '../oci/digest.ts'
import type { Reference } from '../oci/reference.ts'
import type { Provenance } from '../oci/registry.ts'
import type { RefStore, RepositoryRecord } from '../store/records.ts'

/** Totals since `since`, across restarts. */
export interface Totals {
  /** Images that clients pulled. */
  pulls: number
  /** Manifests and blobs that clients asked for; so are the others. */
  requests: number
  hits: number
  misses: number
  collapsed: number
  revalidated: number
  staleServed: number
  errors: number
  digestMismatches: number
  bytesServed: number
  bytesFromUpstream: number
  bytesSaved: number
}

interface UpstreamTotals {
  hits: number
  misses: number
  bytesFromUpstream: number
}

/** One answered request for a manifest or blob. */
interface Served {
  readonly provenance: Provenance
  /** Body bytes that left. */
  readonly bytes: number
  /** A HEAD: one of what we do not hold counts only as a request. */
  readonly head: boolean
}

/** What the cache has done. A damaged file means that counting starts anew, nothing worse. */
export class Stats {
  readonly totals: Totals = {
    pulls: 0,
    requests: 0,
    hits: 0,
    misses: 0,
    collapsed: 0,
    revalidated: 0,
    staleServed: 0,
    errors: 0,
    digestMismatches: 0,
    bytesServed: 0,
    bytesFromUpstream: 0,
    bytesSaved: 0,
  }
  readonly upstreams = new Map<string, UpstreamTotals>()
  /** Host header values that were refused, and how often; in this process only, and bounded. */
  readonly refusedHosts = new Map<string, number>()
  /** Registries that were asked for and are not mirrored, and how often; in this process only, and bounded. */
  readonly refusedRegistries = new Map<string, number>()
  /** Wall clock ms. */
  since: number

  constructor(now: number) {
    this.since = now
  }

  /** Counts an answer with a 2xx or 304 status. */
  served({ provenance, bytes, head }: Served): void {
    if (provenance.isProbe) return
    const { totals } = this
    totals.requests += 1
    totals.bytesServed += bytes
    if (provenance.outcome === 'passed' || provenance.registry === undefined) return
    const upstream = this.#upstream(provenance.registry)
    if (provenance.outcome === 'miss' || provenance.outcome === 'collapsed') {
      if (head) return
      totals.misses += 1
      upstream.misses += 1
      if (provenance.outcome === 'collapsed') {
        totals.collapsed += 1
        totals.bytesSaved += bytes
      }
      return
    }
    totals.hits += 1
    upstream.hits += 1
    totals.bytesSaved += bytes
    if (provenance.outcome === 'revalidated') totals.revalidated += 1
    if (provenance.outcome === 'stale') totals.staleServed += 1
  }

  recordPull(): void {
    this.totals.pulls += 1
  }

  failed(): void {
    this.totals.errors += 1
  }

  recordFetched(host: string, bytes: number): void {
    this.totals.bytesFromUpstream += bytes
    this.#upstream(host).bytesFromUpstream += bytes
  }

  recordMismatch(): void {
    this.totals.digestMismatches += 1
  }

  refused(host: string): void {
    countName(this.refusedHosts, host)
  }

  recordRefusedRegistry(host: string): void {
    countName(this.refusedRegistries, host)
  }

  /** hits / (hits + misses), 0 before the first. */
  get hitRatio(): number {
    const { hits, misses } = this.totals
    return hits + misses === 0 ? 0 : hits / (hits + misses)
  }

  async load(path: string): Promise<void> {
    let text: string
    try {
      text = await readSmallFile(path)
    } catch (error) {
      // What the system does not give out is damaged, too.
      if (errnoOf(error) !== undefined) return
      throw error
    }
    const saved = parseSaved(text)
    if (!saved) return
    this.since = saved.since
    copyNumbers(this.totals, saved.totals)
    for (const [host, counts] of Object.entries(saved.upstreams)) copyNumbers(this.#upstream(host), counts)
  }

  async save(path: string): Promise<void> {
    const { since, totals, upstreams } = this
    await writeFileAtomic(path, JSON.stringify({ since, totals, upstreams: Object.fromEntries(upstreams) }))
  }

  #upstream(host: string): UpstreamTotals {
    let counts = this.upstreams.get(host)
    if (!counts) this.upstreams.set(host, (counts = { hits: 0, misses: 0, bytesFromUpstream: 0 }))
    return counts
  }
}

function parseSaved(text: string): { since: number; totals: object; upstreams: Record<string, object> } | undefined {
  const { since, totals, upstreams } = parseObject(text) ?? {}
  if (typeof since !== 'number' || !isObject(totals)) return undefined
  const counted = Object.entries(upstreams ?? {}).filter((entry): entry is [string, object] => isObject(entry[1]))
  return { since, totals, upstreams: Object.fromEntries(counted) }
}

const maxNames = 100
const maxNameLength = 255

/** Counts a name that a stranger sent: of limited length, without control characters, and only so many of them. */
function countName(counts: Map<string, number>, sent: string): void {
  const name = sent.slice(0, maxNameLength).replaceAll(/[^\x20-\x7e]/g, '?')
  if (counts.has(name) || counts.size < maxNames) counts.set(name, (counts.get(name) ?? 0) + 1)
}

/** Takes over the counters that the target knows and the source has as numbers. */
function copyNumbers(target: object, source: object): void {
  const values = source as Record<string, unknown>
  const counters = target as Record<string, number>
  for (const key of Object.keys(target)) {
    const value = values[key]
    if (typeof value === 'number' && Number.isFinite(value) && value >= 0) counters[key] = value
  }
}

/** Requests of one client this close together belong to one pull. */
const pullWindowMs = 10_000

/** A manifest that was just asked for by some client. */
interface RecentRequest {
  readonly tag: string | undefined
  readonly at: number
  counted: boolean
}

/**
 * Counts pulls. A client's requests for an image (its tag by HEAD or GET, then the index and manifest by digest) are one pull,
 * and only a GET makes it one: whoever just polls with HEAD keeps nothing alive.
 */
export class PullTracker {
  readonly #recent = new LRUCache<string, RecentRequest>({ max: 20_000 })
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
  record(client: string, record: RepositoryRecord, reference: Reference, digest: Digest, head: boolean): void {
    const key = (of: Digest) => `${client} ${record.host}/${record.name} ${of}`
    const now = this.#clock.monotonic()
    const seen = (of: Digest): RecentRequest | undefined => {
      const sighting = this.#recent.get(key(of))
      return sighting && now - sighting.at < pullWindowMs ? sighting : undefined
    }

    if (reference.kind === 'tag') {
      const sighting: RecentRequest = { tag: reference.tag, at: now, counted: seen(digest)?.counted ?? false }
      this.#recent.set(key(digest), sighting)
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
    const sighting: RecentRequest = { tag: undefined, at: now, counted: false }
    this.#recent.set(key(digest), sighting)
    this.#count(record, digest, sighting)
  }

  #count(record: RepositoryRecord, digest: Digest, sighting: RecentRequest): void {
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
