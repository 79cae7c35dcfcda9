import { randomBytes } from 'node:crypto'
import { errnoOf, reserveOf } from '../lib/errors.ts'
import { type Logger, silentLogger } from '../lib/logger.ts'
import { type Clock, every, logFailure } from '../lib/time.ts'
import { formatBytes } from '../lib/units.ts'
import { createDigester, type Digest, type DigestAlgorithm, digestAlgorithm, type Digester } from '../oci/digest.ts'
import { OciError } from '../oci/errors.ts'
import type { UploadChunk, UploadName, UploadState, User } from '../oci/registry.ts'
import type { Repository } from '../oci/route.ts'
import type { BlobStore, BlobWriter } from '../store/blob-store.ts'
import type { PushedStore } from './repositories.ts'

interface LocalUploadsOptions {
  readonly store: PushedStore
  readonly sessions: UploadSessions
  readonly makeRoom: MakeRoom
}

/** Blobs on their way into the local registry. */
export class LocalUploads {
  readonly #options: LocalUploadsOptions

  constructor(options: LocalUploadsOptions) {
    this.#options = options
  }

  start({ name }: Repository, user: User, algorithm: DigestAlgorithm | undefined): UploadSession {
    // Before anything is sent: a damaged repository takes nothing.
    this.#options.store.repositories.get(name)
    const session = this.#options.sessions.start({ repository: name, user, algorithm: algorithm ?? 'sha256' })
    if (session) return session
    throw new OciError('TOOMANYREQUESTS', 429, 'Too many uploads are open.', { 'retry-after': '5' })
  }

  find({ name }: Repository, { id, user }: UploadName): UploadSession {
    const session = this.#options.sessions.find(id)
    if (session?.repository === name && session.user === user) return session
    throw createUnknownUploadError()
  }

  append(session: UploadSession, chunk: UploadChunk): Promise<UploadState> {
    return runExclusive(session, async () => {
      await this.#write(session, chunk)
      return { id: session.id, size: session.size }
    })
  }

  finish(session: UploadSession, digest: Digest, chunk: UploadChunk | undefined): Promise<void> {
    const { store, makeRoom } = this.#options
    return runExclusive(session, async () => {
      if (chunk) await this.#write(session, chunk)
      const { size } = session
      const release = store.repositories.claim([digest])
      try {
        const isRight = await tellUnwritable(() => session.publish(digest))
        if (!isRight) throw new OciError('DIGEST_INVALID', 400, `What came does not hash to ${digest}.`)
        const held = { op: 'blob' as const, digest, size, heldSince: store.runningClock.now() }
        await withRoom(makeRoom, journalBytes, () => store.repositories.commit(session.repository, [held]))
      } finally {
        release()
      }
    })
  }

  async #write(session: UploadSession, { start, bytes }: UploadChunk): Promise<void> {
    if (start !== undefined && start !== session.size)
      throw new OciError('BLOB_UPLOAD_INVALID', 416, `The next byte is number ${session.size}.`, uploadHeaders(session))
    for await (const chunk of bytes) {
      if (session.isOver) throw createUnknownUploadError()
      await withRoom(this.#options.makeRoom, chunk.length, () => session.append(chunk))
    }
    if (session.isOver) throw createUnknownUploadError()
  }
}

/** Where to go on: the URL and what is held. Of nothing yet, as every registry says it, `0-0`. */
export function uploadHeaders({ repository, id, size }: Pick<UploadSession, 'repository' | 'id' | 'size'>) {
  return {
    location: `/v2/${repository}/blobs/uploads/${id}`,
    range: `0-${Math.max(0, size - 1)}`,
    'docker-upload-uuid': id,
  }
}

async function runExclusive<T>(session: UploadSession, task: () => Promise<T>): Promise<T> {
  const done = await session.exclusively(task)
  if (done) return done.result
  throw new OciError('BLOB_UPLOAD_INVALID', 409, 'Another request is writing to this upload.', uploadHeaders(session))
}

function createUnknownUploadError(): OciError {
  return new OciError('BLOB_UPLOAD_UNKNOWN', 404, 'There is no such upload; it may have been idle for too long.')
}

