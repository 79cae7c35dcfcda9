import { createDeferred } from '../../lib/async.ts'
import type { BufferRelease } from '../../lib/body-memory.ts'
import { describeFailure } from '../../lib/errors.ts'
import type { Logger } from '../../lib/logger.ts'
import { type Clock, systemClock } from '../../lib/time.ts'
import type { Digest } from '../../oci/reference.ts'
import type { Follower, Identity, Portion } from '../../oci/registry.ts'
import type { BlobStore } from '../../store/blob-store.ts'
import type { HashPool } from '../../store/hashing.ts'
import { type FetchedBlob, UpstreamError } from '../../upstream/upstream.ts'
import { DownloadWriter } from './writer.ts'
import { Followers } from './followers.ts'

/** Describes the download of one blob. Any number of clients follow it. */
export interface Download {
  readonly digest: Digest
  /** Bytes of the whole blob; undefined until the upstream announces them, or the whole blob has arrived and is verified. */
  readonly size: number | undefined
  /** Resolves when the upstream has responded, with the identity of the grant. Rejects with the UpstreamError that followers get. */
  readonly started: Promise<{ readonly identity: Identity }>
  /** Resolves at the end: true when the blob is stored, false when it was only served or failed. Never rejects. */
  readonly settled: Promise<boolean>
  /** Counts the bytes that have arrived. */
  readonly arrived: number
  /** Counts the clients that follow it now. */
  readonly followers: number
  /** Is true when any client follows it now. */
  readonly isFollowed: boolean
  /** Is true when any client has ever requested it; false for a blob that was only prefetched. */
  readonly isClaimed: boolean
  /** Marks it as requested by a client that will follow when it has started. */
  claim(): void
  /** Reports whether a new follower can still read from this position on. */
  canFollowFrom(position: number): boolean
  /** Follows from `start` to the end of the portion. The caller closes the follower. */
  follow(start: number, portion?: Portion): Follower
}

export interface DownloadOptions {
  readonly digest: Digest
  /** Holds the size in the descriptor. */
  readonly expectedSize: number | undefined
  /** Limits the bytes of a blob whose size is unknown; default: no limit. */
  readonly maxUnsizedBytes?: number
  /** Requests the bytes from `from` to `to` (inclusive; default: the end). The signal ends that attempt. */
  readonly open: (from: number, signal: AbortSignal, to?: number) => Promise<FetchedBlob>
  /** Decides when a blob is fetched over several connections; undefined for never. */
  readonly ranges?: RangePolicy | undefined
  readonly store: Pick<BlobStore, 'create'>
  readonly hashes: Pick<HashPool, 'follow'>
  readonly release: BufferRelease
  /** Tries to free so many bytes on a full disk; resolves when it cannot free more. */
  readonly makeRoom: (bytes: number) => Promise<void>
  readonly onBytes: (bytes: number) => void
  readonly onMismatch: () => void
  /** Is called before followers and `settled` learn of the end. */
  readonly onSettled: () => void
  /** Ends the download, even if clients follow it. */
  readonly signal: AbortSignal
  readonly logger: Logger
  readonly clock?: Clock
  /** Limits the time that a follower may slow the others down on a full disk, ms. */
  readonly maxLagMs?: number
}

/** Ms. Clients pause for seconds while they unpack. */
const defaultMaxLagMs = 10_000
/** Bytes to collect for one write. */
const writeBytes = 512 * 1024
/** Pauses before the second, third and fourth request of a body that broke, ms. */
const resumePausesMs = [250, 500, 1000]

