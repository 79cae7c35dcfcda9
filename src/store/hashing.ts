import type { createHash as CreateHash, Hash } from 'node:crypto'
import { once } from 'node:events'
import type { readSync as ReadSync } from 'node:fs'
import type { FileHandle } from 'node:fs/promises'
import { type MessagePort, Worker } from 'node:worker_threads'
import { errnoOf } from '../lib/errors.ts'
import type { WorkWatcher } from '../lib/system-errors.ts'
import { createDigester, type Digest, digestAlgorithm, type DigestAlgorithm, parseDigest } from '../oci/digest.ts'

// Hashing one takes about a millisecond: other work comes in between.
const chunkBytes = 256 * 1024

/**
 * Hashes a file from its start; yields the bytes of every step, so that a caller can count, pace or stop it. Undefined
 * when the disk cannot give all bytes back.
 */
export async function* hashFile(
  handle: FileHandle,
  algorithm: DigestAlgorithm,
): AsyncGenerator<number, Digest | undefined> {
  const digester = createDigester(algorithm)
  const buffer = new Uint8Array(chunkBytes)
  let position = 0
  for (;;) {
    let bytesRead: number
    try {
      bytesRead = (await handle.read(buffer, 0, chunkBytes, position)).bytesRead
    } catch (error) {
      if (isUnreadable(error)) return undefined
      throw error
    }
    if (bytesRead === 0) return digester.digest()
    digester.update(buffer.subarray(0, bytesRead))
    position += bytesRead
    yield bytesRead
  }
}

/** Whether the file holds the bytes of this digest. */
export async function hashesTo(digest: Digest, handle: FileHandle): Promise<boolean> {
  const steps = hashFile(handle, digestAlgorithm(digest))
  for (;;) {
    const { done, value } = await steps.next()
    if (done) return value === digest
  }
}

/** All bytes of a small file, or undefined when the disk cannot give them back. */
export async function readWhole(handle: FileHandle): Promise<Uint8Array<ArrayBuffer> | undefined> {
  try {
    return new Uint8Array(await handle.readFile())
  } catch (error) {
    if (isUnreadable(error)) return undefined
    throw error
  }
}

/** A broken disk, or a folder in the place of a file: the content is lost, whatever it was. */
function isUnreadable(error: unknown): boolean {
  return errnoOf(error) === 'EIO' || errnoOf(error) === 'EISDIR'
}

/** Hashes files while they grow, on threads of their own: the event loop has other things to do. */
export interface HashPool {
  /** Starts the first thread, so that it does not have to be started when no file descriptor is left. */
  start(): Promise<void>
  /** Begins at the start of a file that is being written. */
  follow(algorithm: DigestAlgorithm, descriptor: number): FileHash
  /** Ends the threads; hashes that are not finished fail. */
  close(): Promise<void>
}

interface FileHash {
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
const maxThreads = 4

interface Thread {
  readonly worker: Worker
  readonly waiting: Map<number, (answer: HashResult) => void>
  /** Hashes that are not over. */
  jobs: number
}

interface HashPoolOptions {
  /** Threads at most. */
  readonly most?: number
  /** Hears whether the threads do their work. */
  readonly watcher?: WorkWatcher | undefined
}

/** `cores`: of the machine; one is left for the event loop. Threads are started when they are first needed. */
export function createHashPool(cores: number, { most = maxThreads, watcher }: HashPoolOptions = {}): HashPool {
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
    worker.on('message', (answer: HashResult) => {
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

  function chooseThread(): Thread {
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
      const chosen = chooseThread()
      chosen.jobs += 1
      chosen.worker.postMessage({ id, kind: 'begin', algorithm, descriptor } satisfies HashCommand, [])
      return chosen
    }
    const send = (order: HashCommand) => thread.worker.postMessage(order, [])
    const request = (order: HashCommand) =>
      new Promise<HashResult>((resolve) => {
        if (!threads.includes(thread)) return resolve({ id, error: new Error('a hashing thread has ended') })
        thread.waiting.set(id, resolve)
        send(order)
      })
    const end = async (order: HashCommand): Promise<HashResult> => {
      over = true
      const { worker } = thread
      // A program that has nothing else to do waits for it.
      worker.ref()
      try {
        return await request(order)
      } finally {
        thread.jobs -= 1
        if (thread.jobs === 0) worker.unref()
      }
    }
    return {
      advance(size) {
        inFile = size
        send({ id, kind: 'advance', size })
      },
      append(bytes) {
        isAllInFile = false
        // A part of a larger buffer would take all of that along.
        const copy = new Uint8Array(bytes)
        thread.worker.postMessage({ id, kind: 'append', bytes: copy } satisfies HashCommand, [copy.buffer])
      },
      async digest() {
        let answer = await end({ id, kind: 'digest' })
        // A thread has died: what is in the file can be read again.
        if (answer.hex === undefined && isAllInFile && !closed && !threads.includes(thread)) {
          thread = begin()
          send({ id, kind: 'advance', size: inFile })
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

/** What a hashing thread is told. Orders of one `id` come in order. */
type HashCommand =
  | { readonly id: number; readonly kind: 'begin'; readonly algorithm: string; readonly descriptor: number }
  | { readonly id: number; readonly kind: 'advance'; readonly size: number }
  | { readonly id: number; readonly kind: 'append'; readonly bytes: Uint8Array }
  | { readonly id: number; readonly kind: 'digest' }
  | { readonly id: number; readonly kind: 'drop' }

/** To `digest` and `drop`: what came of it. */
interface HashResult {
  readonly id: number
  readonly hex?: string
  readonly error?: unknown
}

/** What a hashing thread does. It is sent there as text, and uses nothing but its arguments. */
function hashWorker(
  port: MessagePort,
  { readSync }: { readSync: typeof ReadSync },
  { createHash }: { createHash: typeof CreateHash },
): void {
  interface Job {
    readonly hash: Hash
    readonly descriptor: number
    position: number
    error?: unknown
  }
  const jobs = new Map<number, Job>()
  const buffer = new Uint8Array(256 * 1024)

  function catchUp(job: Job, size: number): void {
    while (job.position < size && job.error === undefined) {
      const length = Math.min(buffer.length, size - job.position)
      const count = readSync(job.descriptor, buffer, 0, length, job.position)
      if (count === 0) job.error = new Error('a file is shorter than what was written to it')
      job.hash.update(buffer.subarray(0, count))
      job.position += count
    }
  }

  function execute(order: HashCommand, job: Job): void {
    try {
      if (order.kind === 'advance') catchUp(job, order.size)
      if (order.kind === 'append') job.hash.update(order.bytes)
    } catch (error) {
      job.error ??= error
    }
  }

  port.on('message', (order: HashCommand) => {
    const { id } = order
    if (order.kind === 'begin') {
      jobs.set(id, { hash: createHash(order.algorithm), descriptor: order.descriptor, position: 0 })
      return
    }
    const job = jobs.get(id)
    if (!job) return
    execute(order, job)
    if (order.kind !== 'digest' && order.kind !== 'drop') return
    jobs.delete(id)
    const failed = job.error !== undefined || order.kind === 'drop'
    port.postMessage(failed ? { id, error: job.error } : { id, hex: job.hash.digest('hex') })
  })
}
