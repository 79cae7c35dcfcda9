import { LRUCache } from 'lru-cache'
import type { Clock } from '../lib/time.ts'
import type { UpstreamError } from '../upstream/upstream.ts'

/** Upstreams' refusals, remembered for a moment so that a client that asks in a loop does not become their problem. */
export class NegativeCache {
  readonly #entries = new LRUCache<string, { readonly error: UpstreamError; readonly until: number }>({ max: 10_000 })
  readonly #clock: Clock
  readonly #milliseconds: number

  constructor(clock: Clock, milliseconds: number) {
    this.#clock = clock
    this.#milliseconds = milliseconds
  }

  get(key: string): UpstreamError | undefined {
    const entry = this.#entries.get(key)
    return entry && this.#clock.monotonic() < entry.until ? entry.error : undefined
  }

  /** Remembers the error if it is one that says no: absent or denied. */
  remember(key: string, error: UpstreamError): void {
    if (error.failure !== 'absent' && error.failure !== 'denied') return
    this.#entries.set(key, { error, until: this.#clock.monotonic() + this.#milliseconds })
  }
}