interface UploadSessionOptions {
  readonly id: string
  readonly repository: string
  /** Whose it is; undefined where nobody has a name. */
  readonly user: string | undefined
  /** The algorithm the blob's digest will most likely have; another one costs reading everything again. */
  readonly algorithm: DigestAlgorithm
  readonly blobs: Pick<BlobStore, 'create'>
  readonly clock: Clock
  /** Called when it ends, in whatever way. */
  readonly onEnd: () => void
}

const rereadBytes = 256 * 1024

/** A blob that arrives in pieces, in order. One request at a time may work on it. */
class UploadSession {
  readonly id: string
  readonly repository: string
  readonly user: string | undefined
  readonly #options: UploadSessionOptions
  readonly #digester: Digester
  #writer: BlobWriter | undefined
  #usedAt: number
  #isBusy = false
  #isOver = false

  constructor(options: UploadSessionOptions) {
    this.#options = options
    this.id = options.id
    this.repository = options.repository
    this.user = options.user
    this.#digester = createDigester(options.algorithm)
    this.#usedAt = options.clock.monotonic()
  }

  /** Bytes held so far. */
  get size(): number {
    return this.#writer?.size ?? 0
  }

  /** Monotonic ms. */
  get usedAt(): number {
    return this.#usedAt
  }

  get isBusy(): boolean {
    return this.#isBusy
  }

  /** Whether it was published or cancelled. */
  get isOver(): boolean {
    return this.#isOver
  }

