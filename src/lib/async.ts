import { setImmediate } from 'node:timers/promises'
import type { Clock } from './time.ts'

/** Limits the time that work blocks the event loop, ms. */
const sliceMs = 10
/** Sets the bytes that count as progress of an owner's work. A body that trickles in makes no progress. */
const minProgressBytes = 256 * 1024

/** Describes a promise with the functions that settle it. */
export interface Deferred<T> {
  readonly promise: Promise<T>
  resolve(value: T): void
  reject(reason: unknown): void
}

/** Creates a promise with its resolvers, as `Promise.withResolvers` does, which Node 20 lacks. */
export function createDeferred<T = void>(): Deferred<T> {
  let resolve!: (value: T) => void
  let reject!: (reason: unknown) => void
  const promise = new Promise<T>((onResolve, onReject) => {
    resolve = onResolve
    reject = onReject
  })
  return { promise, resolve, reject }
}

/** Resolves with the result of the work, or rejects with the signal's reason when the signal aborts first. The work itself continues. */
export function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason)
    if (signal.aborted) onAbort()
    signal.addEventListener('abort', onAbort, { once: true })
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort))
  })
}

/** Waits for a promise that other callers share. An abort ends this wait only, with the signal's reason. */
export async function untilAborted<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  return signal ? unlessAborted(promise, signal) : promise
}

/** Runs the task for every item, at most `limit` at a time. Rejects with the first failure. */
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

/** Runs tasks with the same key one after the other, in order of arrival, and tasks with different keys concurrently. */
export class KeyedQueue<Key> {
  readonly #tails = new Map<Key, Promise<void>>()

  run<Result>(key: Key, task: () => Promise<Result>): Promise<Result> {
    const previous = this.#tails.get(key)
    const result = previous ? previous.then(task) : task()
    const removeTail = () => {
      if (this.#tails.get(key) === tail) this.#tails.delete(key)
    }
    // A failed task does not stop the tasks behind it.
    const tail: Promise<void> = result.then(removeTail, removeTail)
    this.#tails.set(key, tail)
    return result
  }

  /** Resolves when all tasks that are queued now have ended, whether they succeed or fail. */
  async idle(): Promise<void> {
    await Promise.all(this.#tails.values())
  }
}

/** Shares one running attempt among all callers with the same key. */
export class SingleFlight<T> {
  readonly #running = new Map<string, Flight<T>>()

  /** Joins the running attempt for the key, or starts one. An attempt is removed before its waiters resume. */
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

/** Resolves with the flight's result, or with `slow` when the flight takes longer than `timeoutMs`, counted from its start. */
export async function waitForFlight<T>(
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

/** Resolves at the next progress, or when the signal aborts. The caller must check the signal. */
export async function waitForProgress(progress: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  if (!signal) return progress
  const aborted = createDeferred()
  const onAbort = () => aborted.resolve()
  signal.addEventListener('abort', onAbort, { once: true })
  await Promise.race([progress, aborted.promise])
  signal.removeEventListener('abort', onAbort)
}

/** Creates a function that yields to the event loop when 10 ms have passed since the last yield. */
export function createPauses(clock: Clock): () => Promise<void> {
  let startedAt = clock.monotonic()
  return async () => {
    if (clock.monotonic() - startedAt < sliceMs) return
    await setImmediate()
    startedAt = clock.monotonic()
  }
}

/** Runs long work that may pause at every `yield`. Returns undefined when the signal aborts first. */
export async function runInSlices<Result>(
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
  /** Names the owner of the slot. An owner gets at most half of the slots that other owners leave. */
  readonly owner?: string | undefined
  /** Restarts the time-out each time the owner's work makes progress: see `moved`. */
  readonly extendOnProgress?: boolean
}

interface Waiter {
  readonly owner: string | undefined
  readonly turn: Deferred<(() => void) | undefined>
  /** Restarts the time-out; undefined without `extendOnProgress`. */
  readonly restart: (() => void) | undefined
}

/**
 * Limits concurrent use; further callers wait in order. An owner gets at most half of the slots that other owners leave: half of
 * all slots when it is alone, a quarter when another owner holds half. An owner without a slot gets any free slot, so that hanging
 * work of other owners does not lock it out.
 */
export class Slots {
  readonly limit: number
  #taken = 0
  readonly #held = new Map<string, number>()
  readonly #waiting = new Set<Waiter>()
  /** Counts the bytes of each owner since its waiters' time-outs last restarted. */
  readonly #movedBytes = new Map<string | undefined, number>()

  constructor(limit: number) {
    this.limit = limit
  }

  get free(): number {
    return this.limit - this.#taken
  }

  /** Counts the callers that wait for a slot. */
  get waiting(): number {
    return this.#waiting.size
  }

  /** Returns the slots that a single owner gets. */
  get maxPerOwner(): number {
    return Math.ceil(this.limit / 2)
  }

  /** Is true when no slot is taken and no caller waits. */
  get isUnused(): boolean {
    return this.#taken === 0 && this.#waiting.size === 0
  }

  /** Returns how many slots an owner could take now. */
  roomFor(owner: string): number {
    const held = this.#held.get(owner) ?? 0
    const share = Math.ceil((this.free + held) / 2) - held
    return Math.max(0, Math.min(this.free, share))
  }

  /** Takes a slot and returns the function that releases it; undefined when this owner gets none now. */
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
   * Waits for a slot and returns the function that releases it; undefined after `timeoutMs`. Rejects with the signal's reason when
   * the signal aborts first.
   */
  async take(
    timeoutMs: number,
    { signal, owner, extendOnProgress = false }: TakeOptions = {},
  ): Promise<(() => void) | undefined> {
    signal?.throwIfAborted()
    const free = this.tryTake(owner)
    if (free) return free
    const turn = createDeferred<(() => void) | undefined>()
    const timer = setTimeout(() => {
      if (leave()) turn.resolve(undefined)
    }, timeoutMs)
    const waiter = { owner, turn, restart: extendOnProgress ? () => void timer.refresh() : undefined }
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

  /** Records bytes that the holder of a slot received. Every 256 KiB restart the time-outs of this owner's waiters. */
  recordProgress(bytes: number, owner?: string): void {
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
    // Skip owners whose first waiter got no slot: their other waiters get none either.
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
