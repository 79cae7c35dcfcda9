import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { type MessagePort, Worker } from 'node:worker_threads'
import { OciError } from '../oci/errors.ts'

/** Comparisons that wait behind the running one. */
const maxWaiting = 8

/** Describes a comparison of a password that a request waits for. */
export interface PasswordCheck {
  /** Is equal for requests with the same credential, which share one comparison. */
  readonly key: string
  readonly address: string
  readonly user: string
  readonly password: string
  readonly hash: string
  /** Is true if the same credential was found to be valid before. */
  readonly isTrusted: boolean
}

interface Job extends PasswordCheck {
  /** Holds the requests that wait for the result; empty after their clients disconnected. */
  readonly waiters: Set<{
    readonly resolve: (isSame: boolean) => void
    readonly reject: (reason: unknown) => void
  }>
}

/**
 * Runs one comparison after the other. A full queue refuses a comparison at once: one of the address with the most waiting comparisons,
 * and of its user name with the most, so that a flood of wrong passwords blocks itself first.
 */
export class PasswordQueue {
  readonly #compare: (password: string, hash: string) => Promise<boolean>
  #waiting: Job[] = []
  #running: Job | undefined
  #last: PasswordCheck | undefined
  /** Holds the duration of the last comparison, ms. */
  #milliseconds = 100

  constructor(compare: (password: string, hash: string) => Promise<boolean>) {
    this.#compare = compare
  }

  /** Returns the number of comparisons that wait. */
  get waiting(): number {
    return this.#waiting.length
  }

  /**
   * Returns whether the password matches the hash. Throws an OciError 429 when too many are waiting, and the signal's reason when it
   * aborts: a comparison without a waiting request does not begin.
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

  /** Adds a job to the queue. Throws when the job itself is the one to refuse. */
  #admit(job: Job): void {
    if (this.#waiting.length >= maxWaiting) {
      const yielding = this.#chooseEvicted(job)
      if (yielding === job) throw this.#busy()
      this.#waiting = this.#waiting.filter((other) => other !== yielding)
      for (const { reject } of yielding.waiters) reject(this.#busy())
    }
    this.#waiting.push(job)
  }

  #chooseEvicted(job: Job): Job {
    const all = [...this.#waiting, job].filter(({ isTrusted }) => !isTrusted)
    // Only trusted jobs are left, which are few.
    if (all.length === 0) return job
    const ofAddress = findLargestGroup(all, job, ({ address }) => address)
    const ofUser = findLargestGroup(ofAddress, job, ({ user }) => user)
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

  /** Takes the next job: a trusted one first, then one of another address than the last, then one of another user. */
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

/** Returns the largest group; of equally large groups, the newcomer's. */
function findLargestGroup(jobs: readonly Job[], newcomer: Job, keyOf: (job: Job) => string): Job[] {
  const groupOf = (key: string) => jobs.filter((job) => keyOf(job) === key)
  const groups = [keyOf(newcomer), ...jobs.map(keyOf)].map(groupOf)
  return groups.reduce((largest, group) => (group.length > largest.length ? group : largest))
}

interface Comparison {
  readonly password: string
  readonly hash: string
}

interface Verdict {
  readonly isSame?: boolean
  readonly error?: string
}

/** Runs in the thread. It is sent there as text, so it uses only its arguments. */
function compareAll(port: MessagePort, { compareSync }: { compareSync: (password: string, hash: string) => boolean }) {
  port.on('message', ({ password, hash }: Comparison) => {
    try {
      port.postMessage({ isSame: compareSync(password, hash) } satisfies Verdict)
    } catch (error) {
      port.postMessage({ error: String(error) } satisfies Verdict)
    }
  })
  port.postMessage({} satisfies Verdict)
}

/**
 * Starts a thread that compares passwords with bcrypt hashes, because one comparison takes as long as hundreds of requests. Resolves when
 * it runs. Reads the library once, so that a replacement thread needs no file.
 */
export async function startPasswordThread() {
  const library = await readFile(createRequire(import.meta.url).resolve('bcryptjs'), 'utf8')
  // Contains the library's text, because its path differs between bundle, package and sources.
  const source = `
const library = { exports: {} };
(function (exports, module) {
${library}
})(library.exports, library);
(${compareAll.toString()})(require('node:worker_threads').parentPort, library.exports)`
  let running: Promise<Worker> | undefined
  let closed = false

  function start(): Promise<Worker> {
    const resourceLimits = { maxYoungGenerationSizeMb: 4, maxOldGenerationSizeMb: 32 }
    const worker = new Worker(source, { eval: true, resourceLimits, execArgv: [], env: {} })
    worker.unref()
    const started = receiveVerdict(worker).then(() => worker)
    // Only forgets the thread: a pending comparison receives the failure itself, and the next one starts another thread.
    const forget = () => {
      if (running === started) running = undefined
    }
    worker.on('error', forget)
    worker.once('exit', forget)
    return started
  }

  async function compare(password: string, hash: string): Promise<boolean> {
    const worker = await (running ??= start())
    const answered = receiveVerdict(worker)
    worker.postMessage({ password, hash } satisfies Comparison, [])
    const { isSame, error } = await answered
    if (isSame === undefined) throw new Error(`bcrypt failed: ${error}`)
    return isSame
  }

  await (running = start())
  return {
    /** Runs one comparison at a time. Replaces a thread that dies once; throws the second thread's failure. */
    async compare(password: string, hash: string): Promise<boolean> {
      if (closed) throw new Error('the mirror is stopping')
      try {
        return await compare(password, hash)
      } catch (error) {
        if (closed) throw error
        return compare(password, hash)
      }
    },
    /** Ends the thread. Comparisons under way, and later ones, fail. */
    async close(): Promise<void> {
      closed = true
      const worker = await running?.catch(() => undefined)
      await worker?.terminate()
    },
  }
}

/** Receives the next message of a thread. Throws the thread's failure when it dies before. */
async function receiveVerdict(worker: Worker): Promise<Verdict> {
  const ending = new AbortController()
  const { signal } = ending
  const died = once(worker, 'exit', { signal }).then(() => {
    throw new Error('the password thread has ended')
  })
  try {
    // `once` rejects with an 'error' event.
    const [verdict] = (await Promise.race([once(worker, 'message', { signal }), died])) as [Verdict]
    return verdict
  } finally {
    died.catch(() => {})
    ending.abort()
  }
}
