import type { Digest, DigestAlgorithm } from '../oci/digest.ts'
import { OciError } from '../oci/errors.ts'
import type { UploadChunk, UploadName, UploadState, User } from '../oci/registry.ts'
import type { Repository } from '../oci/route.ts'
import type { PushedStore } from '../store/pushed-store.ts'
import type { UploadSession } from '../store/upload-session.ts'
import type { UploadSessions } from '../store/upload-sessions.ts'
import { journalBytes, type MakeRoom, tellUnwritable, withRoom } from './with-room.ts'

export interface LocalUploadsOptions {
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
    throw unknownUpload()
  }

  append(session: UploadSession, chunk: UploadChunk): Promise<UploadState> {
    return alone(session, async () => {
      await this.#write(session, chunk)
      return { id: session.id, size: session.size }
    })
  }

  finish(session: UploadSession, digest: Digest, chunk: UploadChunk | undefined): Promise<void> {
    const { store, makeRoom } = this.#options
    return alone(session, async () => {
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
      if (session.isOver) throw unknownUpload()
      await withRoom(this.#options.makeRoom, chunk.length, () => session.append(chunk))
    }
    if (session.isOver) throw unknownUpload()
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

async function alone<T>(session: UploadSession, task: () => Promise<T>): Promise<T> {
  const done = await session.exclusively(task)
  if (done) return done.result
  throw new OciError('BLOB_UPLOAD_INVALID', 409, 'Another request is writing to this upload.', uploadHeaders(session))
}

function unknownUpload(): OciError {
  return new OciError('BLOB_UPLOAD_UNKNOWN', 404, 'There is no such upload; it may have been idle for too long.')
}
