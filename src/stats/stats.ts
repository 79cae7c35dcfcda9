import { writeFileAtomic } from '../lib/fs.ts'
import { isObject, readJsonFile } from '../lib/json.ts'
import type { Provenance } from '../oci/registry.ts'

/** Limits the names that are counted. */
const maxNames = 100
const maxNameLength = 255

/** Totals since `Stats.since`, across restarts. */
export interface Totals {
  /** Pulled images. */
  pulls: number
  /** Counts the requests for manifests and blobs. The other counters have the same unit. */
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

export interface UpstreamTotals {
  hits: number
  misses: number
  bytesFromUpstream: number
  /** Counts the answers that spared a pull which Docker Hub counts. */
  pullsAvoided: number
}

/** Describes one answered request for a manifest or blob. */
interface ServedResponse {
  readonly provenance: Provenance
  /** Body bytes that were sent. */
  readonly bytes: number
  /** Is true when it was a HEAD: one of content that is not cached counts only as a request. */
  readonly head: boolean
  /**
   * Is true for a GET of an image manifest, which Docker Hub counts as a pull. A GET of an index belongs to the pull of its manifest.
   */
  readonly isPull?: boolean
}

/** Keeps the counters of the cache. With a damaged file they start at zero. */
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
  /** Counts the refused Host header values; bounded, and only of this process. */
  readonly refusedHosts = new Map<string, number>()
  /** Counts the requests for each registry that is not mirrored; bounded, and only of this process. */
  readonly refusedRegistries = new Map<string, number>()
  /** Holds the start of counting, wall clock ms. */
  since: number

  constructor(now: number) {
    this.since = now
  }

  /** Counts a response with a 2xx or 304 status. */
  recordResponse({ provenance, bytes, head, isPull = false }: ServedResponse): void {
    if (provenance.isProbe) return
    const { totals } = this
    totals.requests += 1
    totals.bytesServed += bytes
    if (provenance.outcome === 'passed' || provenance.registry === undefined) return
    const upstream = this.#upstream(provenance.registry)
    if (isPull && provenance.outcome !== 'miss') upstream.pullsAvoided += 1
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

  recordError(): void {
    this.totals.errors += 1
  }

  recordFetched(host: string, bytes: number): void {
    this.totals.bytesFromUpstream += bytes
    this.#upstream(host).bytesFromUpstream += bytes
  }

  recordMismatch(): void {
    this.totals.digestMismatches += 1
  }

  recordRefusedHost(host: string): void {
    countName(this.refusedHosts, host)
  }

  recordRefusedRegistry(host: string): void {
    countName(this.refusedRegistries, host)
  }

  /** Returns hits / (hits + misses); 0 before the first request. */
  get hitRatio(): number {
    const { hits, misses } = this.totals
    return hits + misses === 0 ? 0 : hits / (hits + misses)
  }

  async load(path: string): Promise<void> {
    const saved = parseSaved(await readJsonFile(path))
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
    if (!counts) this.upstreams.set(host, (counts = { hits: 0, misses: 0, bytesFromUpstream: 0, pullsAvoided: 0 }))
    return counts
  }
}

function parseSaved(
  saved: Record<string, unknown> | undefined,
): { since: number; totals: object; upstreams: Record<string, object> } | undefined {
  const { since, totals, upstreams } = saved ?? {}
  if (typeof since !== 'number' || !isObject(totals)) return undefined
  const counted = Object.entries(upstreams ?? {}).filter((entry): entry is [string, object] => isObject(entry[1]))
  return { since, totals, upstreams: Object.fromEntries(counted) }
}

/** Counts a name from an untrusted client: cuts its length, replaces control characters, and limits the number of names. */
function countName(counts: Map<string, number>, sent: string): void {
  const name = sent.slice(0, maxNameLength).replaceAll(/[^\x20-\x7e]/g, '?')
  if (counts.has(name) || counts.size < maxNames) counts.set(name, (counts.get(name) ?? 0) + 1)
}

/** Copies the counters of the target that the source has as valid numbers. */
function copyNumbers(target: object, source: object): void {
  const values = source as Record<string, unknown>
  const counters = target as Record<string, number>
  for (const key of Object.keys(target)) {
    const value = values[key]
    if (typeof value === 'number' && Number.isFinite(value) && value >= 0) counters[key] = value
  }
}
