import { type FileHandle, open, readdir, rename, utimes } from 'node:fs/promises'
import { getErrno } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { OciError } from '../oci/errors.ts'
import type { StoreLayout } from '../store/layout.ts'
import { type JournalHead, parseChanges, parseJournalHead } from './journal.ts'
import { applyChange, createEmptyRepository, type MutableRepository, isEmptyRepository } from './repository.ts'

/** Holds the content of a journal. */
export interface ReadJournal {
  /** Holds the first line; undefined when it is damaged, and then the repository has an empty name. */
  readonly head: JournalHead | undefined
  readonly repository: MutableRepository
  readonly lines: number
  readonly bytes: number
  /** Is true when a crash has cut off the last line, whose commit was never acknowledged. */
  readonly isTorn: boolean
  /** Holds the number of damaged lines after the first. Their changes are lost. */
  readonly unreadable: number
}

/** Sets the bytes of a read. Longer lines go through `LongLine`. */
const chunkBytes = 256 * 1024
/** Limits the nesting that is kept of a long line: a line is a list of changes, and a change is flat. */
const maxKeptDepth = 2
/** Limits a text: no change needs a longer one. */
const maxTextLength = 4096
/** Limits the bytes that are kept of a long line: some 200,000 changes. */
const maxKeptBytes = 32 * 1024 * 1024

const lineFeed = 0x0a
const [quote, backslash] = [0x22, 0x5c]
const [openList, closeList, openObject, closeObject] = [0x5b, 0x5d, 0x7b, 0x7d]

/**
 * Reads a journal and applies its changes. Streams the file and skips what the state does not need, so that memory grows only
 * with the repository. Throws the system's error when the file cannot be read.
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
        const namedRepository = { ...repository, name: head?.name ?? '' }
        return { ...read, head, repository: namedRepository, bytes, isTorn }
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

/** Yields each line, or undefined for one that is too long. Returns the bytes, and whether there are any after the last line feed. */
async function* readLines(
  file: FileHandle,
): AsyncGenerator<string | undefined, { readonly bytes: number; readonly isTorn: boolean }> {
  const buffer = Buffer.alloc(chunkBytes)
  /** Holds the beginning of the current line. */
  let partialLine: Buffer | LongLine = Buffer.alloc(0)
  let bytes = 0
  let isAtStart = true
  for (;;) {
    const { bytesRead } = await file.read(buffer, 0, chunkBytes, bytes)
    if (bytesRead === 0) return { bytes, isTorn: !isAtStart }
    bytes += bytesRead
    const chunk = buffer.subarray(0, bytesRead)
    let from = 0
    for (let end = chunk.indexOf(lineFeed); end !== -1; end = chunk.indexOf(lineFeed, from)) {
      partialLine = appendToLine(partialLine, chunk.subarray(from, end))
      yield partialLine instanceof LongLine ? partialLine.end() : partialLine.toString('utf8')
      partialLine = Buffer.alloc(0)
      from = end + 1
    }
    isAtStart = from === bytesRead && (from > 0 || isAtStart)
    partialLine = appendToLine(partialLine, chunk.subarray(from))
  }
}

function appendToLine(partialLine: Buffer | LongLine, bytes: Buffer): Buffer | LongLine {
  if (partialLine instanceof LongLine) {
    partialLine.add(bytes)
    return partialLine
  }
  if (partialLine.length + bytes.length <= chunkBytes)
    return partialLine.length === 0 ? Buffer.from(bytes) : Buffer.concat([partialLine, bytes])
  const long = new LongLine()
  long.add(partialLine)
  long.add(bytes)
  return long
}

/**
 * Condenses a journal line that is too long to parse, because it contains a manifest's links and annotations (format 1). Takes
 * the bytes as they come, and drops nested values and long texts.
 */
class LongLine {
  #kept = Buffer.alloc(64 * 1024)
  #size = 0
  #depth = 0
  #isInText = false
  #isEscaped = false
  /** Holds the start of the current text in the kept bytes. */
  #textAt = 0
  #isTextTooLong = false
  #isTooLong = false

  add(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length && !this.#isTooLong;)
      at = this.#isInText ? this.#skipText(bytes, at) : this.#takeByte(bytes, at)
  }

  /** Returns the condensed line; undefined when it is still too long. */
  end(): string | undefined {
    return this.#isTooLong ? undefined : this.#kept.toString('utf8', 0, this.#size)
  }

  /** Reads a text up to its end. Returns the position behind it. */
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
      // Replace the text by an empty one.
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

/** Describes a repository of the local registry whose journal is damaged. */
export interface DamagedRepository {
  /** Is undefined when the name cannot be read. */
  readonly name: string | undefined
  /** Names the unreadable file, or the copy of a journal that is served without its damaged lines. */
  readonly path: string
  /** Names the path for an intact journal. */
  readonly original: string
  readonly reason: string
  /** Is true when the repository is served without the damaged lines. */
  readonly isServed: boolean
}

interface DamagedJournal {
  readonly path: string
  readonly reason: string
  /** Holds the repository's state if only its name is lost. A request for the repository brings the name. */
  readonly recoverable: MutableRepository | undefined
}

/**
 * Keeps the journals that could not be loaded, by the path for an intact one. Their content is neither served nor lost: no journal
 * replaces them until the repository is removed.
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

  /** Loads the journals that earlier starts have quarantined. `isLoaded`: whether an intact journal has replaced one. */
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

  /** Moves a journal to the quarantine for good; it stays known. */
  async quarantine(journal: string): Promise<void> {
    const movedTo = this.#layout.setAsideForGood(journal)
    await rename(journal, movedTo)
    await touchFile(movedTo)
    const fields = { path: journal, movedTo }
    this.#logger.error(fields, 'quarantined the unreadable journal of a pushed repository')
    await this.#add(journal, movedTo)
  }

  /** Records a journal that cannot be read. Leaves it in place, because its content may be intact. */
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
      `The record of the repository ${name} is damaged: ${damaged.reason}. "mirror status" names the file: restore it from a backup and restart the mirror, or discard the repository with "mirror registry rm ${name}" and push it again.`,
    )
  }

  has(name: string): boolean {
    return this.#journals.size > 0 && this.#journals.has(this.#layout.journal(name))
  }

  /** Returns the state of a repository whose journal has lost only its name. */
  getRecoverable(name: string): MutableRepository | undefined {
    const state = this.#journals.size > 0 && this.#journals.get(this.#layout.journal(name))?.recoverable
    return state ? { ...state, name } : undefined
  }

  /** Discards a damaged journal. Its file stays in quarantine for a week. */
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
      const recoverable = isEmptyRepository(repository) ? undefined : repository
      this.#journals.set(journal, {
        path,
        recoverable,
        reason: 'its first line, which names the repository, cannot be read',
      })
    } catch (error) {
      if (getErrno(error) === undefined) throw error
      const reason = describeReadError(error)
      this.#logger.error({ path, reason }, 'the journal of a pushed repository cannot be read')
      this.#journals.set(journal, { path, reason, recoverable: undefined })
    }
  }
}

/** Describes a system error that prevents reading a journal. */
export function describeReadError(error: unknown): string {
  return `the file cannot be read (${getErrno(error) ?? String(error)})`
}

/** Sets the modification time to now: the time in quarantine counts from it. */
export async function touchFile(path: string): Promise<void> {
  const now = new Date()
  await utimes(path, now, now)
}
