import { randomBytes } from 'node:crypto'
import { getErrno, getReserve } from '../lib/errors.ts'
import { type Logger, silentLogger } from '../lib/logger.ts'
import { type Clock, runEvery, logFailure } from '../lib/time.ts'
import { formatBytes } from '../lib/units.ts'
import {
  createDigester,
  type Digest,
  type DigestAlgorithm,
  getDigestAlgorithm,
  type Digester,
} from '../oci/reference.ts'
import { OciError } from '../oci/errors.ts'
import { anonymousIdentity, type UploadChunk, type UploadName, type UploadState, type User } from '../oci/registry.ts'
import type { Repository } from '../oci/route.ts'
import type { BlobStore, BlobWriter } from '../store/blob-store.ts'
import type { PushedStore } from './repositories.ts'

/** Exceeds the bytes of a commit on the disk. */
export const commitBytes = 64 * 1024
/** Asks for room for further writes, so that the next one does not need to make room again. */
const maxRoomBytes = 64 * 1024 * 1024
const rereadBytes = 256 * 1024
/** Sets the checks for expired sessions per idle timeout. */
const pollsPerIdle = 20

interface LocalUploadsOptions {
  readonly store: PushedStore
  readonly sessions: UploadSessions
  readonly makeRoom: MakeRoom
}

/** Runs the blob uploads of the local registry: starts, appends to and finishes upload sessions. */
export class LocalUploads {
  readonly #options: LocalUploadsOptions

  constructor(options: LocalUploadsOptions) {
    this.#options = options
  }

  start({ name }: Repository, user: User, algorithm: DigestAlgorithm | undefined): UploadSession {
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
        const isMatch = await translateDiskErrors(() => session.publish(digest))
        if (!isMatch) throw new OciError('DIGEST_INVALID', 400, `The uploaded bytes do not hash to ${digest}.`)
        const usedAt = store.runningClock.now()
        const blob = { op: 'blob' as const, digest, size, identity: anonymousIdentity, usedAt }
        await withRoom(makeRoom, commitBytes, () => store.repositories.commit(session.repository, [blob]))
      } finally {
        release()
      }
    })
  }

  async #write(session: UploadSession, { start, bytes }: UploadChunk): Promise<void> {
    if (start !== undefined && start !== session.size)
      throw new OciError(
        'BLOB_UPLOAD_INVALID',
        416,
        `The next byte is number ${session.size}.`,
        toUploadHeaders(session),
      )
    for await (const chunk of bytes) {
      if (session.hasEnded) throw createUnknownUploadError()
      await withRoom(this.#options.makeRoom, chunk.length, () => session.append(chunk))
    }
    if (session.hasEnded) throw createUnknownUploadError()
  }
}

/**
 * Creates the headers that tell the client where to continue: the URL and the received range. An empty upload has `0-0` by
 * convention.
 */
export function toUploadHeaders({ repository, id, size }: Pick<UploadSession, 'repository' | 'id' | 'size'>) {
  return {
    location: `/v2/${repository}/blobs/uploads/${id}`,
    range: `0-${Math.max(0, size - 1)}`,
    'docker-upload-uuid': id,
  }
}

async function runExclusive<T>(session: UploadSession, task: () => Promise<T>): Promise<T> {
  const done = await session.runExclusively(task)
  if (done) return done.result
  throw new OciError('BLOB_UPLOAD_INVALID', 409, 'Another request is writing to this upload.', toUploadHeaders(session))
}

function createUnknownUploadError(): OciError {
  return new OciError('BLOB_UPLOAD_UNKNOWN', 404, 'There is no such upload; it may have been idle for too long.')
}

interface UploadSessionOptions {
  readonly id: string
  readonly repository: string
  /** Names the user who has started it; undefined without authentication. */
  readonly user: string | undefined
  /** Names the expected algorithm of the blob's digest. With another one all bytes are read again. */
  readonly algorithm: DigestAlgorithm
  readonly blobs: Pick<BlobStore, 'create'>
  readonly clock: Clock
  /** Is called when the session ends, in any way. */
  readonly onEnd: () => void
}

/** Receives a blob in consecutive chunks. One request at a time may use it. */
class UploadSession {
  readonly id: string
  readonly repository: string
  readonly user: string | undefined
  readonly #options: UploadSessionOptions
  readonly #digester: Digester
  #writer: BlobWriter | undefined
  #usedAt: number
  #isBusy = false
  #hasEnded = false

  constructor(options: UploadSessionOptions) {
    this.#options = options
    this.id = options.id
    this.repository = options.repository
    this.user = options.user
    this.#digester = createDigester(options.algorithm)
    this.#usedAt = options.clock.monotonic()
  }

  /** Returns the number of received bytes. */
  get size(): number {
    return this.#writer?.size ?? 0
  }

  /** Returns the time of the last use, monotonic ms. */
  get usedAt(): number {
    return this.#usedAt
  }

  get isBusy(): boolean {
    return this.#isBusy
  }

  /** Is true when it was published or cancelled. */
  get hasEnded(): boolean {
    return this.#hasEnded
  }

