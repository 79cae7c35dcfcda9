import { open, rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import { getErrno } from '../lib/errors.ts'
import { makeFolder, readSmallFile, replaceFile } from '../lib/fs.ts'
import type { Clock } from '../lib/time.ts'
import {
  addBucket,
  addTimes,
  type Bucket,
  type Counts,
  counters,
  createBucket,
  dayMs,
  formatLine,
  type HistoryBucket,
  hourMs,
  isEmpty,
  Level,
  minuteMs,
  parseLine,
  pickCounts,
  toHistoryBucket,
  toStart,
  type Traffic,
} from './buckets.ts'
import type { Totals } from './stats.ts'

export const historyRanges = ['hour', 'day', 'week', 'month'] as const

export type HistoryRange = (typeof historyRanges)[number]

/** Holds the traffic of a range: `hour` and `day` in steps of a minute, `week` of an hour, `month` of a day. Empty spans are left out. */
export interface HistoryReport {
  readonly range: HistoryRange
  /** Gives the length of a span, ms. */
  readonly step: number
  /** Gives the bounds of the range, ms since the Unix epoch. */
  readonly from: number
  readonly to: number
  readonly buckets: readonly HistoryBucket[]
}

/** Limits the file, bytes. */
const maxFileBytes = 3_000_000
/** Limits the file after it was rewritten, and the temporary file: together they never have more than 5 MB. */
const maxRewrittenBytes = 2_000_000

const ranges: Record<HistoryRange, { readonly level: 'minutes' | 'hours' | 'days'; readonly count: number }> = {
  hour: { level: 'minutes', count: 60 },
  day: { level: 'minutes', count: 24 * 60 },
  week: { level: 'hours', count: 7 * 24 },
  month: { level: 'days', count: 31 },
}

interface HistoryOptions {
  readonly path: string
  /** Holds the counters that grow with the traffic. They must have their saved values before the history is created. */
  readonly totals: Readonly<Totals>
  readonly clock: Pick<Clock, 'wall'>
}

/**
 * Keeps the traffic of the last minutes, hours and days. A request costs nothing here: the traffic of a minute is the difference of the
 * totals at its bounds. A minute that has ended is a line of the file; lines of one minute are added up, and are kept by number and not
 * by age. So a clock that jumps damages and loses nothing.
 */
export class TrafficHistory {
  readonly #path: string
  readonly #totals: Readonly<Totals>
  readonly #clock: Pick<Clock, 'wall'>
  /** Each keeps more than its ranges need: a day of 25 hours since midnight, a week that begins within an hour, more than a year. */
  readonly #levels = {
    minutes: new Level(minuteMs, 26 * 60),
    hours: new Level(hourMs, 8 * 24),
    days: new Level(dayMs, 400),
  }
  /** Holds the totals at the start of the open minute. */
  #base: Counts
  /** Holds the times of the open minute; its counters are the difference of the totals. */
  #open: Bucket
  /** Holds the lines that are not in the file. */
  #pending: string[] = []
  #fileBytes = 0
  /** Is true when the file does not have what is in memory, apart from the pending lines. */
  #needsRewrite = false
  #isSaved = true

  constructor({ path, totals, clock }: HistoryOptions) {
    this.#path = path
    this.#totals = totals
    this.#clock = clock
    this.#base = readTotals(totals)
    this.#open = createBucket(toStart(clock.wall(), minuteMs))
  }

  /** Reads what earlier starts have saved. Skips damaged lines. */
  async load(): Promise<void> {
    let text: string
    try {
      text = await readSmallFile(this.#path, maxFileBytes)
    } catch (error) {
      // Treats a file that cannot be read as a damaged one.
      if (getErrno(error) === undefined) throw error
      this.#needsRewrite = getErrno(error) !== 'ENOENT'
      return
    }
    this.#fileBytes = Buffer.byteLength(text)
    const lines = text.split('\n')
    // A line without an end may be cut anywhere.
    if (lines.pop() !== '') this.#needsRewrite = true
    for (const line of lines) if (!this.#loadLine(line)) this.#needsRewrite = true
    for (const level of Object.values(this.#levels)) level.prune(this.#clock.wall())
  }

  #loadLine(line: string): boolean {
    const parsed = parseLine(line)
    if (!parsed) return false
    const { kind, bucket } = parsed
    const { minutes, hours, days } = this.#levels
    if (kind === 'm' || kind === 'k') minutes.add(bucket)
    if (kind === 'm' || kind === 'h') hours.add(bucket)
    if (kind === 'm' || kind === 'd') days.add(bucket)
    return true
  }

  /** Records the time until the response headers of an upstream. */
  recordResponse(upstream: string, milliseconds: number): void {
    this.roll()
    const rounded = Math.round(milliseconds)
    addTimes(this.#open, upstream, { requests: 1, totalMs: rounded, maxMs: rounded })
  }

  /** Ends the open minute when the clock shows another one. Call it at the end of each minute. */
  roll(): void {
    if (toStart(this.#clock.wall(), minuteMs) !== this.#open.at) this.end()
  }

  /** Ends the open minute. What is recorded later in this minute is added to it. */
  end(): void {
    const closed = this.#readOpen()
    const now = this.#clock.wall()
    this.#base = readTotals(this.#totals)
    this.#open = createBucket(toStart(now, minuteMs))
    if (isEmpty(closed)) return
    for (const level of Object.values(this.#levels)) {
      level.add(closed)
      level.prune(now)
    }
    this.#pending.push(formatLine('m', closed))
    this.#isSaved = false
  }

  /** Returns the buckets of a range that ends now. */
  report(range: HistoryRange): HistoryReport {
    this.roll()
    const { level, count } = ranges[range]
    const { step } = this.#levels[level]
    const to = toStart(this.#clock.wall(), step) + step
    const from = to - count * step
    const open = this.#readOpen()
    const shown = new Level(step, Infinity)
    for (const bucket of this.#levels[level].list()) if (bucket.at >= from && bucket.at < to) shown.add(bucket)
    if (!isEmpty(open)) shown.add(open)
    return { range, step, from, to, buckets: shown.list().map(toHistoryBucket) }
  }

  /** Adds up the traffic since a time within the last day. */
  since(time: number): Traffic {
    this.roll()
    const now = this.#clock.wall()
    const sum = createBucket(0)
    for (const bucket of this.#levels.minutes.list()) if (bucket.at >= time && bucket.at <= now) addBucket(sum, bucket)
    addBucket(sum, this.#readOpen())
    return pickCounts(sum)
  }

  /** Writes the minutes that have ended to the file. Throws the system's error; the next call writes the same again then. */
  async save(): Promise<void> {
    this.roll()
    if (this.#isSaved) return
    this.#isSaved = true
    const text = this.#pending.splice(0).join('')
    const mayAppend = !this.#needsRewrite && this.#fileBytes + text.length <= maxFileBytes
    try {
      if (!mayAppend || !(await this.#append(text))) await this.#rewrite()
      this.#needsRewrite = false
    } catch (error) {
      // Part of the text may be in the file. Everything is in memory.
      this.#needsRewrite = true
      this.#isSaved = false
      throw error
    }
  }

  /** Returns false when the file is not the one that was written last: it was removed or changed. */
  async #append(text: string): Promise<boolean> {
    const file = await open(this.#path, 'a', 0o600)
    try {
      if ((await file.stat()).size !== this.#fileBytes) return false
      await file.appendFile(text)
      this.#fileBytes += text.length
      return true
    } finally {
      await file.close()
    }
  }

  async #rewrite(): Promise<void> {
    // The memory has the pending lines too.
    this.#pending = []
    const text = this.#format()
    const temporary = `${this.#path}.new`
    await makeFolder(dirname(this.#path))
    // A crash may have left one.
    await rm(temporary, { force: true })
    await replaceFile(this.#path, temporary, text)
    this.#fileBytes = text.length
  }

  /** Formats all buckets; the oldest minutes are left out when there is too much. */
  #format(): string {
    const { minutes, hours, days } = this.#levels
    const lines: string[] = []
    let bytes = 0
    for (const [kind, level] of [
      ['d', days],
      ['h', hours],
      ['k', minutes],
    ] as const)
      for (const bucket of level.list().toReversed()) {
        const line = formatLine(kind, bucket)
        if (bytes + line.length > maxRewrittenBytes) break
        bytes += line.length
        lines.push(line)
      }
    return lines.join('')
  }

  /** Returns the traffic of the open minute. */
  #readOpen(): Bucket {
    const now = readTotals(this.#totals)
    const bucket: Bucket = { ...this.#open }
    for (const counter of counters) bucket[counter] = now[counter] - this.#base[counter]
    return bucket
  }
}

/** Returns the last local midnight before a time, ms since the Unix epoch. */
export function getLocalMidnight(time: number): number {
  return new Date(time).setHours(0, 0, 0, 0)
}

function readTotals(totals: Readonly<Totals>): Counts {
  const { pulls, hits, staleServed, misses, errors, bytesServed, bytesFromUpstream, bytesSaved } = totals
  return { pulls, hits, stale: staleServed, misses, errors, bytesServed, bytesFromUpstream, bytesSaved }
}
