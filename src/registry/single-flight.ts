import type { Clock } from '../lib/clock.ts'

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

export interface Flight<T> {
  readonly result: Promise<T>
  /** `performance.now()`. */
  readonly startedAt: number
}

/** The flight's result, or `slow` once it has taken longer than anyone should wait with an answer at hand; ms. */
export async function resultWithin<T>(
  { result, startedAt }: Flight<T>,
  patience: number,
  clock: Pick<Clock, 'sleep'>,
): Promise<T | 'slow'> {
  const ending = new AbortController()
  const left = Math.max(0, patience - (performance.now() - startedAt))
  try {
    return await Promise.race([result, clock.sleep(left, ending.signal).then(() => 'slow' as const)])
  } finally {
    ending.abort()
  }
}
