import { deferred, type Deferred } from './deferred.ts'

export interface TakeOptions {
  readonly signal?: AbortSignal | undefined
  /** Who takes it. One owner gets at most half of what the others leave. */
  readonly owner?: string | undefined
  /** Restarts the patience each time the work of the owner moves on: see `moved`. */
  readonly whileMoving?: boolean
}

interface Waiter {
  readonly owner: string | undefined
  readonly turn: Deferred<(() => void) | undefined>
  /** Restarts the patience; undefined without `whileMoving`. */
  readonly restart: (() => void) | undefined
}

/** Bytes after which the work of an owner counts as moving on. A body that comes a byte at a time does not. */
const movedBytes = 256 * 1024

/**
 * Limits how many of something are in use at a time; the rest waits in order. An owner gets at most half of the slots that other
 * owners leave: half of all when it is alone, a quarter when another one has its half. An owner that holds none gets any free
 * slot, so that owners whose work hangs do not keep it out.
 */
export class Slots {
  readonly limit: number
  #taken = 0
  readonly #held = new Map<string, number>()
  readonly #waiting = new Set<Waiter>()
  /** Bytes since the patience of an owner's waiters last began again. */
  readonly #moved = new Map<string | undefined, number>()

  constructor(limit: number) {
    this.limit = limit
  }

  get free(): number {
    return this.limit - this.#taken
  }

  /** How many wait for a slot. */
  get waiting(): number {
    return this.#waiting.size
  }

  /** How many a single owner gets at most. */
  get mostOfOne(): number {
    return Math.ceil(this.limit / 2)
  }

  /** Whether no slot is taken and nobody waits. */
  get isUnused(): boolean {
    return this.#taken === 0 && this.#waiting.size === 0
  }

  /** How many an owner would get now. */
  roomFor(owner: string): number {
    const held = this.#held.get(owner) ?? 0
    const share = Math.ceil((this.free + held) / 2) - held
    return Math.max(0, Math.min(this.free, share))
  }

  /** Takes a slot and returns how to give it back; undefined when there is none for this owner. */
  tryTake(owner?: string): (() => void) | undefined {
    const room = owner === undefined ? this.free : this.roomFor(owner)
    if (room <= 0) return undefined
    this.#count(owner, 1)
    let isHeld = true
    return () => {
      if (!isHeld) return
      isHeld = false
      this.#count(owner, -1)
      this.#handOn()
    }
  }

  /**
   * Takes a slot, at once or when it is this caller's turn, and returns how to give it back; undefined when that takes longer than
   * `patience` ms. Rejects with the signal's reason.
   */
  async take(
    patience: number,
    { signal, owner, whileMoving = false }: TakeOptions = {},
  ): Promise<(() => void) | undefined> {
    signal?.throwIfAborted()
    const free = this.tryTake(owner)
    if (free) return free
    const turn = deferred<(() => void) | undefined>()
    const timer = setTimeout(() => {
      if (leave()) turn.resolve(undefined)
    }, patience)
    const waiter = { owner, turn, restart: whileMoving ? () => void timer.refresh() : undefined }
    this.#waiting.add(waiter)
    const leave = () => this.#waiting.delete(waiter)
    const onAbort = () => {
      if (leave()) turn.reject(signal?.reason)
    }
    signal?.addEventListener('abort', onAbort, { once: true })
    try {
      return await turn.promise
    } finally {
      clearTimeout(timer)
      signal?.removeEventListener('abort', onAbort)
    }
  }

  /** Notes bytes that came to the holder of a slot. Enough of them restart the patience of this owner's waiters. */
  moved(bytes: number, owner?: string): void {
    if (this.#waiting.size === 0) return this.#moved.clear()
    const sum = (this.#moved.get(owner) ?? 0) + bytes
    this.#moved.set(owner, sum < movedBytes ? sum : 0)
    if (sum < movedBytes) return
    for (const waiter of this.#waiting) if (waiter.owner === owner) waiter.restart?.()
  }

  #count(owner: string | undefined, change: 1 | -1): void {
    this.#taken += change
    if (owner === undefined) return
    const held = (this.#held.get(owner) ?? 0) + change
    if (held > 0) this.#held.set(owner, held)
    else this.#held.delete(owner)
  }

  #handOn(): void {
    /** Owners whose first waiter gets no slot; their other waiters get none either. */
    const full = new Set<string | undefined>()
    for (const waiter of this.#waiting) {
      if (this.free <= 0) return
      if (full.has(waiter.owner)) continue
      const taken = this.tryTake(waiter.owner)
      if (!taken) {
        full.add(waiter.owner)
        continue
      }
      this.#waiting.delete(waiter)
      waiter.turn.resolve(taken)
    }
  }
}
