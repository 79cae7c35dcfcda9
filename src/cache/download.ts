import { deferred } from '../lib/async.ts'
import type { BufferRelease } from '../lib/body-memory.ts'
import { describeFailure } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { type Clock, systemClock } from '../lib/time.ts'
import type { Digest } from '../oci/digest.ts'
import type { Follower, Identity, Portion } from '../oci/registry.ts'
import type { BlobStore } from '../store/blob-store.ts'
import type { HashPool } from '../store/hashing.ts'
import { type FetchedBlob, UpstreamError } from '../upstream/upstream.ts'
import { DownloadWriter } from './download-writer.ts'
import { Followers } from './followers.ts'

/** One fetch of one blob, followed by everybody who wants it. */
export interface Download {
  readonly digest: Digest
  /** Bytes of the whole blob; undefined until somebody has said, or all has arrived and the digest agrees. */
  readonly size: number | undefined
  /** The upstream's answer is here; rejects with the UpstreamError that every follower gets. Carries whose word it was. */
  readonly started: Promise<{ readonly identity: Identity }>
  /** It is over: published (true), or served without being kept (false), or failed (false). Never rejects. */
  readonly settled: Promise<boolean>
  /** Whether somebody reads along. */
  readonly isFollowed: boolean
  /** Whether a client has ever wanted it. */
  readonly isClaimed: boolean
  /** A client wants it, and will follow when it has started. */
  claim(): void
  /** Whether a newcomer can still have it from this byte on. */
  canFollowFrom(position: number): boolean
  /** Reads along from `start` to the end of the portion. The follower must be closed. */
  follow(start: number, portion?: Portion): Follower
}

export interface DownloadOptions {
  readonly digest: Digest
  /** What the descriptor says. */
  readonly expectedSize: number | undefined
  /** Bytes at most while nobody has said the size; no limit when not given. */
  readonly maxUnsizedBytes?: number
  /** Asks the upstream for the blob from a byte on, up to another one if it is given; the signal ends that attempt. */
  readonly open: (from: number, signal: AbortSignal, to?: number) => Promise<FetchedBlob>
  /** How a large blob is fetched by several connections; undefined for never. */
  readonly ranges?: RangePolicy | undefined
  readonly store: Pick<BlobStore, 'create'>
  readonly hashes: Pick<HashPool, 'follow'>
  readonly release: BufferRelease
  /** Asks for room on a full disk; resolves when what could be done was done. */
  readonly makeRoom: (bytes: number) => Promise<void>
  readonly onBytes: (bytes: number) => void
  readonly onMismatch: () => void
  /** Called before anyone hears of the end. */
  readonly onSettled: () => void
  /** Ends the fetch, whoever waits. */
  readonly signal: AbortSignal
  readonly logger: Logger
  readonly clock?: Clock
  /** How long a follower may slow the others down on a full disk, ms. */
  readonly maxLagMs?: number
}

/** The usual patience with slow followers, ms. Clients pause for seconds while they unpack. */
const defaultMaxLagMs = 10_000
/** Pauses before the second, third and fourth request of a body that broke. */
const resumePausesMs = [250, 500, 1000]

/** Starts the fetch. It runs to its end whoever leaves; only a full disk that nobody waits at ends it early. */
export function startDownload(options: DownloadOptions): Download {
  const { digest, logger, signal, clock = systemClock, maxUnsizedBytes: mostUnsized = Infinity } = options
  const started = deferred<{ identity: string }>()
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
        throw invalid('the bytes do not have the digest that was asked for')
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

  /** Fetches until the body is whole, resuming a broken one where it broke. */
  async function fetchWithResume(): Promise<void> {
    for (let attempt = 0; ; attempt++) {
      try {
        await fetchOnce()
        return
      } catch (error) {
        const pause = resumePausesMs[attempt]
        const broke =
          error instanceof UpstreamError && error.failure !== 'invalid' && begunAt !== undefined && !signal.aborted
        // Only the upstream's word that this was the end is missing; the digest tells as well.
        if (broke && writer.arrived === size) return
        const isForNobody = followers.isAbandoned && !writer.isOnDisk
        if (!broke || isForNobody || pause === undefined) throw error
        logger.warn({ digest, at: writer.arrived, reason: error.message }, 'a download broke and is resumed')
        await clock.sleep(pause, signal)
      }
    }
  }

  /** One request. Whatever its end, nothing of it is left: a body that nobody reads would keep its connection for ever. */
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
        if (size === undefined && received > mostUnsized)
          throw invalid(`it says no size and has not ended after ${mostUnsized} bytes`)
        options.onBytes(chunk.length)
        await writer.push(chunk)
      }
    } finally {
      signal.removeEventListener('abort', end)
      attempt.abort()
      await writer.flush()
    }
  }

  /** Whatever breaks them, what has come without a gap is good, and the rest is asked for in one. */
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
      logger.warn({ digest, at: writer.arrived, reason: describeFailure(error) }, 'a download in ranges goes on in one')
      await fetchOnce()
    }
  }

  async function publish(): Promise<boolean> {
    try {
      return await writer.publish(digest)
    } catch (error) {
      // The followers have, or will get, every right byte from the temp file; only the cache goes without.
      logger.error({ digest, error: describeFailure(error) }, 'a download could not be kept')
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
      // A disk that has failed meanwhile; the next start sweeps what is left there.
      logger.error({ digest, error: describeFailure(error) }, 'closing a download failed')
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
  /** Connections at a time; below 2 a blob is fetched by one. */
  readonly perBlob: number
  /** Bytes a range. */
  readonly bytes: number
  /** Blobs below this size are fetched by one request. */
  readonly minSize: number
}

interface RangedFetch {
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

interface RangePart {
  readonly start: number
  readonly end: number
  written: number
}

/** Whether a blob of this size, asked for from its start, is fetched in ranges. */
function usesRanges(size: number | undefined, { perBlob, bytes, minSize }: RangePolicy): size is number {
  return size !== undefined && perBlob > 1 && bytes > 0 && size >= minSize && size > bytes
}

/** Fetches a blob by several connections, each a range at a time. Throws what the first of them to fail did. */
async function fetchRanges(fetch: RangedFetch): Promise<void> {
  const { size, policy, signal } = fetch
  const parts: RangePart[] = []
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

async function readPart(
  fetch: RangedFetch,
  answer: FetchedBlob,
  part: RangePart,
  onWritten: () => void,
): Promise<void> {
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

function isDone({ start, end, written }: RangePart): boolean {
  return written === end - start
}
