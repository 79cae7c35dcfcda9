import { open } from 'node:fs/promises'
import { writeFileAtomic } from '../lib/atomic-file.ts'
import { deferred, type Deferred } from '../lib/deferred.ts'
import { changeLine, headLine } from './journal-lines.ts'
import {
  applyChange,
  historyOf,
  isRemoval,
  type GrowingRepository,
  type PushedChange,
  type PushedRepository,
} from './pushed-repository.ts'

/** A journal with more lines than this, and several times more than it has entries, is written anew. */
const longJournal = 1000

/**
 * A repository's state and the file that keeps it: one line is appended and synced per commit, so that a push costs the
 * same however much the repository holds. Commits that come while the disk is busy share the next sync.
 */
export class RepositoryJournal {
  readonly #path: string
  readonly #state: GrowingRepository
  #waiting: { readonly changes: readonly PushedChange[]; readonly done: Deferred<void> }[] = []
  #isWriting = false
  /** In the file; 0 when it is not there or must be written anew. */
  #lines: number

  constructor(path: string, state: GrowingRepository, lines: number) {
    this.#path = path
    this.#state = state
    this.#lines = lines
  }

  get repository(): PushedRepository {
    return this.#state
  }

  /**
   * Resolves when the changes are on the disk and can be seen. Removals can be seen at once: nothing new may build on what
   * is about to go.
   */
  commit(changes: readonly PushedChange[]): Promise<void> {
    for (const change of changes) if (isRemoval(change)) applyChange(this.#state, change)
    const done = deferred()
    this.#waiting.push({ changes, done })
    if (!this.#isWriting) void this.#write()
    return done.promise
  }

  async #write(): Promise<void> {
    this.#isWriting = true
    while (this.#waiting.length > 0) {
      const batch = this.#waiting
      this.#waiting = []
      try {
        await this.#append(batch.map(({ changes }) => changeLine(changes)))
        for (const { changes } of batch) for (const change of changes) applyChange(this.#state, change)
        for (const { done } of batch) done.resolve()
      } catch (error) {
        // A part of a line may be in the file: the next commit makes a clean one.
        this.#lines = 0
        for (const { done } of batch) done.reject(error)
      }
    }
    this.#isWriting = false
  }

  async #append(lines: readonly string[]): Promise<void> {
    const { tags, manifests, blobs, name } = this.#state
    const entries = tags.size + manifests.size + blobs.size
    if (this.#lines === 0 || (this.#lines > longJournal && this.#lines > entries * 4)) {
      const history = historyOf(this.#state).map((change) => changeLine([change]))
      await writeFileAtomic(this.#path, [headLine(name), ...history, ...lines].join(''))
      this.#lines = 1 + history.length + lines.length
      return
    }
    const file = await open(this.#path, 'r+')
    try {
      const text = Buffer.from(lines.join(''))
      let { size: position } = await file.stat()
      for (let at = 0; at < text.length;) {
        const { bytesWritten } = await file.write(text, at, text.length - at, position)
        at += bytesWritten
        position += bytesWritten
      }
      await file.datasync()
    } finally {
      await file.close()
    }
    this.#lines += lines.length
  }
}
