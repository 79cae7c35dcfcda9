import { every } from './every.ts'
import { slowHolders, type MovingHolder } from './slow-holders.ts'

export interface MemoryBudgetOptions {
  /** Bytes that may be held at a time. */
  readonly bytes: number
  /** Reservations that wait; further ones are refused at once. */
  readonly mostWaiting: number
  /** How long one waits, ms; then it is refused. */
  readonly patience: number
  /** How often holders are looked at while others wait, ms. */
  readonly lookEvery?: number
  /** How long the first in the line waits before the slowest holder is ended for it, ms. */
  readonly turn?: number
  /** Further memory, only for reservations of at most `largest` bytes that find no room: they never wait for larger ones. */
  readonly small?: { readonly largest: number; readonly bytes: number }
}

/** There is no memory for a body now. Ask again after `retryAfterSeconds`. */
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
  /** Ends a holder that makes too little progress while others wait. It releases its bytes by itself. */
  readonly evict?: (error: BudgetError) => void
  /** Bytes that move before the holder is done; as many as it holds when nobody knows. */
  readonly expected?: number | undefined
}

/** Memory that somebody holds. */
export interface Reservation {
  /** Notes bytes that the other side has sent or taken. */
  progress(bytes: number): void
  /** Says that nobody is waited for any more: from now on it is not evicted. */
  settle(): void
  /** Takes more. Throws a BudgetError when it cannot be had: at once when somebody else waits for more, else after a while. */
  grow(bytes: number): Promise<void>
  /** Gives everything back, and ends a `grow` that waits; further calls do nothing. */
  release(): void
}

interface Holder extends MovingHolder {
  readonly evict: ((error: BudgetError) => void) | undefined
  /** While it waits for more. */
  growing: AbortController | undefined
}

interface Waiter {
  readonly bytes: number
  /** `performance.now()`. */
  readonly since: number
  readonly grant: () => void
}

const usualLookEvery = 250
const usualTurn = 2000
/** Holders of the further memory that wait to leave it: they keep it from others as long as they do. */
const mostLeaving = 8

/**
 * The memory for bodies in flight. A body is let in when there is room for the whole of it, in the order of coming, so that two
 * half-read bodies never wait for each other. A holder that grows goes before those who wait to come in, and only one at a time
 * may wait for that. While others wait, a holder whose client or upstream is slow is ended; and once the first of them has
 * waited for a turn, the holder that is the furthest from its end. Among equals that is the latest, so that the others finish.
 */
export class MemoryBudget {
  readonly #options: MemoryBudgetOptions
  readonly #holders = new Set<Holder>()
  readonly #waiting = new Set<Waiter>()
  #growing: Waiter | undefined
  #held = 0
  #stopLooking: (() => void) | undefined
  /** `performance.now()` of the last look. */
  #lookedAt = 0
  readonly #lookEvery: number
  readonly #turn: number
  readonly #small: MemoryBudget | undefined
  #leaving = 0

  constructor(options: MemoryBudgetOptions) {
    this.#options = options
    this.#lookEvery = options.lookEvery ?? usualLookEvery
    this.#turn = options.turn ?? usualTurn
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

  /** The one that is let in next. */
  get #first(): Waiter | undefined {
    return this.#growing ?? this.#waiting.values().next().value
  }

  /** Resolves when there is room for so many bytes; for more than there can be, when there is nothing else. Throws a BudgetError. */
  async reserve(bytes: number, options: ReserveOptions = {}): Promise<Reservation> {
    const wanted = Math.min(bytes, this.#options.bytes)
    if (!this.#first && this.#hasRoom(wanted)) {
      this.#held += wanted
      return this.#hold(wanted, options)
    }
    if (this.#small && bytes <= this.#options.small!.largest)
      return this.#holdSmall(await this.#small.reserve(bytes, options), bytes, options)
    if (this.#waiting.size >= this.#options.mostWaiting) throw new BudgetError()
    await this.#wait(wanted, options.signal, (waiter) => this.#waiting.add(waiter))
    return this.#hold(wanted, options)
  }

  #hold(bytes: number, { evict, expected }: ReserveOptions): Reservation {
    const since = performance.now()
    const holder: Holder = {
      bytes,
      moved: 0,
      progressed: 0,
      evict,
      expected,
      since,
      isKnown: false,
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
        this.#give(wanted)
        throw new BudgetError()
      },
      release: () => {
        if (isReleased) return
        isReleased = true
        this.#holders.delete(holder)
        holder.growing?.abort(new BudgetError())
        this.#give(holder.bytes)
      },
    }
  }

  /** Waits before all others. The time is not the holder's: it could not go on. */
  async #waitToGrow(holder: Holder, bytes: number): Promise<void> {
    if (this.#growing) throw new BudgetError()
    const begun = performance.now()
    holder.growing = new AbortController()
    try {
      await this.#wait(bytes, holder.growing.signal, (waiter) => (this.#growing = waiter))
    } finally {
      holder.growing = undefined
      holder.isKnown = false
      holder.since += performance.now() - begun
    }
  }

  /** A part of the further memory. One that grows leaves it, and waits for that as everybody does who comes in. */
  #holdSmall(small: Reservation, bytes: number, options: ReserveOptions): Reservation {
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
        if (this.#leaving >= mostLeaving) throw new BudgetError()
        // It waits for us from now on.
        small.settle()
        this.#leaving++
        try {
          held = await this.reserve(bytes + more, { ...options, signal: leaving.signal })
        } finally {
          this.#leaving--
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

  #give(bytes: number): void {
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
        // Those behind it may be smaller.
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
      const late = setTimeout(() => giveUp(new BudgetError()), this.#options.patience)
      signal?.addEventListener('abort', onAbort, { once: true })
      enter(waiter)
      this.#startLooking()
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

  #startLooking(): void {
    if (this.#stopLooking) return
    this.#lookedAt = performance.now()
    this.#stopLooking = every(this.#lookEvery, () => this.#look(), warn)
  }

  /** Ends holders that have moved too little since the last look, and the slowest one for a first waiter whose turn it is. */
  #look(): void {
    if (!this.#first) {
      this.#stopLooking?.()
      this.#stopLooking = undefined
      for (const holder of this.#holders) holder.isKnown = false
      return
    }
    const now = performance.now()
    const isLate = now - this.#lookedAt > 2 * this.#lookEvery
    this.#lookedAt = now
    // What has come while the process itself was busy is not counted yet.
    if (isLate) return
    const isDue = now - this.#first.since >= this.#turn
    for (const holder of slowHolders(this.#holders, now, { turn: this.#turn, isDue })) {
      this.#holders.delete(holder)
      holder.evict!(new BudgetError('The mirror needs the memory of a body that came or went too slowly.'))
    }
  }
}

function warn(error: unknown): void {
  process.emitWarning(`could not look at the bodies in flight: ${String(error)}`)
}
