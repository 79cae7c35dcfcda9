import { every } from './time.ts'

export interface MemoryBudgetOptions {
  /** Bytes that may be held at a time. */
  readonly bytes: number
  /** Reservations that wait; further ones are refused at once. */
  readonly maxWaiting: number
  /** How long one waits, ms; then it is refused. */
  readonly maxWaitMs: number
  /** How often the progress of holders is checked while others wait, ms. */
  readonly pollMs?: number
  /** How long the first in the queue waits before the slowest holder is evicted for it, ms. */
  readonly evictAfterMs?: number
  /** Extra memory for reservations of at most `largest` bytes that find no room, so that they never wait for larger ones. */
  readonly small?: { readonly maxBytes: number; readonly bytes: number }
}

/** Says that there is no memory for a body now. Try again after `retryAfterSeconds`. */
export class BudgetError extends Error {
  override name = 'BudgetError'
  readonly retryAfterSeconds = 2

  constructor(message = 'The mirror has as many request and answer bodies in memory as it may.') {
    super(message)
  }
}

export interface ReserveOptions {
  /** Ends the waiting; the signal's reason is thrown. */
  readonly signal?: AbortSignal
  /** Called when the holder makes too little progress while others wait. The holder has to release its bytes. */
  readonly evict?: (error: BudgetError) => void
  /** Bytes that have to move until the holder is done; the bytes that it holds when not given. */
  readonly expected?: number | undefined
}

/** Memory that somebody holds. */
export interface Reservation {
  /** Notes bytes that the other side has sent or taken. */
  progress(bytes: number): void
  /** Notes that the other side has nothing more to do. The holder is not evicted from now on. */
  settle(): void
  /** Takes more bytes. Throws a BudgetError at once when another holder waits for more, else when the patience is over. */
  grow(bytes: number): Promise<void>
  /** Gives everything back, and ends a `grow` that waits; further calls do nothing. */
  release(): void
}

interface Holder extends HolderProgress {
  readonly evict: ((error: BudgetError) => void) | undefined
  /** Set while it waits for more; aborts that. */
  growing: AbortController | undefined
}

interface Waiter {
  readonly bytes: number
  /** `performance.now()`. */
  readonly since: number
  readonly grant: () => void
}

const defaultPollMs = 250
const defaultEvictAfterMs = 2000
/** Holders of the extra memory that may wait for main memory at a time. Until they have it, they keep extra memory from others. */
const maxUpgrades = 8

/**
 * Shares out the memory for bodies in flight. A body is admitted when there is room for the whole of it, first come, first served,
 * so that two half-read bodies never wait for each other. A holder that grows goes before new bodies, and only one holder at a time
 * may wait to grow. While others wait, holders whose client or upstream is slow are evicted. When the first in the queue has waited
 * for `turn` ms, the holder that needs the longest to its end is evicted; among equals the latest, so that the others finish.
 */
export class MemoryBudget {
  readonly #options: MemoryBudgetOptions
  readonly #holders = new Set<Holder>()
  readonly #waiting = new Set<Waiter>()
  #growing: Waiter | undefined
  #held = 0
  #stopPolling: (() => void) | undefined
  /** `performance.now()` of the last look. */
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

  /** Bytes that may be held at a time. */
  get bytes(): number {
    return this.#options.bytes
  }

  /** Bytes that are held now. */
  get held(): number {
    return this.#held + (this.#small?.held ?? 0)
  }

  /** How many wait. */
  get waiting(): number {
    return this.#waiting.size + (this.#growing ? 1 : 0) + (this.#small?.waiting ?? 0)
  }

  /** The waiter that is admitted next. */
  get #nextWaiter(): Waiter | undefined {
    return this.#growing ?? this.#waiting.values().next().value
  }

  /** Resolves when there is room for so many bytes; for more than the whole budget, when the budget is empty. Throws a BudgetError. */
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

  /** Waits before all others. The time of waiting does not count as slowness of the holder. */
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

  /** Wraps a reservation of extra memory. When it grows, it moves to the main memory, and waits for that like a new body. */
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
        // From now on the other side waits for this process.
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
        // A smaller one behind it may fit.
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
    this.#stopPolling = every(this.#pollMs, () => this.#poll(), warnOfFailedPoll)
  }

  /** Evicts holders that have moved too little since the last look, and the slowest one when the first waiter's turn has come. */
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
    // The process was busy, and has not read what has arrived meanwhile.
    if (isLate) return
    const isDue = now - this.#nextWaiter.since >= this.#evictAfterMs
    for (const holder of findSlowHolders(this.#holders, now, { turn: this.#evictAfterMs, isDue })) {
      this.#holders.delete(holder)
      holder.evict!(new BudgetError('The mirror needs the memory of a body that came or went too slowly.'))
    }
  }
}

function warnOfFailedPoll(error: unknown): void {
  process.emitWarning(`could not look at the bodies in flight: ${String(error)}`)
}

/** A holder of memory for a body, and the progress of the body. */
interface HolderProgress {
  /** Bytes that it holds. */
  bytes: number
  /** Bytes of the body that have moved in all. */
  moved: number
  /** Bytes that have moved since the last look. */
  progressed: number
  /** Bytes that have to move until the holder is done; undefined when nobody knows. */
  readonly expected: number | undefined
  /** `performance.now()` of its beginning, moved on by the time that it has waited for memory. */
  since: number
  /** Whether it was there at the last look. */
  wasPolled: boolean
  /** Defined while it waits for more memory. */
  readonly growing: unknown
}

/** Bytes that a holder has to move between two looks while others wait for its memory. */
const minProgressBytes = 16 * 1024

/**
 * Returns the holders to evict while others wait: those that have moved too little since the last look. When there is none and
 * the first waiter is due, returns the one that needs the longest to its end at its pace; among equals the latest, so that the
 * others finish. `turn`: a holder stays for so many ms to show its pace, and when it ends within so many ms.
 */
function findSlowHolders<T extends HolderProgress>(
  holders: Iterable<T>,
  now: number,
  { turn, isDue }: { readonly turn: number; readonly isDue: boolean },
): T[] {
  const slow: T[] = []
  let slowest: T | undefined
  for (const holder of holders) {
    if (holder.growing !== undefined) continue
    if (holder.wasPolled && holder.progressed < minProgressBytes) slow.push(holder)
    else if (now - holder.since >= turn && !(estimateTimeLeft(holder, now) < estimateTimeLeft(slowest, now)))
      slowest = holder
    holder.wasPolled = true
    holder.progressed = 0
  }
  if (isDue && slow.length === 0 && slowest && estimateTimeLeft(slowest, now) > turn) slow.push(slowest)
  return slow
}

/** Estimates how long a holder needs to its end at its pace, ms. */
function estimateTimeLeft(holder: HolderProgress | undefined, now: number): number {
  if (!holder) return 0
  const { bytes, expected = bytes, moved, since } = holder
  return moved === 0 ? Infinity : (Math.max(0, expected - moved) * (now - since)) / moved
}
