/** Lets many callers that want the same thing at the same moment share one attempt. */
export class SingleFlight<T> {
  readonly #running = new Map<string, Flight<T>>()

  /** Joins the running attempt for the key, or starts one. A settled attempt is forgotten before anyone who waits for it wakes. */
  run(
    key: string,
    start: () => Promise<T>,
  ): { readonly result: Promise<T>; readonly joined: boolean; readonly startedAt: number } {
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
