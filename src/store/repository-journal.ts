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
/** So is one with more bytes than this, and several times more than its entries may need. */
const largeJournal = 1024 * 1024
const wasteful = 4
/** Several times this is more than the largest entry; bytes. */
const entryBytes = 600
/** Removals that one line tells of at most: each of them may stand without the others. */
const removalsPerLine = 1000

/** Of a file: its lines and bytes; none when it is not there or must be written anew. */
export interface JournalLength {
  readonly lines: number
  readonly bytes: number
}

/**
 * A repository's state and the file that keeps it: one line is appended and synced per commit, so that a push costs the
 * same however much the repository holds. Commits that come while the disk is busy share the next sync.
 */
export class RepositoryJournal {
  readonly #path: string
  readonly #state: GrowingRepository
  #waiting: { readonly changes: readonly PushedChange[]; readonly done: Deferred<void> }[] = []
  #isWriting = false
  #length: JournalLength | undefined

  constructor(path: string, state: GrowingRepository, length: JournalLength | undefined) {
    this.#path = path
    this.#state = state
    this.#length = length
  }

  get repository(): PushedRepository {
    return this.#state
  }

  get isWasteful(): boolean {
    if (this.#length === undefined) return true
    const { lines, bytes } = this.#length
    const enough = this.#entries * wasteful
    return (lines > longJournal && lines > enough) || (bytes > largeJournal && bytes > enough * entryBytes)
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

  get #entries(): number {
    const { tags, manifests, blobs } = this.#state
    return tags.size + manifests.size + blobs.size
  }

  async #write(): Promise<void> {
    this.#isWriting = true
    while (this.#waiting.length > 0) {
      const batch = this.#waiting
      this.#waiting = []
      try {
        await this.#append(batch.flatMap(({ changes }) => linesFor(changes)))
        for (const { changes } of batch) for (const change of changes) applyChange(this.#state, change)
        for (const { done } of batch) done.resolve()
      } catch (error) {
        // A part of a line may be in the file: the next commit makes a clean one.
        this.#length = undefined
        for (const { done } of batch) done.reject(error)
      }
    }
    this.#isWriting = false
  }

  async #append(lines: readonly string[]): Promise<void> {
    if (this.#length === undefined || this.isWasteful) return this.#rewrite(lines)
    const file = await open(this.#path, 'r+')
    const text = Buffer.from(lines.join(''))
    try {
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
    const { lines: before, bytes } = this.#length
    this.#length = { lines: before + lines.length, bytes: bytes + text.length }
  }

  /** Replaces the file by one without history, a piece at a time. */
  async #rewrite(lines: readonly string[]): Promise<void> {
    const written = { lines: 0, bytes: 0 }
    await writeFileAtomic(this.#path, piecesOf(this.#state, lines, written))
    this.#length = written
  }
}

function linesFor(changes: readonly PushedChange[]): string[] {
  if (changes.length <= removalsPerLine || !changes.every(isRemoval)) return [changeLine(changes)]
  const lines: string[] = []
  for (let at = 0; at < changes.length; at += removalsPerLine)
    lines.push(changeLine(changes.slice(at, at + removalsPerLine)))
  return lines
}

const pieceBytes = 64 * 1024

/** The text of a journal; `written` counts what has been given out. */
function* piecesOf(
  state: PushedRepository,
  lines: readonly string[],
  written: { lines: number; bytes: number },
): Generator<Buffer, void> {
  let piece = ''
  for (const line of linesOf(state, lines)) {
    piece += line
    written.lines += 1
    if (piece.length < pieceBytes) continue
    const bytes = Buffer.from(piece)
    piece = ''
    written.bytes += bytes.length
    yield bytes
  }
  const rest = Buffer.from(piece)
  written.bytes += rest.length
  yield rest
}

function* linesOf(state: PushedRepository, lines: readonly string[]): Generator<string, void> {
  yield headLine(state.name)
  for (const change of historyOf(state)) yield changeLine([change])
  yield* lines
}
