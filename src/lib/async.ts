import { setImmediate } from 'node:timers/promises'
import type { Clock } from './time.ts'

/** A promise that is settled from outside. */
export interface Deferred<T> {
  readonly promise: Promise<T>
  resolve(value: T): void
  reject(reason: unknown): void
}

/** `Promise.withResolvers`, which Node 20 does not have. */
export function deferred<T = void>(): Deferred<T> {
  let resolve!: (value: T) => void
  let reject!: (reason: unknown) => void
  const promise = new Promise<T>((onResolve, onReject) => {
    resolve = onResolve
    reject = onReject
  })
  return { promise, resolve, reject }
}

/** The result of work that knows no signal; rejects with the signal's reason when that aborts first. The work itself goes on. */
export function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason)
    if (signal.aborted) onAbort()
    signal.addEventListener('abort', onAbort, { once: true })
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort))
  })
}

/** Waits for something that others wait for too: an abort ends this wait alone, with the signal's reason. */
export async function untilAborted<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return promise
  signal.throwIfAborted()
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason)
    signal.addEventListener('abort', onAbort, { once: true })
    void promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort))
  })
}

/** Runs the task for every item, at most `limit` at a time; ends with the first failure. */
export async function eachLimited<Item>(
  items: Iterable<Item>,
  limit: number,
  task: (item: Item) => Promise<void>,
): Promise<void> {
  const iterator = items[Symbol.iterator]()
  const worker = async () => {
    for (let next = iterator.next(); !next.done; next = iterator.next()) await task(next.value)
  }
  await Promise.all(Array.from({ length: limit }, worker))
}

/** Runs tasks of the same key one after the other, in the order they came; tasks of different keys at once. */
export class KeyedQueue<Key> {
  readonly #tails = new Map<Key, Promise<void>>()

  run<Result>(key: Key, task: () => Promise<Result>): Promise<Result> {
    const previous = this.#tails.get(key)
    const result = previous ? previous.then(task) : task()
    const removeTail = () => {
      if (this.#tails.get(key) === tail) this.#tails.delete(key)
    }
    // The next in line waits for the end, not for success.
    const tail: Promise<void> = result.then(removeTail, removeTail)
    this.#tails.set(key, tail)
    return result
  }

  /** Resolves when the tasks there are now have ended, well or not. */
  async idle(): Promise<void> {
    await Promise.all(this.#tails.values())
  }
}

/** Lets many callers that want the same thing at the same moment share one attempt. */
export class SingleFlight<T> {
  readonly #running = new Map<string, Flight<T>>()

  /** Joins the running attempt for the key, or starts one. A settled attempt is forgotten before anyone who waits for it wakes. */
  run(key: string, start: () => Promise<T>): Flight<T> & { readonly joined: boolean } {
    const running = this.#running.get(key)
    if (running) return { ...running, joined: true }
    const result = start().finally(() => this.#running.delete(key))
    const flight = { result, startedAt: performance.now() }
    this.#running.set(key, flight)
    return { ...flight, joined: false }
  }
}

interface Flight<T> {
  readonly result: Promise<T>
  /** `performance.now()`. */
  readonly startedAt: number
}

/** The flight's result, or `slow` once it has taken longer than anyone should wait with an answer at hand; ms. */
export async function resultWithin<T>(
  { result, startedAt }: Flight<T>,
  timeoutMs: number,
  clock: Pick<Clock, 'sleep'>,
): Promise<T | 'slow'> {
  const ending = new AbortController()
  const leftMs = Math.max(0, timeoutMs - (performance.now() - startedAt))
  try {
    return await Promise.race([result, clock.sleep(leftMs, ending.signal).then(() => 'slow' as const)])
  } finally {
    ending.abort()
  }
}

/** Resolves at the next progress, or when the signal aborts; the caller has to look which. */
export async function nextProgress(progress: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  if (!signal) return progress
  const aborted = deferred()
  const onAbort = () => aborted.resolve()
  signal.addEventListener('abort', onAbort, { once: true })
  await Promise.race([progress, aborted.promise])
  signal.removeEventListener('abort', onAbort)
}

// Long enough to get on, short enough for nobody to notice.
const sliceMs = 10

/** Lets other work in between, when enough time has passed since the last pause. */
export function createPauses(clock: Clock): () => Promise<void> {
  let startedAt = clock.monotonic()
  return async () => {
    if (clock.monotonic() - startedAt < sliceMs) return
    await setImmediate()
    startedAt = clock.monotonic()
  }
}

/** Runs long work that pauses at every `yield`; undefined when the signal has ended it early. */
export async function inSlices<Result>(
  work: Generator<undefined, Result>,
  clock: Clock,
  signal: AbortSignal,
): Promise<Result | undefined> {
  const pause = createPauses(clock)
  while (!signal.aborted) {
    const step = work.next()
    if (step.done) return step.value
    await pause()
  }
  return undefined
}

interface TakeOptions {
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
const minProgressBytes = 256 * 1024

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
  readonly #movedBytes = new Map<string | undefined, number>()

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
      this.#admitWaiters()
    }
  }

  /**
   * Takes a slot, at once or when it is this caller's turn, and returns how to give it back; undefined when that takes longer than
   * `patience` ms. Rejects with the signal's reason.
   */
  async take(
    timeoutMs: number,
    { signal, owner, whileMoving = false }: TakeOptions = {},
  ): Promise<(() => void) | undefined> {
    signal?.throwIfAborted()
    const free = this.tryTake(owner)
    if (free) return free
    const turn = deferred<(() => void) | undefined>()
    const timer = setTimeout(() => {
      if (leave()) turn.resolve(undefined)
    }, timeoutMs)
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
    if (this.#waiting.size === 0) return this.#movedBytes.clear()
    const sum = (this.#movedBytes.get(owner) ?? 0) + bytes
    this.#movedBytes.set(owner, sum < minProgressBytes ? sum : 0)
    if (sum < minProgressBytes) return
    for (const waiter of this.#waiting) if (waiter.owner === owner) waiter.restart?.()
  }

  #count(owner: string | undefined, change: 1 | -1): void {
    this.#taken += change
    if (owner === undefined) return
    const held = (this.#held.get(owner) ?? 0) + change
    if (held > 0) this.#held.set(owner, held)
    else this.#held.delete(owner)
  }

  #admitWaiters(): void {
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