  /** Runs the task; returns undefined without running it while another one is running. */
  async runExclusively<T>(task: () => Promise<T>): Promise<{ readonly result: T } | undefined> {
    if (this.#isBusy) return undefined
    this.#isBusy = true
    try {
      return { result: await task() }
    } finally {
      this.#isBusy = false
      this.#usedAt = this.#options.clock.monotonic()
      if (this.#hasEnded) await this.#close()
    }
  }

  /** Appends bytes. After a failure the earlier bytes are still there. */
  async append(chunk: Uint8Array): Promise<void> {
    this.#writer ??= await this.#options.blobs.create()
    await this.#writer.write(chunk)
    this.#digester.update(chunk)
    this.#usedAt = this.#options.clock.monotonic()
  }

  /** Stores the blob durably if its bytes hash to the digest. Ends the session in any case. */
  async publish(digest: Digest): Promise<boolean> {
    this.#end()
    this.#writer ??= await this.#options.blobs.create()
    const { algorithm } = this.#options
    const isMatch =
      getDigestAlgorithm(digest) === algorithm
        ? this.#digester.digest() === digest
        : (await rehash(this.#writer, getDigestAlgorithm(digest))) === digest
    if (isMatch) await this.#writer.commit(digest)
    return isMatch
  }

  /** Ends the session and drops its bytes. A request that is using it fails with its next bytes. */
  async cancel(): Promise<void> {
    this.#end()
    if (!this.#isBusy) await this.#close()
  }

  #end(): void {
    this.#hasEnded = true
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
  /** Limits the number of open sessions. */
  readonly maxSessions: number
  /** Limits the time without use after which a session expires, ms. */
  readonly idleTimeoutMs: number
  readonly logger?: Logger
}

/**
 * Keeps the open upload sessions. They are in memory, and their bytes in temp files that the next start removes: after a restart
 * the client starts its uploads again.
 */
export class UploadSessions {
  readonly #options: UploadSessionsOptions
  readonly #sessions = new Map<string, UploadSession>()
  readonly #stopExpiring: () => void

  constructor(options: UploadSessionsOptions) {
    this.#options = options
    const everyMs = Math.max(10, Math.min(60_000, options.idleTimeoutMs / pollsPerIdle))
    const onFailure = logFailure(options.logger ?? silentLogger, 'could not end an expired upload')
    this.#stopExpiring = runEvery(everyMs, () => this.#expire(), onFailure)
  }

  get count(): number {
    return this.#sessions.size
  }

  /** Starts a session; undefined when too many sessions have received bytes. Replaces the oldest empty one at the limit. */
  start(upload: Pick<UploadSessionOptions, 'repository' | 'user' | 'algorithm'>): UploadSession | undefined {
    if (this.#sessions.size >= this.#options.maxSessions && !this.#dropOldestEmpty()) return undefined
    const id = randomBytes(16).toString('hex')
    const { blobs, clock } = this.#options
    const onEnd = () => void this.#sessions.delete(id)
    const session = new UploadSession({ ...upload, id, blobs, clock, onEnd })
    this.#sessions.set(id, session)
    return session
  }

  find(id: string): UploadSession | undefined {
    return this.#sessions.get(id)
  }

  /** Ends all sessions. */
  async close(): Promise<void> {
    this.#stopExpiring()
    await Promise.all([...this.#sessions.values()].map((session) => session.cancel()))
  }

  /** Drops the oldest session without bytes: probes and clients that gave up leave such sessions. The map is ordered by age. */
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
    const oldest = this.#options.clock.monotonic() - this.#options.idleTimeoutMs
    const expired = [...this.#sessions.values()].filter((session) => !session.isBusy && session.usedAt < oldest)
    await Promise.all(expired.map(cancelQuietly))
  }
}

/** Ends a session without reporting the disk's errors: the next start removes a temp file that is left. */
async function cancelQuietly(session: UploadSession): Promise<void> {
  try {
    await session.cancel()
  } catch (error) {
    if (getErrno(error) === undefined) throw error
  }
}

/** Frees so many bytes on the disk by evicting cached content. Frees nothing if that is not enough. */
export type MakeRoom = (bytes: number) => Promise<void>

/**
 * Runs a task that writes to the disk. While the disk is full, makes room and runs it again: first room for further writes, then
 * `minBytes`. Throws an OciError 507 when the disk stays full.
 */
export async function withRoom<T>(makeRoom: MakeRoom, minBytes: number, task: () => Promise<T>): Promise<T> {
  for (const bytes of [maxRoomBytes, minBytes]) {
    try {
      return await task()
    } catch (error) {
      if (!isDiskFull(error)) throw error
    }
    await makeRoom(bytes)
  }
  return translateDiskErrors(task)
}

/** Runs a task that writes to the disk. Maps the lasting errors of a disk (full, read-only, no permission) to an OciError 507. */
export async function translateDiskErrors<T>(task: () => Promise<T>): Promise<T> {
  try {
    return await task()
  } catch (error) {
    const minFree = getReserve(error)
    const why = minFree === undefined ? reasons[getErrno(error) ?? ''] : describeReserve(minFree)
    throw why === undefined ? error : new OciError('DENIED', 507, `${why} Existing images can still be pulled.`)
  }
}

const noPermission =
  'The mirror has no permission to write to its data folder. Give the folder back to the user who runs the mirror; mirror status names the folder.'

/** Describes the reserve. The message does not name the folder, because the client may be on another machine. */
function describeReserve(minFree: number): string {
  return `The disk with the mirror's data would have less than ${formatBytes(minFree)} free, the reserve of cache.minFree. Free space on the disk, or lower cache.minFree; mirror status names the folder.`
}

/** Maps error codes to messages. EIO is not among them, because the next try may succeed. */
const reasons: Readonly<Record<string, string>> = {
  ENOSPC: "The disk with the mirror's data is full. Free space on the disk; mirror status names the folder.",
  EDQUOT: 'The disk quota of the user who runs the mirror is used up. Free space, or raise the quota.',
  EROFS:
    "The disk with the mirror's data is mounted read-only. Remount it, or use another folder: mirror up --data DIR.",
  EACCES: noPermission,
  EPERM: noPermission,
}

function isDiskFull(error: unknown): boolean {
  const code = getErrno(error)
  return code === 'ENOSPC' || code === 'EDQUOT'
}
