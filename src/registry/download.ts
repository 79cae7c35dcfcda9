import { systemClock, type Clock } from '../lib/clock.ts'
import { deferred } from '../lib/deferred.ts'
import type { Logger } from '../lib/logger.ts'
import { createDigester, digestAlgorithm, type Digest } from '../oci/digest.ts'
import type { BlobStore, BlobWriter } from '../store/blob-store.ts'
import { UpstreamError, type FetchedBlob } from '../upstream/upstream.ts'
import { Overflow } from './overflow.ts'

/** One fetch of one blob, followed by everybody who wants it. */
export interface Download {
  readonly digest: Digest
  /** Bytes of the whole blob; undefined while, and when, nobody has said. */
  readonly size: number | undefined
  /** The upstream's answer is here; rejects with the UpstreamError that every follower gets. Carries whose word it was. */
  readonly started: Promise<{ readonly identity: string }>
  /** It is over: published (true), or served without being kept (false), or failed (false). Never rejects. */
  readonly settled: Promise<boolean>
  /** Whether a newcomer can still have it from this byte on. */
  canFollowFrom(position: number): boolean
  /** Reads along from `start`. The follower must be closed. */
  follow(start: number): Follower
}

/** One client's place in a download: its pace and its end are its own. */
export interface Follower {
  /**
   * The next bytes, as soon as they may be given away; 0 at the end. The last 32 KiB are held back until the digest agrees,
   * so that nobody ever holds a complete wrong blob. Throws the download's UpstreamError, or the signal's reason.
   */
  read(buffer: Uint8Array, signal?: AbortSignal): Promise<number>
  close(): void
}

export interface DownloadOptions {
  readonly digest: Digest
  /** What the descriptor says. */
  readonly expectedSize: number | undefined
  /** Asks the upstream for the blob from a byte on; the signal ends that attempt. */
  readonly open: (from: number, signal: AbortSignal) => Promise<FetchedBlob>
  readonly store: Pick<BlobStore, 'create'>
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
}

/** Bytes held back until the digest agrees; Harbor found 32 KiB in production (its pull request 23911). */
const tailBytes = 32 * 1024
/** Memory for what a full disk does not take. */
const overflowBytes = 16 * 1024 * 1024
/** Pauses before the second, third and fourth request of a body that broke. */
const resumePauses = [250, 500, 1000]

