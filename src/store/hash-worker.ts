import type { createHash as CreateHash, Hash } from 'node:crypto'
import type { readSync as ReadSync } from 'node:fs'
import type { MessagePort } from 'node:worker_threads'

/** What a hashing thread is told. Orders of one `id` come in order. */
export type HashOrder =
  | { readonly id: number; readonly kind: 'begin'; readonly algorithm: string; readonly descriptor: number }
  | { readonly id: number; readonly kind: 'advance'; readonly size: number }
  | { readonly id: number; readonly kind: 'append'; readonly bytes: Uint8Array }
  | { readonly id: number; readonly kind: 'digest' }
  | { readonly id: number; readonly kind: 'drop' }

/** To `digest` and `drop`: what came of it. */
export interface HashAnswer {
  readonly id: number
  readonly hex?: string
  readonly error?: unknown
}

/** What a hashing thread does. It is sent there as text, and uses nothing but its arguments. */
export function hashWorker(
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

  function obey(order: HashOrder, job: Job): void {
    try {
      if (order.kind === 'advance') catchUp(job, order.size)
      if (order.kind === 'append') job.hash.update(order.bytes)
    } catch (error) {
      job.error ??= error
    }
  }

  port.on('message', (order: HashOrder) => {
    const { id } = order
    if (order.kind === 'begin') {
      jobs.set(id, { hash: createHash(order.algorithm), descriptor: order.descriptor, position: 0 })
      return
    }
    const job = jobs.get(id)
    if (!job) return
    obey(order, job)
    if (order.kind !== 'digest' && order.kind !== 'drop') return
    jobs.delete(id)
    const failed = job.error !== undefined || order.kind === 'drop'
    port.postMessage(failed ? { id, error: job.error } : { id, hex: job.hash.digest('hex') })
  })
}
