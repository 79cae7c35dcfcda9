import { runEvery } from './time.ts'

const defaultPollMs = 250
const defaultEvictAfterMs = 2000
/** Limits the holders of extra memory that wait for main memory at a time. While they wait, they block extra memory. */
const maxUpgrades = 8
/** Sets the minimum bytes that a holder must transfer between two polls while others wait. */
const minProgressBytes = 16 * 1024

export interface MemoryBudgetOptions {
  /** Sets the size of the budget, bytes. */
  readonly bytes: number
  /** Limits the reservations that wait. Further ones are refused at once. */
  readonly maxWaiting: number
  /** Limits the wait of a reservation, ms. Then it is refused. */
  readonly maxWaitMs: number
  /** Sets the interval between checks of the holders' progress while others wait, ms. */
  readonly pollMs?: number
  /** Sets the time after which the first waiter makes the slowest holder be evicted, ms. */
  readonly evictAfterMs?: number
  /** Adds extra memory for reservations of at most `maxBytes` that find no room, so that they never wait for larger ones. */
  readonly small?: { readonly maxBytes: number; readonly bytes: number }
}

/** Reports that there is no memory for a body now. The client can try again after `retryAfterSeconds`. */
export class BudgetError extends Error {
  override name = 'BudgetError'
  readonly retryAfterSeconds = 2

  constructor(message = 'Too many request and response bodies are in memory.') {
    super(message)
  }
}

export interface ReserveOptions {
  /** Cancels the wait, which then throws the signal's reason. */
  readonly signal?: AbortSignal
  /** Is called when the holder makes too little progress while others wait. The holder must then release its bytes. */
  readonly evict?: (error: BudgetError) => void
  /** Bytes that the holder transfers in total; default: the bytes that it holds. */
  readonly expected?: number | undefined
}

/** Holds the memory that one holder has reserved. */
export interface Reservation {
  /** Records bytes that the other side has sent or received. */
  progress(bytes: number): void
  /** Records that the other side is done. The holder is not evicted from now on. */
  settle(): void
  /** Reserves more bytes. Throws a BudgetError at once when another holder waits to grow, else after `maxWaitMs`. */
  grow(bytes: number): Promise<void>
  /** Releases all bytes and cancels a `grow` that waits. Further calls do nothing. */
  release(): void
}

interface Holder extends HolderProgress {
  readonly evict: ((error: BudgetError) => void) | undefined
  /** Aborts the wait of `grow`; undefined while none waits. */
  growing: AbortController | undefined
}

interface Waiter {
  readonly bytes: number
  /** `performance.now()`. */
  readonly since: number
  readonly grant: () => void
}

/**
 * Limits the memory for bodies in flight. Bodies are admitted in order of arrival, each when there is room for the whole body, so
 * that two half-read bodies never wait for each other. A holder that grows goes before new bodies, and only one holder at a time
 * may wait to grow. While others wait, holders with a slow client or upstream are evicted. When the first waiter has waited for
 * `evictAfterMs`, the holder with the longest remaining time is evicted; among equals the latest, so that the others finish.
 */
export class MemoryBudget {
  readonly #options: MemoryBudgetOptions
  readonly #holders = new Set<Holder>()
  readonly #waiting = new Set<Waiter>()
  #growing: Waiter | undefined
  #held = 0
  #stopPolling: (() => void) | undefined
  /** `performance.now()` of the last poll. */
  #polledAt = 0
  readonly #pollMs: number
  readonly #evictAfterMs: number
  readonly #small: MemoryBudget | undefined
  #upgrades = 0

  constructor(options: MemoryBudgetOptions) {
    this.#options = options
    this.#pollMs = options.pollMs ?? defaultPollMs
    this.#evictAfterMs = options.evictAfterMs ?? defaultEvictAfterMs
    const { small, ...rest } = options
    this.#small = small && new MemoryBudget({ ...rest, bytes: small.bytes })
  }

  /** Returns the size of the budget, bytes. */
  get bytes(): number {
    return this.#options.bytes
  }

  /** Counts the bytes that are reserved now. */
  get held(): number {
    return this.#held + (this.#small?.held ?? 0)
  }

