import type { BufferRelease } from '../lib/body-memory.ts'
import type { FetchedBlob } from '../upstream/upstream.ts'

export interface RangePolicy {
  /** Connections at a time; below 2 a blob is fetched by one. */
  readonly perBlob: number
  /** Bytes a range. */
  readonly bytes: number
  /** Blobs below this size are fetched by one request. */
  readonly minSize: number
}

export interface RangedFetch {
  readonly size: number
  readonly policy: RangePolicy
  /** The answer to the first range. */
  readonly first: FetchedBlob
  /** Asks for the bytes from the first to the last position, both included. */
  readonly open: (from: number, to: number, signal: AbortSignal) => Promise<FetchedBlob>
  readonly write: (position: number, bytes: Uint8Array) => Promise<void>
  /** Takes back the memory of what was written. */
  readonly release: BufferRelease
  readonly onBytes: (bytes: number) => void
  /** Everything before this position is written. */
  readonly onPrefix: (size: number) => void
  readonly signal: AbortSignal
}

/** Bytes worth a write. */
const writeBytes = 512 * 1024

interface Part {
  readonly start: number
  readonly end: number
  written: number
}

/** Whether a blob of this size, asked for from its start, is fetched in ranges. */
export function isRanged(size: number | undefined, { perBlob, bytes, minSize }: RangePolicy): size is number {
  return size !== undefined && perBlob > 1 && bytes > 0 && size >= minSize && size > bytes
}

/** Fetches a blob by several connections, each a range at a time. Throws what the first of them to fail did. */
export async function fetchRanges(fetch: RangedFetch): Promise<void> {
  const { size, policy, signal } = fetch
  const parts: Part[] = []
  for (let start = 0; start < size; start += policy.bytes)
    parts.push({ start, end: Math.min(start + policy.bytes, size), written: 0 })

  const failed = new AbortController()
  const either = AbortSignal.any([signal, failed.signal])
  let complete = 0
  const noteWritten = () => {
    while (parts[complete] && isDone(parts[complete]!)) complete += 1
    const open = parts[complete]
    fetch.onPrefix(open ? open.start + open.written : size)
  }
  const waiting = parts.values()

  async function work(first?: FetchedBlob): Promise<void> {
    let answer = first
    for (const part of waiting) {
      answer ??= await fetch.open(part.start, part.end - 1, either)
      await readPart(fetch, answer, part, noteWritten)
      answer = undefined
    }
  }

  const connections = Math.min(policy.perBlob, parts.length)
  const workers = Array.from({ length: connections }, async (_, at) => {
    try {
      await work(at === 0 ? fetch.first : undefined)
    } catch (error) {
      failed.abort(error)
      throw error
    }
  })
  // All of them are over before anybody else may write.
  await Promise.allSettled(workers)
  if (failed.signal.aborted) throw failed.signal.reason
}

async function readPart(fetch: RangedFetch, answer: FetchedBlob, part: Part, onWritten: () => void): Promise<void> {
  const length = part.end - part.start
  let chunks: Uint8Array[] = []
  let held = 0
  const write = async () => {
    await fetch.write(part.start + part.written, chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks))
    fetch.release(chunks)
    part.written += held
    chunks = []
    held = 0
    onWritten()
  }
  for await (const chunk of answer.body) {
    fetch.onBytes(chunk.length)
    chunks.push(chunk)
    held += chunk.length
    if (part.written + held > length) throw new Error('a range is longer than was asked for')
    if (held >= writeBytes) await write()
  }
  if (held > 0) await write()
  if (!isDone(part)) throw new Error('a range is shorter than was asked for')
}

function isDone({ start, end, written }: Part): boolean {
  return written === end - start
}
