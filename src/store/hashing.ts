import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import type { WorkWatcher } from '../lib/system-errors.ts'
import { type Digest, type DigestAlgorithm, parseDigest } from '../oci/digest.ts'
import { type HashAnswer, type HashOrder, hashWorker } from './hash-worker.ts'

/** Hashes files while they grow, on threads of their own: the event loop has other things to do. */
export interface HashPool {
  /** Starts the first thread, so that it does not have to be started when no file descriptor is left. */
  start(): Promise<void>
  /** Begins at the start of a file that is being written. */
  follow(algorithm: DigestAlgorithm, descriptor: number): FileHash
  /** Ends the threads; hashes that are not finished fail. */
  close(): Promise<void>
}

export interface FileHash {
  /** Says that the file has so many bytes by now. */
  advance(size: number): void
  /** Adds bytes that the file does not have. */
  append(bytes: Uint8Array): void
  /**
   * The digest of all bytes so far; the hash is used up. Throws what reading the file threw, or that the thread died while it
   * had bytes that the file does not have.
   */
  digest(): Promise<Digest>
  /** Resolves when the descriptor is not used any more. */
  close(): Promise<void>
}

/** Threads at most: with more than the disk and the network can feed, none would be faster. */
const mostThreads = 4

interface Thread {
  readonly worker: Worker
  readonly waiting: Map<number, (answer: HashAnswer) => void>
  /** Hashes that are not over. */
  jobs: number
}

export interface HashPoolOptions {
  /** Threads at most. */
  readonly most?: number
  /** Hears whether the threads do their work. */
  readonly watcher?: WorkWatcher | undefined
}

/** `cores`: of the machine; one is left for the event loop. Threads are started when they are first needed. */
export function createHashPool(cores: number, { most = mostThreads, watcher }: HashPoolOptions = {}): HashPool {
  const threads: Thread[] = []
  const limit = Math.max(1, Math.min(most, cores - 1))
  let lastId = 0
  let closed = false

  function start(): Thread {
    // By its text: it is found in the same way in a bundle, in a package and in the sources.
    const source = `(${hashWorker.toString()})(require('node:worker_threads').parentPort, require('node:fs'), require('node:crypto'))`
    const resourceLimits = { maxYoungGenerationSizeMb: 2, maxOldGenerationSizeMb: 32 }
    const worker = new Worker(source, { eval: true, resourceLimits, execArgv: [], env: {} })
    const thread: Thread = { worker, waiting: new Map(), jobs: 0 }
    const fail = (error: unknown) => {
      const at = threads.indexOf(thread)
      if (at !== -1) threads.splice(at, 1)
      if (at !== -1 && !closed) watcher?.failed(error)
      for (const answer of thread.waiting.values()) answer({ id: 0, error })
      thread.waiting.clear()
    }
    worker.on('message', (answer: HashAnswer) => {
      const waiting = thread.waiting.get(answer.id)
      thread.waiting.delete(answer.id)
      waiting?.(answer)
    })
    worker.once('error', fail)
    worker.once('exit', () => fail(new Error('a hashing thread has ended')))
    worker.unref()
    threads.push(thread)
    return thread
  }

  function leastBusy(): Thread {
    const [first] = threads.toSorted((a, b) => a.jobs - b.jobs)
    return first && (first.jobs === 0 || threads.length >= limit) ? first : start()
  }

  function follow(algorithm: DigestAlgorithm, descriptor: number): FileHash {
    const id = ++lastId
    let thread = begin()
    let inFile = 0
    let isAllInFile = true
    let over = false

    function begin(): Thread {
      const chosen = leastBusy()
      chosen.jobs += 1
      chosen.worker.postMessage({ id, kind: 'begin', algorithm, descriptor } satisfies HashOrder, [])
      return chosen
    }
    const tell = (order: HashOrder) => thread.worker.postMessage(order, [])
    const ask = (order: HashOrder) =>
      new Promise<HashAnswer>((resolve) => {
        if (!threads.includes(thread)) return resolve({ id, error: new Error('a hashing thread has ended') })
        thread.waiting.set(id, resolve)
        tell(order)
      })
    const end = async (order: HashOrder): Promise<HashAnswer> => {
      over = true
      const { worker } = thread
      // A program that has nothing else to do waits for it.
      worker.ref()
      try {
        return await ask(order)
      } finally {
        thread.jobs -= 1
        if (thread.jobs === 0) worker.unref()
      }
    }
    return {
      advance(size) {
        inFile = size
        tell({ id, kind: 'advance', size })
      },
      append(bytes) {
        isAllInFile = false
        // A part of a larger buffer would take all of that along.
        const copy = new Uint8Array(bytes)
        thread.worker.postMessage({ id, kind: 'append', bytes: copy } satisfies HashOrder, [copy.buffer])
      },
      async digest() {
        let answer = await end({ id, kind: 'digest' })
        // A thread has died: what is in the file can be read again.
        if (answer.hex === undefined && isAllInFile && !closed && !threads.includes(thread)) {
          thread = begin()
          tell({ id, kind: 'advance', size: inFile })
          answer = await end({ id, kind: 'digest' })
        }
        const { hex, error } = answer
        if (hex === undefined) throw error
        watcher?.worked()
        return parseDigest(`${algorithm}:${hex}`)!
      },
      async close() {
        if (!over) await end({ id, kind: 'drop' })
      },
    }
  }

  return {
    follow,
    async start() {
      if (threads.length > 0) return
      const { worker } = start()
      // A program that has nothing else to do waits for it.
      worker.ref()
      const stopWaiting = new AbortController()
      const { signal } = stopWaiting
      // A thread that could not be started ends; the next hash tries again.
      await Promise.race([once(worker, 'online', { signal }), once(worker, 'exit', { signal })]).catch(() => {})
      stopWaiting.abort()
      worker.unref()
    },
    async close() {
      closed = true
      const ended = threads.map(async ({ worker }) => {
        const exit = once(worker, 'exit')
        await worker.terminate()
        await exit
      })
      await Promise.all(ended)
    },
  }
}