  /** Counts the reservations that wait. */
  get waiting(): number {
    return this.#waiting.size + (this.#growing ? 1 : 0) + (this.#small?.waiting ?? 0)
  }

  /** Returns the waiter that is admitted next. */
  get #nextWaiter(): Waiter | undefined {
    return this.#growing ?? this.#waiting.values().next().value
  }

  /**
   * Reserves bytes, and waits until there is room for them. A body larger than the budget waits until the budget is empty. Throws a
   * BudgetError when too many wait or the wait takes too long, and the signal's reason.
   */
  async reserve(bytes: number, options: ReserveOptions = {}): Promise<Reservation> {
    const wanted = Math.min(bytes, this.#options.bytes)
    if (!this.#nextWaiter && this.#hasRoom(wanted)) {
      this.#held += wanted
      return this.#createReservation(wanted, options)
    }
    if (this.#small && bytes <= this.#options.small!.maxBytes)
      return this.#createSmallReservation(await this.#small.reserve(bytes, options), bytes, options)
    if (this.#waiting.size >= this.#options.maxWaiting) throw new BudgetError()
    await this.#wait(wanted, options.signal, (waiter) => this.#waiting.add(waiter))
    return this.#createReservation(wanted, options)
  }

  #createReservation(bytes: number, { evict, expected }: ReserveOptions): Reservation {
    const since = performance.now()
    const holder: Holder = {
      bytes,
      moved: 0,
      progressed: 0,
      evict,
      expected,
      since,
      wasPolled: false,
      growing: undefined,
    }
    let isReleased = false
    if (evict) this.#holders.add(holder)
    return {
      progress: (moved) => {
        holder.moved += moved
        holder.progressed += moved
      },
      settle: () => void this.#holders.delete(holder),
      grow: async (more) => {
        const wanted = Math.min(more, this.#options.bytes - holder.bytes)
        if (isReleased) throw new BudgetError()
        if (this.#hasRoom(wanted)) this.#held += wanted
        else await this.#waitToGrow(holder, wanted)
        holder.bytes += wanted
        if (!isReleased) return
        this.#free(wanted)
        throw new BudgetError()
      },
      release: () => {
        if (isReleased) return
        isReleased = true
        this.#holders.delete(holder)
        holder.growing?.abort(new BudgetError())
        this.#free(holder.bytes)
      },
    }
  }

  /** Waits ahead of all others. The wait does not count as slowness of the holder. */
  async #waitToGrow(holder: Holder, bytes: number): Promise<void> {
    if (this.#growing) throw new BudgetError()
    const begun = performance.now()
    holder.growing = new AbortController()
    try {
      await this.#wait(bytes, holder.growing.signal, (waiter) => (this.#growing = waiter))
    } finally {
      holder.growing = undefined
      holder.wasPolled = false
      holder.since += performance.now() - begun
    }
  }

  /** Wraps a reservation of extra memory. To grow, it moves to main memory and waits there like a new body. */
  #createSmallReservation(small: Reservation, bytes: number, options: ReserveOptions): Reservation {
    let held = small
    let isSettled = false
    const leaving = new AbortController()
    return {
      progress: (moved) => held.progress(moved),
      settle: () => {
        isSettled = true
        held.settle()
      },
      grow: async (more) => {
        if (held !== small) return held.grow(more)
        if (this.#upgrades >= maxUpgrades) throw new BudgetError()
        // Do not evict the holder: from now on the other side waits for this process.
        small.settle()
        this.#upgrades++
        try {
          held = await this.reserve(bytes + more, { ...options, signal: leaving.signal })
        } finally {
          this.#upgrades--
        }
        small.release()
        if (isSettled) held.settle()
        if (!leaving.signal.aborted) return
        held.release()
        throw new BudgetError()
      },
      release: () => {
        leaving.abort(new BudgetError())
        held.release()
      },
    }
  }

  #free(bytes: number): void {
    this.#held -= bytes
    this.#admit()
  }

  #hasRoom(bytes: number): boolean {
    return this.#held + bytes <= this.#options.bytes
  }

  #wait(bytes: number, signal: AbortSignal | undefined, enter: (waiter: Waiter) => void): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason)
      const leave = () => {
        clearTimeout(late)
        signal?.removeEventListener('abort', onAbort)
        this.#waiting.delete(waiter)
        if (this.#growing === waiter) this.#growing = undefined
      }
      const giveUp = (error: unknown) => {
        leave()
        reject(error)
        // Admit smaller reservations behind it that fit now.
        this.#admit()
      }
      const onAbort = () => giveUp(signal!.reason)
      const waiter: Waiter = {
        bytes,
        since: performance.now(),
        grant: () => {
          leave()
          this.#held += bytes
          resolve()
        },
      }
      const late = setTimeout(() => giveUp(new BudgetError()), this.#options.maxWaitMs)
      signal?.addEventListener('abort', onAbort, { once: true })
      enter(waiter)
      this.#startPolling()
    })
  }

  #admit(): void {
    if (this.#growing) {
      if (!this.#hasRoom(this.#growing.bytes)) return
      this.#growing.grant()
    }
    for (const waiter of this.#waiting) {
      if (!this.#hasRoom(waiter.bytes)) return
      waiter.grant()
    }
  }

  #startPolling(): void {
    if (this.#stopPolling) return
    this.#polledAt = performance.now()
    this.#stopPolling = runEvery(this.#pollMs, () => this.#poll(), warnOfFailedPoll)
  }

  /** Evicts holders that have moved too little since the last poll, or the slowest one when the first waiter is due. */
  #poll(): void {
    if (!this.#nextWaiter) {
      this.#stopPolling?.()
      this.#stopPolling = undefined
      for (const holder of this.#holders) holder.wasPolled = false
      return
    }
    const now = performance.now()
    const isLate = now - this.#polledAt > 2 * this.#pollMs
    this.#polledAt = now
    // Skip this poll when the process was busy: it has not read what has arrived meanwhile.
    if (isLate) return
    const isDue = now - this.#nextWaiter.since >= this.#evictAfterMs
    for (const holder of findSlowHolders(this.#holders, now, { graceMs: this.#evictAfterMs, isDue })) {
      this.#holders.delete(holder)
      holder.evict!(new BudgetError('The body was transferred too slowly while others waited for its memory.'))
    }
  }
}

function warnOfFailedPoll(error: unknown): void {
  process.emitWarning(`could not check the bodies in flight: ${String(error)}`)
}

/** Tracks a holder of memory for a body, and the progress of the body. */
interface HolderProgress {
  /** Counts the bytes that the holder has reserved. */
  bytes: number
  /** Counts the bytes of the body transferred in total. */
  moved: number
  /** Counts the bytes transferred since the last poll. */
  progressed: number
  /** Bytes to transfer in total; undefined when unknown. */
  readonly expected: number | undefined
  /** `performance.now()` of the start, plus the time that the holder has waited for memory. */
  since: number
  /** Is true when the last poll saw this holder. */
  wasPolled: boolean
  /** Is defined while the holder waits for more memory. */
  readonly growing: unknown
}

/**
 * Finds the holders to evict while others wait: those that moved too little since the last poll. When there are none and the first
 * waiter is due, the holder with the longest remaining time; among equals the latest, so that the others finish. The
 * latter spares holders in their first `graceMs`, and those whose remaining time is at most `graceMs`.
 */
function findSlowHolders<T extends HolderProgress>(
  holders: Iterable<T>,
  now: number,
  { graceMs, isDue }: { readonly graceMs: number; readonly isDue: boolean },
): T[] {
  const slow: T[] = []
  let slowest: T | undefined
  for (const holder of holders) {
    if (holder.growing !== undefined) continue
    if (holder.wasPolled && holder.progressed < minProgressBytes) slow.push(holder)
    else if (now - holder.since >= graceMs && !(estimateTimeLeft(holder, now) < estimateTimeLeft(slowest, now)))
      slowest = holder
    holder.wasPolled = true
    holder.progressed = 0
  }
  if (isDue && slow.length === 0 && slowest && estimateTimeLeft(slowest, now) > graceMs) slow.push(slowest)
  return slow
}

/** Estimates the remaining time of a holder at its pace, ms. */
function estimateTimeLeft(holder: HolderProgress | undefined, now: number): number {
  if (!holder) return 0
  const { bytes, expected = bytes, moved, since } = holder
  return moved === 0 ? Infinity : (Math.max(0, expected - moved) * (now - since)) / moved
}
