import { isObject } from '../lib/json.ts'

/** Counts the traffic of a time span. */
export interface Traffic {
  readonly pulls: number
  readonly hits: number
  /** Counts hits that the upstream could not confirm; they are part of `hits`. */
  readonly stale: number
  readonly misses: number
  readonly errors: number
  readonly bytesServed: number
  readonly bytesFromUpstream: number
  readonly bytesSaved: number
}

/** Holds the traffic of a time span. */
export interface HistoryBucket extends Traffic {
  /**
   * Gives the start of the span, ms since the Unix epoch, a multiple of the step: hours and days are those of UTC, whatever the time
   * zone of the server is.
   */
  readonly at: number
  /** Maps upstreams to the times until their response headers. Counts those beyond the first 20 of a span under `other`. */
  readonly upstreams: Readonly<Record<string, ResponseTimes>>
}

export interface ResponseTimes {
  readonly requests: number
  readonly totalMs: number
  readonly maxMs: number
}

export const minuteMs = 60_000
export const hourMs = 60 * minuteMs
export const dayMs = 24 * hourMs
/** Limits the upstreams of a bucket. */
const maxUpstreams = 20
const otherUpstreams = 'other'

/** Lists the counters in the order in which a line of the file has them. */
export const counters = [
  'pulls',
  'hits',
  'stale',
  'misses',
  'errors',
  'bytesServed',
  'bytesFromUpstream',
  'bytesSaved',
] as const satisfies readonly (keyof Traffic)[]

export type Counts = Record<(typeof counters)[number], number>
type Times = { -readonly [Key in keyof ResponseTimes]: ResponseTimes[Key] }

export interface Bucket extends Counts {
  at: number
  readonly upstreams: Map<string, Times>
}

/** Names what a line of the file holds: a minute that is part of no hour and day yet, one that is, an hour, or a day. */
type LineKind = 'm' | 'k' | 'h' | 'd'

/** Holds the buckets of one step, a limited number. */
export class Level {
  readonly step: number
  readonly #limit: number
  readonly #buckets = new Map<number, Bucket>()

  constructor(step: number, limit: number) {
    this.step = step
    this.#limit = limit
  }

  /** Adds the traffic of a shorter span, or of the same. */
  add(bucket: Bucket): void {
    const at = toStart(bucket.at, this.step)
    let known = this.#buckets.get(at)
    if (!known) this.#buckets.set(at, (known = createBucket(at)))
    addBucket(known, bucket)
  }

  /** Drops buckets beyond the limit: first those that the clock, set back meanwhile, has not reached yet, then the oldest. */
  prune(now: number): void {
    if (this.#buckets.size <= this.#limit) return
    const kept = this.list().toSorted(
      (one, other) => Number(one.at > now) - Number(other.at > now) || other.at - one.at,
    )
    for (const { at } of kept.slice(this.#limit)) this.#buckets.delete(at)
  }

  /** Lists the buckets, the oldest first. */
  list(): Bucket[] {
    return [...this.#buckets.values()].toSorted((one, other) => one.at - other.at)
  }
}

export function toStart(time: number, step: number): number {
  return Math.floor(time / step) * step
}

export function createBucket(at: number): Bucket {
  return {
    at,
    pulls: 0,
    hits: 0,
    stale: 0,
    misses: 0,
    errors: 0,
    bytesServed: 0,
    bytesFromUpstream: 0,
    bytesSaved: 0,
    upstreams: new Map(),
  }
}

export function addBucket(target: Bucket, source: Bucket): void {
  for (const counter of counters) target[counter] += source[counter]
  for (const [upstream, times] of source.upstreams) addTimes(target, upstream, times)
}

export function addTimes({ upstreams }: Bucket, upstream: string, { requests, totalMs, maxMs }: ResponseTimes): void {
  const isKept = upstreams.has(upstream) || (upstreams.size < maxUpstreams && /^[\x21-\x7E]{1,253}$/.test(upstream))
  const name = isKept ? upstream : otherUpstreams
  let times = upstreams.get(name)
  if (!times) upstreams.set(name, (times = { requests: 0, totalMs: 0, maxMs: 0 }))
  times.requests += requests
  times.totalMs += totalMs
  times.maxMs = Math.max(times.maxMs, maxMs)
}

export function isEmpty(bucket: Bucket): boolean {
  return bucket.upstreams.size === 0 && counters.every((counter) => bucket[counter] === 0)
}

export function pickCounts(bucket: Bucket): Counts {
  const { at: _at, upstreams: _upstreams, ...counts } = bucket
  return counts
}

export function toHistoryBucket(bucket: Bucket): HistoryBucket {
  return { at: bucket.at, ...pickCounts(bucket), upstreams: Object.fromEntries(bucket.upstreams) }
}

/** Formats a line of the file: `["m",1764500040000,[pulls, hits …],{"docker.io":[requests,totalMs,maxMs]}]`. */
export function formatLine(kind: LineKind, bucket: Bucket): string {
  const counts = counters.map((counter) => bucket[counter])
  const times = [...bucket.upstreams].map(([name, { requests, totalMs, maxMs }]) => {
    return [name, [requests, totalMs, maxMs]] as const
  })
  return `${JSON.stringify([kind, bucket.at, counts, Object.fromEntries(times)])}\n`
}

const steps: Record<LineKind, number> = { m: minuteMs, k: minuteMs, h: hourMs, d: dayMs }

/** Parses a line of the file; undefined for a damaged one. */
export function parseLine(line: string): { kind: LineKind; bucket: Bucket } | undefined {
  const [kind, at, counts, upstreams] = parseList(line) ?? []
  if (kind !== 'm' && kind !== 'k' && kind !== 'h' && kind !== 'd') return undefined
  if (!isCount(at) || at % steps[kind] !== 0 || !isCounts(counts, counters.length) || !isObject(upstreams))
    return undefined
  const bucket = createBucket(at)
  for (const [index, counter] of counters.entries()) bucket[counter] = counts[index]!
  for (const [upstream, times] of Object.entries(upstreams)) {
    if (!isCounts(times, 3)) return undefined
    addTimes(bucket, upstream, { requests: times[0]!, totalMs: times[1]!, maxMs: times[2]! })
  }
  return { kind, bucket }
}

function parseList(text: string): readonly unknown[] | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return Array.isArray(value) ? value : undefined
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
}

function isCounts(value: unknown, length: number): value is number[] {
  return Array.isArray(value) && value.length === length && value.every(isCount)
}

function isCount(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0
}
