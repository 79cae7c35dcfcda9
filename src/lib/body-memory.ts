import { totalmem } from 'node:os'
import { MessageChannel } from 'node:worker_threads'
import { Slots } from './async.ts'
import { BudgetError, MemoryBudget } from './memory.ts'

const KiB = 1024
const MiB = 1024 * KiB

/** An eighth of the memory that the process may have, between 16 and 64 MiB. */
function getDefaultBudget(): number {
  return Math.max(16 * MiB, Math.min(64 * MiB, Math.floor(memoryLimit() / 8)))
}

function createBodyBudget(): MemoryBudget {
  return new MemoryBudget({
    bytes: getDefaultBudget() / 2,
    maxWaiting: 256,
    maxWaitMs: 20_000,
    // Bodies of up to 64 KiB, which count twice.
    small: { maxBytes: 128 * KiB, bytes: 2 * MiB },
  })
}

/** Half of the memory of this process for bodies: those that clients send or take. */
export const clientBodies = createBodyBudget()

/** The other half: bodies that come from upstreams, or from the disk. Neither half waits for the other one's slow ones. */
export const upstreamBodies = createBodyBudget()

/**
 * The memory that this process may have, bytes. In a container it is the container's, which `constrainedMemory` knows; without a
 * limit that is 0, or larger than any machine.
 */
export function memoryLimit(): number {
  return Math.min(process.constrainedMemory() || Infinity, totalmem())
}

/** Gives memory back at once; nobody may use these bytes any more. */
export type BufferRelease = (chunks: readonly Uint8Array[]) => void

/**
 * Buffers that hold what came from the network weigh nothing in the heap, so that the collector lets tens of megabytes of them
 * pile up, and then goes through all of the heap for them, again and again. What is sent to a port that nobody listens to is gone
 * at once. Only bytes that are all of their memory are released: others may stand beside them.
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

const maxWaiting = 64
/** How long one waits for its turn, ms. */
const maxWaitMs = 20_000

/** Turns of those who read large lists as a whole: one at a time, so that the memory for one of them is enough for all. */
export class ListTurns {
  readonly #slots = new Slots(1)

  /**
   * Runs the task when it is its turn. The signal gives the place in the queue up: its reason is thrown. Throws a BudgetError when
   * too many wait, or when the turn takes too long to come.
   */
  async run<T>(task: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    if (this.#slots.waiting >= maxWaiting) throw createBusyError()
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
  return new BudgetError('The mirror reads as many large lists as it may.')
}
