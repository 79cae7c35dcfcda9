import { MessageChannel } from 'node:worker_threads'
import { Slots } from './async.ts'
import { BudgetError, MemoryBudget } from './memory.ts'
import { getMemoryLimit } from './process.ts'

const KiB = 1024
const MiB = 1024 * KiB
/** Limits the tasks that wait in `LargeListQueue`, and the wait of each, ms. */
const maxWaitingTasks = 64
const maxWaitMs = 20_000

/** Returns an eighth of the process's memory limit, between 16 and 64 MiB; bytes. */
function getDefaultBudget(): number {
  return Math.max(16 * MiB, Math.min(64 * MiB, Math.floor(getMemoryLimit() / 8)))
}

function createBodyBudget(): MemoryBudget {
  return new MemoryBudget({
    bytes: getDefaultBudget() / 2,
    maxWaiting: 256,
    maxWaitMs: 20_000,
    // Reserve 128 KiB for a body of 64 KiB, because a body counts twice.
    small: { maxBytes: 128 * KiB, bytes: 2 * MiB },
  })
}

/** Holds half of the process's memory for bodies: bodies that clients send or receive. */
export const clientBodies = createBodyBudget()

/** Holds the other half: bodies from upstreams or from disk. A slow body in one half does not delay the other half. */
export const upstreamBodies = createBodyBudget()

/** Frees the memory of these chunks at once. The caller must not use them afterwards. */
export type BufferRelease = (chunks: readonly Uint8Array[]) => void

/**
 * Creates a function that frees network buffers without waiting for the garbage collector. Such buffers lie outside the heap, so
 * the collector lets tens of megabytes of them pile up, and then scans the whole heap repeatedly. Transferring a buffer to a closed
 * message port frees it at once. Only chunks that span their whole buffer are freed, because others may share it.
 */
export function createBufferRelease(): BufferRelease {
  const { port1, port2 } = new MessageChannel()
  port2.close()
  return (chunks) => {
    const buffers = chunks.filter(ownsItsBuffer).map(({ buffer }) => buffer as ArrayBuffer)
    if (buffers.length > 0) port1.postMessage(undefined, [...new Set(buffers)])
  }
}

function ownsItsBuffer({ buffer, byteLength }: Uint8Array): boolean {
  return byteLength > 0 && buffer.byteLength === byteLength && buffer instanceof ArrayBuffer
}

/** Runs tasks that read a large list as a whole one at a time, so that the memory for one list suffices. */
export class LargeListQueue {
  readonly #slots = new Slots(1)

  /**
   * Runs the task when all earlier tasks have ended. Throws the signal's reason when the signal aborts while the task waits, and a
   * BudgetError when 64 tasks wait already or the wait takes longer than 20 s.
   */
  async run<T>(task: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    if (this.#slots.waiting >= maxWaitingTasks) throw createBusyError()
    const release = await this.#slots.take(maxWaitMs, { signal })
    if (!release) throw createBusyError()
    try {
      return await task()
    } finally {
      release()
    }
  }
}

function createBusyError(): BudgetError {
  return new BudgetError('Too many large lists are being read.')
}
