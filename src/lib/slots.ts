import { deferred, type Deferred } from './deferred.ts'

/** So many of something at a time; the rest waits in order. */
export class Slots {
  readonly limit: number
  #taken = 0
  readonly #waiting = new Set<Deferred<(() => void) | undefined>>()

  constructor(limit: number) {
    this.limit = limit
  }

  get free(): number {
    return this.limit - this.#taken
  }

  /** How many wait for one. */
  get waiting(): number {
    return this.#waiting.size
  }

  /** Whether nobody holds one and nobody waits for one. */
  get isUnused(): boolean {
    return this.#taken === 0 && this.#waiting.size === 0
  }

  /** One at once, and how to give it back; undefined when there is none. */
  tryTake(): (() => void) | undefined {
    if (this.#taken >= this.limit) return undefined
    this.#taken += 1
    let isHeld = true
    return () => {
      if (!isHeld) return
      isHeld = false
      this.#taken -= 1
      this.#handOn()
    }
  }

  /**
   * One, at once or when it is this caller's turn, and how to give it back; undefined when that takes longer than `patience`
   * ms. Rejects with the signal's reason.
   */
  async take(patience: number, signal?: AbortSignal): Promise<(() => void) | undefined> {
    signal?.throwIfAborted()
    const free = this.tryTake()
    if (free) return free
    const turn = deferred<(() => void) | undefined>()
    this.#waiting.add(turn)
    const leave = () => this.#waiting.delete(turn)
    const onAbort = () => {
      if (leave()) turn.reject(signal?.reason)
    }
    const timer = setTimeout(() => {
      if (leave()) turn.resolve(undefined)
    }, patience)
    signal?.addEventListener('abort', onAbort, { once: true })
    try {
      return await turn.promise
    } finally {
      clearTimeout(timer)
      signal?.removeEventListener('abort', onAbort)
    }
  }

  #handOn(): void {
    const [next] = this.#waiting
    if (!next) return
    const taken = this.tryTake()
    if (!taken) return
    this.#waiting.delete(next)
    next.resolve(taken)
  }
}