  /** Runs the task alone; undefined, and nothing is run, while another one does. */
  async exclusively<T>(task: () => Promise<T>): Promise<{ readonly result: T } | undefined> {
    if (this.#isBusy) return undefined
    this.#isBusy = true
    try {
      return { result: await task() }
    } finally {
      this.#isBusy = false
      this.#usedAt = this.#options.clock.monotonic()
      if (this.#isOver) await this.#close()
    }
  }

  /** Adds bytes. A failure leaves what was held before. */
  async append(chunk: Uint8Array): Promise<void> {
    this.#writer ??= await this.#options.blobs.create()
    await this.#writer.write(chunk)
    this.#digester.update(chunk)
    this.#usedAt = this.#options.clock.monotonic()
  }

  /** Publishes what is held if it hashes to the digest, durably. Either way the session is over. */
  async publish(digest: Digest): Promise<boolean> {
    this.#end()
    this.#writer ??= await this.#options.blobs.create()
    const { algorithm } = this.#options
    const isRight =
      digestAlgorithm(digest) === algorithm
        ? this.#digester.digest() === digest
        : (await rehash(this.#writer, digestAlgorithm(digest))) === digest
    if (isRight) await this.#writer.commit(digest)
    return isRight
  }

  /** Ends it; what was held is gone. A request that works on it finds that out with its next bytes. */
  async cancel(): Promise<void> {
    this.#end()
    if (!this.#isBusy) await this.#close()
  }

  #end(): void {
    this.#isOver = true
    this.#options.onEnd()
  }

  async #close(): Promise<void> {
    const writer = this.#writer
    this.#writer = undefined
    await writer?.close()
  }
}

async function rehash(writer: BlobWriter, algorithm: DigestAlgorithm): Promise<Digest> {
  const digester = createDigester(algorithm)
  const buffer = new Uint8Array(rereadBytes)
  let position = 0
  for (;;) {
    const count = await writer.read(buffer, position)
    if (count === 0) return digester.digest()
    digester.update(buffer.subarray(0, count))
    position += count
  }
}

interface UploadSessionsOptions {
  readonly blobs: BlobStore
  readonly clock: Clock
  /** Open ones at most. */
  readonly limit: number
  /** A session that nothing happens to for so long is gone; ms. */
  readonly idle: number
  readonly logger?: Logger
}

const pollsPerIdle = 20

/**
 * The uploads under way. They live in memory, with their bytes in temp files that go at the next start: a client begins
 * anew then, as it does with an upload it never began.
 */
export class UploadSessions {
  readonly #options: UploadSessionsOptions
  readonly #sessions = new Map<string, UploadSession>()
  readonly #stopExpiring: () => void

  constructor(options: UploadSessionsOptions) {
    this.#options = options
    const everyMs = Math.max(10, Math.min(60_000, options.idle / pollsPerIdle))
    const onFailure = logFailure(options.logger ?? silentLogger, 'could not end an upload that nobody goes on with')
    this.#stopExpiring = every(everyMs, () => this.#expire(), onFailure)
  }

  get count(): number {
    return this.#sessions.size
  }

  /** A new session; undefined when there are too many that hold something. */
  start(upload: Pick<UploadSessionOptions, 'repository' | 'user' | 'algorithm'>): UploadSession | undefined {
    if (this.#sessions.size >= this.#options.limit && !this.#dropOldestEmpty()) return undefined
    const id = randomBytes(16).toString('hex')
    const { blobs, clock } = this.#options
    const forget = () => void this.#sessions.delete(id)
    const session = new UploadSession({ ...upload, id, blobs, clock, onEnd: forget })
    this.#sessions.set(id, session)
    return session
  }

  find(id: string): UploadSession | undefined {
    return this.#sessions.get(id)
  }

  /** Ends all of them. */
  async close(): Promise<void> {
    this.#stopExpiring()
    await Promise.all([...this.#sessions.values()].map((session) => session.cancel()))
  }

  /** Sessions that never got a byte are what probes and impatient clients leave behind. The map is in order of age. */
  #dropOldestEmpty(): boolean {
    for (const [id, session] of this.#sessions) {
      if (session.size > 0 || session.isBusy) continue
      this.#sessions.delete(id)
      void cancelQuietly(session)
      return true
    }
    return false
  }

  async #expire(): Promise<void> {
    const { clock, idle } = this.#options
    const old = [...this.#sessions.values()].filter(
      (session) => !session.isBusy && clock.monotonic() - session.usedAt > idle,
    )
    await Promise.all(old.map(cancelQuietly))
  }
}

/** Nobody waits for this end: what the disk refuses to take away goes at the next start. */
async function cancelQuietly(session: UploadSession): Promise<void> {
  try {
    await session.cancel()
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
  }
}

/** Frees bytes on the disk, if so many can be had: content that can be fetched again goes. */
export type MakeRoom = (bytes: number) => Promise<void>

/** More than a line of a journal takes. */
export const journalBytes = 64 * 1024

/** Enough for a while of writing, so that room need not be made again at once. */
const maxRoomBytes = 64 * 1024 * 1024

/**
 * Runs a task that writes, and may be run again: while the disk is full, with much and then with `least` bytes of room made
 * for it. Throws an OciError 507 when there is no room to be had.
 */
export async function withRoom<T>(makeRoom: MakeRoom, least: number, task: () => Promise<T>): Promise<T> {
  for (const bytes of [maxRoomBytes, least]) {
    try {
      return await task()
    } catch (error) {
      if (!isDiskFull(error)) throw error
    }
    await makeRoom(bytes)
  }
  return tellUnwritable(task)
}

/** Runs a task that writes; a disk that takes nothing, for whatever lasting reason, becomes an OciError 507 that says so. */
export async function tellUnwritable<T>(task: () => Promise<T>): Promise<T> {
  try {
    return await task()
  } catch (error) {
    const minFree = reserveOf(error)
    const why = minFree === undefined ? reasons[errnoOf(error) ?? ''] : describeReserve(minFree)
    throw why === undefined ? error : new OciError('DENIED', 507, `${why} What is there can still be pulled.`)
  }
}

const noPermission =
  'The mirror may not write to the folder of its data. Give the folder back to the user who runs it; mirror status names it.'

/** The folder is not named here: the client may be on another machine. */
function describeReserve(minFree: number): string {
  return `The disk with the data of the mirror would have less than ${formatBytes(minFree)} free, which cache.minFree reserves. Free space on it, or lower cache.minFree; mirror status names its folder.`
}

/** By the system's error. An I/O error is none of them: the next try may succeed. */
const reasons: Readonly<Record<string, string>> = {
  ENOSPC: 'The disk with the data of the mirror is full. Free space on it; mirror status names its folder.',
  EDQUOT: 'The disk quota of the user who runs the mirror is used up. Free space, or raise the quota.',
  EROFS:
    'The disk with the data of the mirror is mounted read-only. Remount it, or use another folder: mirror up --data DIR.',
  EACCES: noPermission,
  EPERM: noPermission,
}

function isDiskFull(error: unknown): boolean {
  const code = errnoOf(error)
  return code === 'ENOSPC' || code === 'EDQUOT'
}
