import { totalmem } from 'node:os'
import { every } from './every.ts'

const MiB = 1024 * 1024

export interface MemoryBudgetOptions {
  /** Bytes that may be held at a time. */
  readonly bytes: number
  /** Reservations that wait; further ones are refused at once. */
  readonly mostWaiting: number
  /** How long one waits, ms; then it is refused. */
  readonly patience: number
  /** How often holders are looked at while others wait, ms. */
  readonly lookEvery?: number
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
}

/** Memory that somebody holds. */
export interface Reservation {
  /** Notes bytes that the other side has sent or taken. */
  progress(bytes: number): void
  /** Says that nobody is waited for any more: from now on it is not evicted. */
  settle(): void
  /** Takes more. Throws a BudgetError when it cannot be had: at once when somebody else waits for more, else after a while. */
  grow(bytes: number): Promise<void>
  /** Gives everything back; further calls do nothing. */
  release(): void
}

interface Holder {
  bytes: number
  progressed: number
  readonly evict: ((error: BudgetError) => void) | undefined
  /** Whether it was there at the last look. */
  isKnown: boolean
}

interface Waiter {
  readonly bytes: number
  readonly grant: () => void
}

/** Bytes that a holder has to move between two looks while others wait for its memory. */
const leastProgress = 16 * 1024
const usualLookEvery = 250

/**
 * The memory for bodies in flight. A body is let in when there is room for the whole of it, in the order of coming, so that two
 * half-read bodies never wait for each other. A holder that grows goes before those who wait to come in, and only one at a time
 * may wait for that. While others wait, a holder whose client or upstream is slow is ended.
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

  constructor(options: MemoryBudgetOptions) {
    this.#options = options
    this.#lookEvery = options.lookEvery ?? usualLookEvery
  }

  /** Bytes that may be held at a time. */
  get bytes(): number {
    return this.#options.bytes
  }

  /** Bytes that are held now. */
  get held(): number {
    return this.#held
  }

  /** How many wait. */
  get waiting(): number {
    return this.#waiting.size + (this.#growing ? 1 : 0)
  }

  /** Resolves when there is room for so many bytes; for more than there can be, when there is nothing else. Throws a BudgetError. */
  async reserve(bytes: number, options: ReserveOptions = {}): Promise<Reservation> {
    const wanted = Math.min(bytes, this.#options.bytes)
    if (this.waiting > 0 || !this.#hasRoom(wanted)) {
      if (this.#waiting.size >= this.#options.mostWaiting) throw new BudgetError()
      await this.#wait(wanted, options.signal, (waiter) => this.#waiting.add(waiter))
    } else this.#held += wanted
    return this.#hold(wanted, options)
  }

  /** The same without waiting. */
  reserveNow(bytes: number, options: ReserveOptions = {}): Reservation {
    const wanted = Math.min(bytes, this.#options.bytes)
    if (!this.#hasRoom(wanted)) throw new BudgetError()
    this.#held += wanted
    return this.#hold(wanted, options)
  }

  #hold(bytes: number, { evict }: ReserveOptions): Reservation {
    const holder: Holder = { bytes, progressed: 0, evict, isKnown: false }
    let isSettled = evict === undefined
    let isReleased = false
    if (!isSettled) this.#holders.add(holder)
    return {
      progress: (moved) => void (holder.progressed += moved),
      settle: () => {
        isSettled = true
        this.#holders.delete(holder)
      },
      grow: async (more) => {
        const wanted = Math.min(more, this.#options.bytes - holder.bytes)
        if (!this.#hasRoom(wanted)) {
          if (this.#growing) throw new BudgetError()
          await this.#wait(wanted, undefined, (waiter) => (this.#growing = waiter))
        } else this.#held += wanted
        holder.bytes += wanted
      },
      release: () => {
        if (isReleased) return
        isReleased = true
        this.#holders.delete(holder)
        this.#held -= holder.bytes
        this.#admit()
      },
    }
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

  /** Ends holders that have moved too little since the last look. */
  #look(): void {
    if (this.waiting === 0) {
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
    for (const holder of this.#holders) {
      if (holder.isKnown && holder.progressed < leastProgress) {
        this.#holders.delete(holder)
        holder.evict!(new BudgetError('The mirror needs the memory of a body that came or went too slowly.'))
      }
      holder.isKnown = true
      holder.progressed = 0
    }
  }
}

function warn(error: unknown): void {
  process.emitWarning(`could not look at the bodies in flight: ${String(error)}`)
}

/**
 * An eighth of the memory that the process may have, between 16 and 64 MiB. In a container the limit is the container's, which
 * `constrainedMemory` knows; without one it is 0, or larger than any machine.
 */
function usualBudget(): number {
  const limit = process.constrainedMemory() || Infinity
  return Math.max(16 * MiB, Math.min(64 * MiB, Math.floor(Math.min(limit, totalmem()) / 8)))
}

/** The one of this process: its memory is shared by everything that runs in it. */
export const bodyBudget = new MemoryBudget({ bytes: usualBudget(), mostWaiting: 256, patience: 20_000 })