/** Starts a download. It continues when its clients leave; without clients only a full disk ends it early. */
export function startDownload(options: DownloadOptions): Download {
  const { digest, logger, signal, clock = systemClock, maxUnsizedBytes = Infinity } = options
  const started = createDeferred<{ identity: Identity }>()
  let size = options.expectedSize
  let verified = false
  let failure: Error | undefined
  let begunAt: number | undefined
  let running = true
  let isClaimed = false

  const writer = new DownloadWriter({
    ...options,
    onArrived: () => followers.notify(),
    isAbandoned: () => followers.isAbandoned,
    isClaimed: () => isClaimed,
  })
  const followers = new Followers({
    digest,
    writer,
    clock,
    logger,
    maxLagMs: options.maxLagMs ?? defaultMaxLagMs,
    get size() {
      return size
    },
    get begunAt() {
      return begunAt
    },
    get isVerified() {
      return verified
    },
    get failure() {
      return failure
    },
    onLeft: () => void release(),
  })

  async function run(): Promise<boolean> {
    try {
      await fetchWithResume()
      const { arrived } = writer
      if (size !== undefined && arrived !== size) throw invalid(`the body has ${arrived} bytes instead of ${size}`)
      if ((await writer.digest()) !== digest) {
        options.onMismatch()
        throw invalid('the bytes do not hash to the requested digest')
      }
      size = arrived
      verified = true
      followers.notify()
      return await publish()
    } catch (error) {
      failure = error instanceof Error ? error : new Error(String(error))
      return false
    } finally {
      options.onSettled()
      running = false
      if (failure) started.reject(failure)
      followers.notify()
      await release()
    }
  }

  /** Fetches until the body is complete; resumes a broken one where it broke. */
  async function fetchWithResume(): Promise<void> {
    for (let attempt = 0; ; attempt++) {
      try {
        await fetchOnce()
        return
      } catch (error) {
        const pause = resumePausesMs[attempt]
        const broke =
          error instanceof UpstreamError && error.failure !== 'invalid' && begunAt !== undefined && !signal.aborted
        // All bytes have arrived and only the end of the body is missing: the digest shows whether they are right.
        if (broke && writer.arrived === size) return
        const isUseless = followers.isAbandoned && !writer.isOnDisk
        if (!broke || isUseless || pause === undefined) throw error
        logger.warn({ digest, at: writer.arrived, reason: error.message }, 'a download broke and is resumed')
        await clock.sleep(pause, signal)
      }
    }
  }

  /** Sends one request. Aborts it at the end in any case, because an unread body would keep its connection open. */
  async function fetchOnce(): Promise<void> {
    signal.throwIfAborted()
    const attempt = new AbortController()
    const end = () => attempt.abort(signal.reason)
    signal.addEventListener('abort', end, { once: true })
    try {
      let received = writer.arrived
      const { ranges } = options
      const inRanges = ranges && begunAt === undefined && usesRanges(size, ranges)
      const answer = await options.open(received, attempt.signal, inRanges ? ranges.bytes - 1 : undefined)
      size ??= answer.size
      if (answer.size !== undefined && answer.size !== size)
        throw invalid(`the upstream offers ${answer.size} bytes instead of ${size}`)
      begunAt ??= clock.monotonic()
      started.resolve({ identity: answer.identity })
      const isPart = inRanges && answer.isPart
      await writer.prepare(size, isPart === true)
      if (isPart) return await fillRanges(answer, ranges, attempt.signal)
      for await (const chunk of answer.body) {
        received += chunk.length
        if (size !== undefined && received > size) throw invalid('the body is longer than announced')
        if (size === undefined && received > maxUnsizedBytes)
          throw invalid(`its size is unknown, and it has more than ${maxUnsizedBytes} bytes`)
        options.onBytes(chunk.length)
        await writer.push(chunk)
      }
    } finally {
      signal.removeEventListener('abort', end)
      attempt.abort()
      await writer.flush()
    }
  }

  /** Fetches in ranges. After a failure, fetches what is behind the last contiguous byte in one request. */
  async function fillRanges(first: FetchedBlob, policy: RangePolicy, signal: AbortSignal): Promise<void> {
    const { open, onBytes } = options
    try {
      await fetchRanges({
        size: size!,
        policy,
        first,
        open: (from, to, either) => open(from, either, to),
        write: (position, bytes) => writer.writeAt(position, bytes),
        release: options.release,
        onBytes,
        onPrefix: (prefix) => writer.extend(prefix),
        signal,
      })
    } catch (error) {
      signal.throwIfAborted()
      const fields = { digest, at: writer.arrived, reason: describeFailure(error) }
      logger.warn(fields, 'a download in ranges failed and continues as one request')
      await fetchOnce()
    }
  }

  async function publish(): Promise<boolean> {
    try {
      return await writer.publish(digest)
    } catch (error) {
      // Followers still get every verified byte from the temp file; only the cache lacks the blob.
      logger.error({ digest, error: describeFailure(error) }, 'a download could not be stored')
      return false
    }
  }

  function invalid(reason: string): UpstreamError {
    return new UpstreamError('invalid', 502, `The upstream's answer for ${digest} was refused: ${reason}.`)
  }

  async function release(): Promise<void> {
    if (running || followers.count > 0) return
    try {
      await writer.close()
    } catch (error) {
      // The next start removes the temp file.
      logger.error({ digest, error: describeFailure(error) }, 'could not close the file of a download')
    }
  }

  // Prevent an unhandled rejection when nobody awaits `started`.
  started.promise.catch(() => {})
  const settled = run()

  return {
    digest,
    get size() {
      return size
    },
    get arrived() {
      return writer.arrived
    },
    get followers() {
      return followers.count
    },
    get isFollowed() {
      return followers.count > 0
    },
    get isClaimed() {
      return isClaimed
    },
    claim: () => void (isClaimed = true),
    started: started.promise,
    settled,
    canFollowFrom: (position) => running && !signal.aborted && (!writer.hasDropped || position >= writer.arrived),
    follow(start, portion = {}) {
      isClaimed = true
      return followers.follow(start, portion)
    },
  }
}

