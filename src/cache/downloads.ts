import type { Clock } from '../lib/time.ts'
import type { Digest } from '../oci/reference.ts'
import type { DownloadReport, Identity } from '../oci/registry.ts'
import { type Download, type DownloadOptions, startDownload } from './download/download.ts'
import type { Miss } from './grants.ts'

/** Holds the repository and the identity that a download was started for. */
export interface DownloadOrigin {
  readonly host: string
  readonly name: string
  readonly identity: Identity
  /** Explains why the blob is fetched. */
  readonly miss: Miss
}

export interface RunningDownload {
  readonly origin: DownloadOrigin
  readonly download: Download
}

interface Tracked extends RunningDownload {
  /** Wall clock ms. */
  readonly startedAt: number
  readonly rate: RateMeter
}

/**
 * Tracks the running downloads. A digest has several only on a full disk, where earlier ones have dropped bytes that a new client
 * needs; new clients join the latest.
 */
export class Downloads {
  readonly #running = new Map<Digest, RunningDownload>()
  readonly #all = new Set<Tracked>()
  readonly #clock: Clock
  /** Counts the ended downloads, so that a caller notices one that ended during an await. */
  endedCount = 0

  constructor(clock: Clock) {
    this.#clock = clock
  }

  get(digest: Digest): RunningDownload | undefined {
    const running = this.#running.get(digest)
    return running?.download.canFollowFrom(0) ? running : undefined
  }

  has(digest: Digest): boolean {
    return this.#running.has(digest)
  }

  start(origin: DownloadOrigin, options: Omit<DownloadOptions, 'onSettled'>): Download {
    const onSettled = () => {
      this.endedCount += 1
      this.#all.delete(tracked)
      if (this.#running.get(options.digest)?.download === download) this.#running.delete(options.digest)
    }
    const rate = new RateMeter(this.#clock)
    const onBytes = (bytes: number) => {
      rate.add(bytes)
      options.onBytes(bytes)
    }
    const download = startDownload({ ...options, onBytes, onSettled })
    const tracked: Tracked = { origin, download, startedAt: this.#clock.wall(), rate }
    this.#running.set(options.digest, tracked)
    this.#all.add(tracked)
    return download
  }

  /** Lists the downloads under way, the oldest first. */
  list(): DownloadReport[] {
    return Array.from(this.#all, ({ origin, download, startedAt, rate }) => ({
      digest: download.digest,
      repository: `${origin.host}/${origin.name}`,
      arrived: download.arrived,
      ...(download.size !== undefined && { size: download.size }),
      followers: download.followers,
      bytesPerSecond: rate.bytesPerSecond(),
      startedAt: new Date(startedAt).toISOString(),
    }))
  }

  /** Resolves when every download has ended. */
  async settle(): Promise<void> {
    await Promise.all(Array.from(this.#all, ({ download: { settled } }) => settled))
  }
}

/** Sets the time that a rate covers, in slots of `slotMs`. */
const rateSlots = 12
const slotMs = 250

/** Measures a rate over the last three seconds, without a timer: bytes are added to the slot of their time. */
export class RateMeter {
  readonly #clock: Pick<Clock, 'monotonic'>
  readonly #begun: number
  readonly #slots = new Float64Array(rateSlots)
  /** Numbers the slot that was last written. */
  #last = 0

  constructor(clock: Pick<Clock, 'monotonic'>) {
    this.#clock = clock
    this.#begun = clock.monotonic()
  }

  add(bytes: number): void {
    const slot = this.#advance()
    this.#slots[slot % rateSlots]! += bytes
  }

  bytesPerSecond(): number {
    this.#advance()
    const bytes = this.#slots.reduce((sum, slot) => sum + slot, 0)
    // The current slot is not complete, and a young download has fewer slots.
    const elapsed = this.#clock.monotonic() - this.#begun
    const covered = Math.min(elapsed, (rateSlots - 1) * slotMs + (elapsed % slotMs))
    return Math.round((bytes / Math.max(covered, slotMs)) * 1000)
  }

  /** Clears the slots that have passed without bytes. Returns the number of the current slot. */
  #advance(): number {
    const now = Math.floor((this.#clock.monotonic() - this.#begun) / slotMs)
    const passed = Math.min(now - this.#last, rateSlots)
    for (let at = 1; at <= passed; at++) this.#slots[(this.#last + at) % rateSlots] = 0
    this.#last = Math.max(this.#last, now)
    return this.#last
  }
}