/** Starts the fetch. It runs to its end whoever leaves; only a full disk that nobody waits at ends it early. */
export function startDownload(options: DownloadOptions): Download {
  const { digest, store, logger, clock = systemClock } = options
  const digester = createDigester(digestAlgorithm(digest))
  const started = deferred<{ identity: string }>()
  const followers = new Set<{ position: number }>()
  let size = options.expectedSize
  let arrived = 0
  let verified = false
  let failure: Error | undefined
  let writer: BlobWriter | undefined
  let overflow: Overflow | undefined
  let progress = deferred()
  let begun = false
  let running = true

  const announce = () => {
    progress.resolve()
    progress = deferred()
  }
  /** How many bytes may leave. */
  const releasable = () => (verified ? arrived : Math.max(0, Math.min(arrived, (size ?? arrived) - tailBytes)))

  async function run(): Promise<boolean> {
    try {
      await fill()
      if (size !== undefined && arrived !== size) throw invalid(`the body has ${arrived} bytes instead of ${size}`)
      if (digester.digest() !== digest) {
        options.onMismatch()
        throw invalid('the bytes do not have the digest that was asked for')
      }
      verified = true
      announce()
      return await publish()
    } catch (error) {
      failure = error instanceof Error ? error : new Error(String(error))
      return false
    } finally {
      options.onSettled()
      running = false
      if (failure) started.reject(failure)
      announce()
      await release()
    }
  }

  /** Fetches until the body is whole, resuming a broken one where it broke. */
  async function fill(): Promise<void> {
    for (let attempt = 0; ; attempt++) {
      try {
        await tryOnce()
        return
      } catch (error) {
        const pause = resumePauses[attempt]
        const broke = error instanceof UpstreamError && error.failure !== 'invalid' && begun && !options.signal.aborted
        if (!broke || pause === undefined) throw error
        logger.warn({ digest, at: arrived, reason: error.message }, 'a download broke and is resumed')
        await clock.sleep(pause, options.signal)
      }
    }
  }

  /** One request. Whatever its end, nothing of it is left: a body that nobody reads would keep its connection for ever. */
  async function tryOnce(): Promise<void> {
    const attempt = new AbortController()
    const end = () => attempt.abort(options.signal.reason)
    options.signal.addEventListener('abort', end, { once: true })
    try {
      const answer = await options.open(arrived, attempt.signal)
      size ??= answer.size
      if (answer.size !== undefined && answer.size !== size)
        throw invalid(`the upstream offers ${answer.size} bytes instead of ${size}`)
      begun = true
      started.resolve({ identity: answer.identity })
      await prepareWriter()
      for await (const chunk of answer.body) await append(chunk)
    } finally {
      options.signal.removeEventListener('abort', end)
      attempt.abort()
    }
  }

  async function append(chunk: Uint8Array): Promise<void> {
    if (size !== undefined && arrived + chunk.length > size) throw invalid('the body is longer than announced')
    digester.update(chunk)
    options.onBytes(chunk.length)
    if (!overflow && !(await writeToDisk(chunk))) overflow = new Overflow(overflowBytes)
    const waits = overflow?.push(arrived, chunk)
    arrived += chunk.length
    announce()
    if (followers.size === 0 && (overflow?.full || overflow?.dropped)) {
      throw new UpstreamError('unavailable', 503, 'There is no room on the disk for it.')
    }
    await waits
  }

  async function writeToDisk(chunk: Uint8Array): Promise<boolean> {
    for (const lastTry of [false, true]) {
      try {
        await writer!.write(chunk)
        return true
      } catch (error) {
        logger.warn({ digest, error: String(error) }, 'the disk takes no more of a download')
        if (!lastTry) await options.makeRoom((size ?? arrived) - arrived + chunk.length)
      }
    }
    return false
  }

  async function prepareWriter(): Promise<void> {
    for (let tries = 0; !writer && !overflow; tries++) {
      try {
        writer = await store.create()
      } catch (error) {
        logger.warn({ digest, error: String(error) }, 'the disk takes no download')
        if (tries === 0) await options.makeRoom(size ?? 0)
        else overflow = new Overflow(overflowBytes)
      }
    }
  }

  async function publish(): Promise<boolean> {
    if (overflow || !writer) return false
    try {
      await writer.commit(digest)
      return true
    } catch (error) {
      // The followers have, or will get, every right byte from the temp file; only the cache goes without.
      logger.error({ digest, error: String(error) }, 'a download could not be kept')
      return false
    }
  }

  function invalid(reason: string): UpstreamError {
    return new UpstreamError('invalid', 502, `The upstream's answer for ${digest} was refused: ${reason}.`)
  }

  async function read(follower: { position: number }, buffer: Uint8Array, signal?: AbortSignal): Promise<number> {
    for (;;) {
      signal?.throwIfAborted()
      const available = Math.min(buffer.length, releasable() - follower.position)
      if (available > 0) {
        const count = await readAt(buffer.subarray(0, available), follower.position)
        if (count === 0) throw new UpstreamError('unavailable', 503, 'The download has moved on.')
        follower.position += count
        dropPassed()
        return count
      }
      if (failure) throw failure
      if (verified) return 0
      await nextProgress(progress.promise, signal)
    }
  }

  async function readAt(buffer: Uint8Array, position: number): Promise<number> {
    const onDisk = writer ? writer.size - position : 0
    if (onDisk > 0) return writer!.read(buffer.subarray(0, Math.min(buffer.length, onDisk)), position)
    return overflow?.read(buffer, position) ?? 0
  }

  function dropPassed(): void {
    overflow?.dropBefore(Math.min(arrived, ...[...followers].map(({ position }) => position)))
  }

  async function release(): Promise<void> {
    if (running || followers.size > 0) return
    try {
      await writer?.close()
    } catch (error) {
      // A disk that has failed meanwhile; the next start sweeps what is left there.
      logger.error({ digest, error: String(error) }, 'closing a download failed')
    }
  }

  // Nobody may be waiting for the start when it fails.
  started.promise.catch(() => {})
  const settled = run()

  return {
    digest,
    get size() {
      return size
    },
    started: started.promise,
    settled,
    canFollowFrom: (position) => running && (!overflow?.dropped || position >= arrived),
    follow(start) {
      const follower = { position: start }
      followers.add(follower)
      return {
        read: (buffer, signal) => read(follower, buffer, signal),
        close() {
          if (!followers.delete(follower)) return
          dropPassed()
          void release()
        },
      }
    },
  }
}

async function nextProgress(progress: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  if (!signal) return progress
  const aborted = deferred()
  const onAbort = () => aborted.resolve()
  signal.addEventListener('abort', onAbort, { once: true })
  await Promise.race([progress, aborted.promise])
  signal.removeEventListener('abort', onAbort)
}
