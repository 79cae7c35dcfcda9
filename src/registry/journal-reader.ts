import { type FileHandle, open, readdir, rename, utimes } from 'node:fs/promises'
import { errnoOf } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { OciError } from '../oci/errors.ts'
import type { StoreLayout } from '../store/layout.ts'
import { type JournalHead, parseChanges, parseJournalHead } from './journal.ts'
import { applyChange, createEmptyRepository, type MutableRepository, isEmptyRepository } from './repository.ts'

export interface ReadJournal {
  /** The first line; undefined when it is damaged: then the repository has an empty name. */
  readonly head: JournalHead | undefined
  readonly repository: MutableRepository
  readonly lines: number
  readonly bytes: number
  /** The last line was cut off by a crash, before anybody was told that it stands. */
  readonly isTorn: boolean
  /** Damaged lines after the first: what they said is lost. */
  readonly unreadable: number
}

const chunkBytes = 256 * 1024
const lineFeed = 0x0a

/**
 * The state a journal leads to. It is read as a stream, and what no repository needs is passed over: memory grows with what
 * the repository holds alone. Throws the system's error when the file cannot be read.
 */
export async function readJournal(path: string): Promise<ReadJournal> {
  const file = await open(path, 'r')
  try {
    const read = { lines: 0, unreadable: 0 }
    let head: JournalHead | undefined
    const repository = createEmptyRepository('')
    const lines = readLines(file)
    for (;;) {
      const { done, value } = await lines.next()
      if (done) {
        const { bytes, isTorn } = value
        const named = { ...repository, name: head?.name ?? '' }
        return { ...read, head, repository: named, bytes, isTorn }
      }
      read.lines += 1
      if (read.lines === 1) {
        head = value === undefined ? undefined : parseJournalHead(value)
        if (head?.version === 'newer') return { ...read, head, repository, bytes: 0, isTorn: false }
        continue
      }
      const changes = value === undefined ? undefined : parseChanges(value)
      if (changes === undefined) read.unreadable += 1
      else for (const change of changes) applyChange(repository, change)
    }
  } finally {
    await file.close()
  }
}

/** Each line, undefined for one that cannot be read for its length; at the end, the bytes and whether something follows the last line. */
async function* readLines(
  file: FileHandle,
): AsyncGenerator<string | undefined, { readonly bytes: number; readonly isTorn: boolean }> {
  const buffer = Buffer.alloc(chunkBytes)
  /** The beginning of a line that has no end yet: its bytes while it is short. */
  let begun: Buffer | LongLine = Buffer.alloc(0)
  let bytes = 0
  let isAtStart = true
  for (;;) {
    const { bytesRead } = await file.read(buffer, 0, chunkBytes, bytes)
    if (bytesRead === 0) return { bytes, isTorn: !isAtStart }
    bytes += bytesRead
    const chunk = buffer.subarray(0, bytesRead)
    let from = 0
    for (let end = chunk.indexOf(lineFeed); end !== -1; end = chunk.indexOf(lineFeed, from)) {
      begun = appendToLine(begun, chunk.subarray(from, end))
      yield begun instanceof LongLine ? begun.end() : begun.toString('utf8')
      begun = Buffer.alloc(0)
      from = end + 1
    }
    isAtStart = from === bytesRead && (from > 0 || isAtStart)
    begun = appendToLine(begun, chunk.subarray(from))
  }
}

function appendToLine(begun: Buffer | LongLine, bytes: Buffer): Buffer | LongLine {
  if (begun instanceof LongLine) {
    begun.add(bytes)
    return begun
  }
  if (begun.length + bytes.length <= chunkBytes)
    return begun.length === 0 ? Buffer.from(bytes) : Buffer.concat([begun, bytes])
  const long = new LongLine()
  long.add(begun)
  long.add(bytes)
  return long
}

const [quote, backslash] = [0x22, 0x5c]
const [openList, closeList, openObject, closeObject] = [0x5b, 0x5d, 0x7b, 0x7d]

