import { OciError } from '../oci/errors.ts'

/** A comparison of a password that a request waits for. */
export interface PasswordCheck {
  /** The same for requests with the same credential: they share one comparison. */
  readonly key: string
  readonly address: string
  readonly user: string
  readonly password: string
  readonly hash: string
  /** The very same was found to fit before. */
  readonly isTrusted: boolean
}

interface Job extends PasswordCheck {
  /** The requests that wait for it; none is left when their clients have gone. */
  readonly waiters: Set<{
    readonly resolve: (isSame: boolean) => void
    readonly reject: (reason: unknown) => void
  }>
}

/** Comparisons that wait, besides the one that runs. */
const mostWaiting = 8

/**
 * Runs one comparison after the other. A full queue refuses at once: the address, and of its requests the user name, that waits for
 * the most has to yield, so that a flood of wrong passwords is in its own way first.
 */
export class PasswordQueue {
  readonly #compare: (password: string, hash: string) => Promise<boolean>
  #waiting: Job[] = []
  #running: Job | undefined
  #last: PasswordCheck | undefined
  /** How long a comparison took of late, ms. */
  #milliseconds = 100

  constructor(compare: (password: string, hash: string) => Promise<boolean>) {
    this.#compare = compare
  }

  /** Comparisons that wait for their turn. */
  get waiting(): number {
    return this.#waiting.length
  }

  /**
   * Whether the password fits the hash. Throws an OciError 429 when too many are waiting, and the signal's reason when it aborts: what
   * nobody waits for any more is not begun.
   */
  async run(check: PasswordCheck, signal: AbortSignal): Promise<boolean> {
    signal.throwIfAborted()
    const same = [this.#running, ...this.#waiting].find((job) => job?.key === check.key)
    const job = same ?? { ...check, waiters: new Set() }
    if (!same) this.#admit(job)
    return new Promise((resolve, reject) => {
      const leave = () => {
        job.waiters.delete(waiter)
        if (job.waiters.size === 0) this.#waiting = this.#waiting.filter((other) => other !== job)
        reject(signal.reason)
      }
      const stay = () => signal.removeEventListener('abort', leave)
      const waiter = {
        resolve: (isSame: boolean) => (stay(), resolve(isSame)),
        reject: (reason: unknown) => (stay(), reject(reason)),
      }
      job.waiters.add(waiter)
      signal.addEventListener('abort', leave, { once: true })
      if (!this.#running) void this.#work()
    })
  }

  /** Puts a job in the queue. Throws when it is the one that has to yield. */
  #admit(job: Job): void {
    if (this.#waiting.length >= mostWaiting) {
      const yielding = this.#yieldingTo(job)
      if (yielding === job) throw this.#busy()
      this.#waiting = this.#waiting.filter((other) => other !== yielding)
      for (const { reject } of yielding.waiters) reject(this.#busy())
    }
    this.#waiting.push(job)
  }

  #yieldingTo(job: Job): Job {
    const all = [...this.#waiting, job].filter(({ isTrusted }) => !isTrusted)
    // Those that have fitted before are few, and fit again.
    if (all.length === 0) return job
    const ofAddress = most(all, job, ({ address }) => address)
    const ofUser = most(ofAddress, job, ({ user }) => user)
    return ofUser.at(-1)!
  }

  async #work(): Promise<void> {
    for (let job = this.#next(); job; job = this.#next()) {
      this.#running = job
      this.#last = job
      const begun = performance.now()
      try {
        const isSame = await this.#compare(job.password, job.hash)
        for (const { resolve } of job.waiters) resolve(isSame)
      } catch (error) {
        for (const { reject } of job.waiters) reject(error)
      }
      this.#milliseconds = performance.now() - begun
      this.#running = undefined
    }
  }

  /** The next in turn: what has fitted before, then another address than the last one, then another user. */
  #next(): Job | undefined {
    const [first] = this.#waiting
    const next =
      this.#waiting.find(({ isTrusted }) => isTrusted) ??
      this.#waiting.find(({ address }) => address !== this.#last?.address) ??
      this.#waiting.find(({ user }) => user !== this.#last?.user) ??
      first
    this.#waiting = this.#waiting.filter((job) => job !== next)
    return next
  }

  #busy(): OciError {
    const seconds = Math.max(1, Math.ceil(((this.#waiting.length + 1) * this.#milliseconds) / 1000))
    return new OciError('TOOMANYREQUESTS', 429, 'Too many passwords are waiting to be checked. Try again.', {
      'retry-after': String(seconds),
    })
  }
}

/** The largest group; the newcomer's own where several are as large. */
function most(jobs: readonly Job[], newcomer: Job, keyOf: (job: Job) => string): Job[] {
  const groupOf = (key: string) => jobs.filter((job) => keyOf(job) === key)
  const groups = [keyOf(newcomer), ...jobs.map(keyOf)].map(groupOf)
  return groups.reduce((largest, group) => (group.length > largest.length ? group : largest))
}
