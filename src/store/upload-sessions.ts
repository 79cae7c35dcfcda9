import { randomBytes } from 'node:crypto'
import { errnoOf } from '../lib/errors.ts'
import { type Logger, silentLogger } from '../lib/logger.ts'
import { type Clock, every, logFailure } from '../lib/time.ts'
import type { BlobStore } from './blob-store.ts'
import { UploadSession, type UploadSessionOptions } from './upload-session.ts'

export interface UploadSessionsOptions {
  readonly blobs: BlobStore
  readonly clock: Clock
  /** Open ones at most. */
  readonly limit: number
  /** A session that nothing happens to for so long is gone; ms. */
  readonly idle: number
  readonly logger?: Logger
}

const looksPerIdle = 20

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
    const everyMs = Math.max(10, Math.min(60_000, options.idle / looksPerIdle))
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
    const session = new UploadSession({ ...upload, id, blobs, clock, forget })
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
      void end(session)
      return true
    }
    return false
  }

  async #expire(): Promise<void> {
    const { clock, idle } = this.#options
    const old = [...this.#sessions.values()].filter(
      (session) => !session.isBusy && clock.monotonic() - session.usedAt > idle,
    )
    await Promise.all(old.map(end))
  }
}

/** Nobody waits for this end: what the disk refuses to take away goes at the next start. */
async function end(session: UploadSession): Promise<void> {
  try {
    await session.cancel()
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
  }
}