/** A line lists changes, and a change is flat but for what stands in the manifest as well. */
const maxKeptDepth = 2
/** No text that a change needs is longer. */
const maxTextLength = 4096
/** Bytes: some 200,000 changes. */
const maxKeptBytes = 32 * 1024 * 1024

/**
 * A line of a journal that is too long to be read as it is, because a manifest's links and annotations stand in it: the same
 * line without them. It takes the bytes as they come, and keeps what is needed.
 */
class LongLine {
  #kept = Buffer.alloc(64 * 1024)
  #size = 0
  #depth = 0
  #isInText = false
  #isEscaped = false
  /** Where the text that is being read begins in what is kept. */
  #textAt = 0
  #isTextTooLong = false
  #isTooLong = false

  add(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length && !this.#isTooLong;)
      at = this.#isInText ? this.#skipText(bytes, at) : this.#takeByte(bytes, at)
  }

  /** What is left of the line; undefined when that is too long as well. */
  end(): string | undefined {
    return this.#isTooLong ? undefined : this.#kept.toString('utf8', 0, this.#size)
  }

  /** Goes on in a text up to its end; where to go on after it. */
  #skipText(bytes: Uint8Array, from: number): number {
    let at = from
    while (at < bytes.length && this.#isInText) {
      const byte = bytes[at++]
      if (this.#isEscaped) this.#isEscaped = false
      else if (byte === backslash) this.#isEscaped = true
      else if (byte === quote) this.#isInText = false
    }
    if (this.#depth > maxKeptDepth) return at
    this.#isTextTooLong ||= this.#size - this.#textAt + at - from > maxTextLength
    if (!this.#isTextTooLong) this.#keep(bytes.subarray(from, at))
    else {
      // An empty text stands for it.
      this.#size = this.#textAt + 1
      if (!this.#isInText) this.#keepByte(quote)
    }
    return at
  }

  #takeByte(bytes: Uint8Array, at: number): number {
    const byte = bytes[at]!
    if (byte === openList || byte === openObject) {
      this.#depth += 1
      if (this.#depth === maxKeptDepth + 1) this.#keep(Buffer.from('null'))
    } else if (byte === quote) {
      this.#isInText = true
      this.#isTextTooLong = false
      this.#textAt = this.#size
    }
    if (this.#depth <= maxKeptDepth) this.#keepByte(byte)
    if (byte === closeList || byte === closeObject) this.#depth -= 1
    return at + 1
  }

  #keepByte(byte: number): void {
    if (this.#size === this.#kept.length) this.#grow(1)
    if (!this.#isTooLong) this.#kept[this.#size++] = byte
  }

  #keep(bytes: Uint8Array): void {
    if (this.#size + bytes.length > this.#kept.length) this.#grow(bytes.length)
    if (this.#isTooLong) return
    this.#kept.set(bytes, this.#size)
    this.#size += bytes.length
  }

  #grow(by: number): void {
    if (this.#size + by > maxKeptBytes) {
      this.#isTooLong = true
      this.#kept = Buffer.alloc(0)
      return
    }
    const grown = Buffer.alloc(Math.max(this.#size + by, this.#kept.length * 2))
    this.#kept.copy(grown, 0, 0, this.#size)
    this.#kept = grown
  }
}

/** A repository of the local registry whose record is not what it was. */
export interface DamagedRepository {
  /** Undefined where not even its name can be read. */
  readonly name: string | undefined
  /** The file that cannot be read, or a copy of one that is served without its damaged lines. */
  readonly path: string
  /** Where a sound one belongs. */
  readonly original: string
  readonly reason: string
  /** Whether it is served all the same. */
  readonly isServed: boolean
}

interface DamagedJournal {
  readonly path: string
  readonly reason: string
  /** What its lines tell, where all that is lost is the name: whoever asks for the repository knows that. */
  readonly recoverable: MutableRepository | undefined
}

/**
 * Journals that could not be loaded, by the path where a sound one belongs. What they hold is neither served nor lost: nothing is
 * written in their place until the repository is removed.
 */
export class DamagedJournals {
  readonly #layout: StoreLayout
  readonly #logger: Logger
  readonly #journals = new Map<string, DamagedJournal>()

  constructor(layout: StoreLayout, logger: Logger) {
    this.#layout = layout
    this.#logger = logger
  }

  get size(): number {
    return this.#journals.size
  }

  *all(): Generator<DamagedRepository, void> {
    for (const [original, { path, reason }] of this.#journals)
      yield { name: undefined, path, original, reason, isServed: false }
  }

  /** Finds those that earlier starts have set aside. `isLoaded`: whether there is a journal in its place. */
  async loadQuarantined(isLoaded: (journal: string) => boolean): Promise<void> {
    for (const name of await readdir(this.#layout.quarantine)) {
      const journal = this.#layout.originOf(name)
      if (journal === undefined) continue
      const path = this.#layout.entry(this.#layout.quarantine, name)
      const known = this.#journals.get(journal)
      if (known?.path === path) continue
      if (known || isLoaded(journal)) await this.#release(journal, path)
      else await this.#add(journal, path)
    }
  }

  /** Moves a journal out of the way; it keeps being known. */
  async setAside(journal: string): Promise<void> {
    const movedTo = this.#layout.setAsideForGood(journal)
    await rename(journal, movedTo)
    await touchFile(movedTo)
    const fields = { path: journal, movedTo }
    this.#logger.error(fields, 'the journal of a pushed repository is damaged beyond reading')
    await this.#add(journal, movedTo)
  }

  /** Leaves a journal where it is, because nothing in it is known to be damaged. */
  recordUnreadable(journal: string, reason: string): void {
    this.#logger.error({ path: journal, reason }, 'the journal of a pushed repository cannot be read')
    this.#journals.set(journal, { path: journal, reason, recoverable: undefined })
  }

  /** Throws an OciError 500 for a repository whose journal cannot be loaded. */
  throwIfDamaged(name: string): void {
    const damaged = this.#journals.size > 0 && this.#journals.get(this.#layout.journal(name))
    if (!damaged) return
    throw new OciError(
      'UNKNOWN',
      500,
      `The record of the repository ${name} is damaged: ${damaged.reason}. See "mirror status" for the file: restore it from a backup and restart the mirror, or give the repository up with "mirror registry rm ${name}" and push it again.`,
    )
  }

  has(name: string): boolean {
    return this.#journals.size > 0 && this.#journals.has(this.#layout.journal(name))
  }

  /** What a damaged journal tells of a repository whose name is all that was lost. */
  getRecoverable(name: string): MutableRepository | undefined {
    const held = this.#journals.size > 0 && this.#journals.get(this.#layout.journal(name))?.recoverable
    return held ? { ...held, name } : undefined
  }

  /** Gives a damaged journal up: its file stays for a week, as evidence. */
  async discard(name: string): Promise<void> {
    const journal = this.#layout.journal(name)
    const damaged = this.#journals.get(journal)
    if (!damaged) return
    this.#journals.delete(journal)
    try {
      await this.#release(journal, damaged.path)
    } catch (error) {
      this.#journals.set(journal, damaged)
      throw error
    }
  }

  async #release(journal: string, path: string): Promise<void> {
    const movedTo = this.#layout.setAside(journal)
    await rename(path, movedTo)
    await touchFile(movedTo)
  }

  async #add(journal: string, path: string): Promise<void> {
    try {
      const { repository } = await readJournal(path)
      const held = isEmptyRepository(repository) ? undefined : repository
      this.#journals.set(journal, {
        path,
        recoverable: held,
        reason: 'its first line, which names the repository, cannot be read',
      })
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
      const reason = describeReadError(error)
      this.#logger.error({ path, reason }, 'the journal of a pushed repository cannot be read')
      this.#journals.set(journal, { path, reason, recoverable: undefined })
    }
  }
}

export function describeReadError(error: unknown): string {
  return `the system does not give it out (${errnoOf(error) ?? String(error)})`
}

/** What is set aside stays for a time, counted from now. */
export async function touchFile(path: string): Promise<void> {
  const now = new Date()
  await utimes(path, now, now)
}
