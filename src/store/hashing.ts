import type { createHash as CreateHash, Hash } from 'node:crypto'
import { once } from 'node:events'
import type { readSync as ReadSync } from 'node:fs'
import type { FileHandle } from 'node:fs/promises'
import { type MessagePort, Worker } from 'node:worker_threads'
import { getErrno } from '../lib/errors.ts'
import type { WorkWatcher } from '../lib/system-errors.ts'
import { createDigester, type Digest, getDigestAlgorithm, type DigestAlgorithm, parseDigest } from '../oci/reference.ts'

// Hashing a chunk takes about a millisecond. The event loop runs between chunks.
const chunkBytes = 256 * 1024
/** Is the default limit of threads. More threads are not faster, because the disk and the network are the limit. */
const defaultMaxThreads = 4

/**
 * Hashes a file from its start; yields the bytes of each step, so that the caller can count, pace or stop it. Returns undefined when
 * the disk cannot read all bytes.
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

/** Checks whether the file has this digest. */
export async function hasDigest(digest: Digest, handle: FileHandle): Promise<boolean> {
  const steps = hashFile(handle, getDigestAlgorithm(digest))
  for (;;) {
    const { done, value } = await steps.next()
    if (done) return value === digest
  }
}

/** Reads a small file as a whole; undefined when the disk cannot read it. */
export async function readWhole(handle: FileHandle): Promise<Uint8Array<ArrayBuffer> | undefined> {
  try {
    return new Uint8Array(await handle.readFile())
  } catch (error) {
    if (isUnreadable(error)) return undefined
    throw error
  }
}

/** Checks for a read error of the disk (EIO), or a folder in place of the file (EISDIR): the content is lost. */
function isUnreadable(error: unknown): boolean {
  return getErrno(error) === 'EIO' || getErrno(error) === 'EISDIR'
}

interface Thread {
  readonly worker: Worker
  readonly waiting: Map<number, (answer: HashResult) => void>
  /** Counts the unfinished hashes. */
  jobs: number
}

interface HashPoolOptions {
  /** Limits the threads; default: 4. */
  readonly maxThreads?: number
  /** Receives the outcome of each hash. */
  readonly watcher?: WorkWatcher | undefined
}

/** Hashes growing files on worker threads. */
export type HashPool = ReturnType<typeof createHashPool>

/**
 * Creates a pool of threads that hash growing files, for a machine with so many cores; one is left for the event loop. Threads start on
 * demand.
 */
export function createHashPool(cores: number, { maxThreads = defaultMaxThreads, watcher }: HashPoolOptions = {}) {
  const threads: Thread[] = []
  const limit = Math.max(1, Math.min(maxThreads, cores - 1))
  let lastId = 0
  let closed = false

  function start(): Thread {
    // Start the worker from its source text, which works in the same way in a bundle, in a package and in the sources.
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

  /** Starts to hash a file that is being written. */
  function follow(algorithm: DigestAlgorithm, descriptor: number) {
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
      /** Reports the size that the file has now, bytes. */
      advance(size: number): void {
        inFile = size
        send({ id, kind: 'advance', size })
      },
      /** Hashes bytes that are not in the file. */
      append(bytes: Uint8Array): void {
        isAllInFile = false
        // Copy the bytes, because the transfer would take the whole buffer that they are a part of.
        const copy = new Uint8Array(bytes)
        thread.worker.postMessage({ id, kind: 'append', bytes: copy } satisfies HashCommand, [copy.buffer])
      },
      /**
       * Returns the digest of all bytes so far. No further calls are allowed. Throws errors of reading the file, and an error when the
       * thread has died and not all bytes are in the file.
       */
      async digest(): Promise<Digest> {
        let answer = await end({ id, kind: 'digest' })
        // Hash the file again on another thread when the thread has died and all bytes are in the file.
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
      /** Resolves when the pool no longer uses the descriptor. */
      async close(): Promise<void> {
        if (!over) await end({ id, kind: 'drop' })
      },
    }
  }

  return {
    follow,
    /** Starts the first thread early, because a thread cannot start when no file descriptor is left. */
    async start(): Promise<void> {
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
    /** Ends the threads. Unfinished hashes fail. */
    async close(): Promise<void> {
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

/** Describes a message to a hashing thread. Messages of one `id` arrive in order. */
type HashCommand =
  | { readonly id: number; readonly kind: 'begin'; readonly algorithm: string; readonly descriptor: number }
  | { readonly id: number; readonly kind: 'advance'; readonly size: number }
  | { readonly id: number; readonly kind: 'append'; readonly bytes: Uint8Array }
  | { readonly id: number; readonly kind: 'digest' }
  | { readonly id: number; readonly kind: 'drop' }

/** Describes the result of `digest` or `drop`. */
interface HashResult {
  readonly id: number
  readonly hex?: string
  readonly error?: unknown
}

/** Runs in a hashing thread. It is sent there as text, so it must use nothing but its arguments. */
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