export interface RangePolicy {
  /** Concurrent connections per blob; below 2 a blob is fetched by one request. */
  readonly perBlob: number
  /** Bytes of a range. */
  readonly bytes: number
  /** Sets the size below which a blob is fetched by one request, bytes. */
  readonly minSize: number
}

interface RangedFetch {
  readonly size: number
  readonly policy: RangePolicy
  /** Holds the answer to the first range. */
  readonly first: FetchedBlob
  /** Requests the bytes from `from` to `to`, both included. */
  readonly open: (from: number, to: number, signal: AbortSignal) => Promise<FetchedBlob>
  readonly write: (position: number, bytes: Uint8Array) => Promise<void>
  /** Reuses the memory of written chunks. */
  readonly release: BufferRelease
  readonly onBytes: (bytes: number) => void
  /** Receives the position before which everything is written. */
  readonly onPrefix: (size: number) => void
  readonly signal: AbortSignal
}

interface RangePart {
  readonly start: number
  readonly end: number
  written: number
}

/** Reports whether a blob of this size, requested from its start, is fetched in ranges. */
export function usesRanges(size: number | undefined, { perBlob, bytes, minSize }: RangePolicy): size is number {
  return size !== undefined && perBlob > 1 && bytes > 0 && size >= minSize && size > bytes
}

/** Fetches a blob over several connections, each one range at a time. Throws the error of the first one that fails. */
async function fetchRanges(fetch: RangedFetch): Promise<void> {
  const { size, policy, signal } = fetch
  const parts: RangePart[] = []
  for (let start = 0; start < size; start += policy.bytes)
    parts.push({ start, end: Math.min(start + policy.bytes, size), written: 0 })

  const failed = new AbortController()
  const either = AbortSignal.any([signal, failed.signal])
  let complete = 0
  const updatePrefix = () => {
    while (parts[complete] && isDone(parts[complete]!)) complete += 1
    const open = parts[complete]
    fetch.onPrefix(open ? open.start + open.written : size)
  }
  const queue = parts.values()

  async function work(first?: FetchedBlob): Promise<void> {
    let answer = first
    for (const part of queue) {
      answer ??= await fetch.open(part.start, part.end - 1, either)
      await readPart(fetch, answer, part, updatePrefix)
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
  // Wait for all of them, so that none writes after this function ends.
  await Promise.allSettled(workers)
  if (failed.signal.aborted) throw failed.signal.reason
}

async function readPart(
  fetch: RangedFetch,
  answer: FetchedBlob,
  part: RangePart,
  onWritten: () => void,
): Promise<void> {
  const length = part.end - part.start
  let chunks: Uint8Array[] = []
  let pending = 0
  const write = async () => {
    await fetch.write(part.start + part.written, chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks))
    fetch.release(chunks)
    part.written += pending
    chunks = []
    pending = 0
    onWritten()
  }
  for await (const chunk of answer.body) {
    fetch.onBytes(chunk.length)
    chunks.push(chunk)
    pending += chunk.length
    if (part.written + pending > length) throw new Error('a range is longer than requested')
    if (pending >= writeBytes) await write()
  }
  if (pending > 0) await write()
  if (!isDone(part)) throw new Error('a range is shorter than requested')
}

function isDone({ start, end, written }: RangePart): boolean {
  return written === end - start
}
