/** Runs tasks of the same key one after the other, in the order they came; tasks of different keys at once. */
export class KeyedQueue<Key> {
  readonly #tails = new Map<Key, Promise<void>>()

  run<Result>(key: Key, task: () => Promise<Result>): Promise<Result> {
    const before = this.#tails.get(key)
    const result = before ? before.then(task) : task()
    const forget = () => {
      if (this.#tails.get(key) === tail) this.#tails.delete(key)
    }
    // The next in line waits for the end, not for success.
    const tail: Promise<void> = result.then(forget, forget)
    this.#tails.set(key, tail)
    return result
  }

  /** Resolves when the tasks there are now have ended, well or not. */
  async idle(): Promise<void> {
    await Promise.all(this.#tails.values())
  }
}
