import { open } from 'node:fs/promises'
import { deferred, type Deferred } from '../lib/async.ts'
import { writeFileAtomic } from '../lib/fs.ts'
import { artifactTypeKey } from '../oci/content.ts'
import type { Digest } from '../oci/digest.ts'
import { isRepositoryName } from '../oci/reference.ts'
import {
  damaged,
  readDigest,
  readJson,
  readList,
  readNumber,
  readObject,
  readTag,
  readText,
} from '../store/record-files.ts'
import {
  applyChange,
  type MutableRepository,
  toChanges,
  isRemoval,
  type PushedChange,
  type PushedRepository,
} from './repository.ts'

/** A journal with more lines than this, and several times more than it has entries, is written anew. */
const maxLines = 1000
/** So is one with more bytes than this, and several times more than its entries may need. */
const maxBytes = 1024 * 1024
const maxWasteFactor = 4
/** Several times this is more than the largest entry; bytes. */
const entryBytes = 600

/** Of a file: its lines and bytes; none when it is not there or must be written anew. */
interface JournalLength {
  readonly lines: number
  readonly bytes: number
}

/**
 * A repository's state and the file that keeps it: one line is appended and synced per commit, so that a push costs the
 * same however much the repository holds. Commits that come while the disk is busy share the next sync.
 */
export class RepositoryJournal {
  readonly #path: string
  readonly #state: MutableRepository
  #queued: Commit[] = []
  #writing: readonly Commit[] = []
  #isWriting = false
  #length: JournalLength | undefined

  constructor(path: string, state: MutableRepository, length: JournalLength | undefined) {
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
    const enough = this.#entries * maxWasteFactor
    return (lines > maxLines && lines > enough) || (bytes > maxBytes && bytes > enough * entryBytes)
  }

  /**
   * Resolves when the changes are on the disk and can be seen; rejects with the disk's error, and then nothing has changed.
   * Removals can be seen at once: nothing new may build on what is about to go.
   */
  commit(changes: readonly PushedChange[]): Promise<void> {
    const done = deferred()
    this.#queued.push({ changes, done, hidden: applyRemovals(this.#state, changes) })
    if (!this.#isWriting) void this.#write()
    return done.promise
  }

  /** Whether the repository has it, or will have it again if the disk does not take its removal. */
  holds(digest: Digest): boolean {
    const { blobs, manifests } = this.#state
    if (blobs.has(digest) || manifests.has(digest)) return true
    return [...this.#writing, ...this.#queued].some(({ hidden }) => hidden.some((entry) => isEntryOf(entry, digest)))
  }

  get #entries(): number {
    const { tags, manifests, blobs } = this.#state
    return tags.size + manifests.size + blobs.size
  }

  async #write(): Promise<void> {
    this.#isWriting = true
    while (this.#queued.length > 0) {
      const batch = this.#queued
      this.#queued = []
      this.#writing = batch
      try {
        await this.#append(batch.flatMap(({ changes }) => toLines(changes)))
        for (const { changes } of batch) for (const change of changes) applyChange(this.#state, change)
        this.#writing = []
        for (const { done } of batch) done.resolve()
      } catch (error) {
        // A part of a line may be in the file: the next commit makes a clean one.
        this.#length = undefined
        this.#writing = []
        this.#restore(batch)
        for (const { done } of batch) done.reject(error)
      }
    }
    this.#isWriting = false
  }

  /** Shows again what these commits have hidden, as it was last, but for what a later one is still to remove. */
  #restore(failed: readonly Commit[]): void {
    const entries = failed.flatMap(({ hidden }) => hidden)
    for (const entry of entries.toReversed()) if (!hasEntry(this.#state, entry)) applyChange(this.#state, entry)
    for (const { changes, hidden } of this.#queued) hidden.unshift(...applyRemovals(this.#state, changes))
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

  /** What the disk must not lose, without the commits that are being written: also what waiting ones have hidden, which may fail. */
  *#formatState(): Generator<string, void> {
    yield formatHead(this.#state.name)
    for (const change of toChanges(this.#state)) yield formatChanges([change])
    for (const { hidden } of this.#queued)
      for (const entry of hidden) if (!hasEntry(this.#state, entry)) yield formatChanges([entry])
  }

  /** Replaces the file by one without history, a piece at a time. */
  async #rewrite(lines: readonly string[]): Promise<void> {
    const written = { lines: 0, bytes: 0 }
    await writeFileAtomic(this.#path, toPieces(this.#formatState(), lines, written))
    this.#length = written
  }
}

/** Changes that are to be written together. */
interface Commit {
  readonly changes: readonly PushedChange[]
  /** What its removals have taken away: it comes back when the disk does not take them. */
  readonly hidden: PushedChange[]
  readonly done: Deferred<void>
}

/** Carries the removals out; what was there before, as the changes that bring it back. */
function applyRemovals(state: MutableRepository, changes: readonly PushedChange[]): PushedChange[] {
  const hidden: PushedChange[] = []
  for (const change of changes) {
    if (!isRemoval(change)) continue
    const entry = findEntry(state, change)
    applyChange(state, change)
    if (entry && !hasEntry(state, entry)) hidden.push(entry)
  }
  return hidden
}

/** What a change is about, as the repository has it. */
function findEntry({ tags, manifests, blobs }: PushedRepository, change: PushedChange): PushedChange | undefined {
  if (change.op === 'tag' || change.op === 'untag') {
    const value = tags.get(change.tag)
    return value && { op: 'tag', tag: change.tag, ...value }
  }
  const { digest } = change
  if (change.op === 'manifest' || change.op === 'drop-manifest') {
    const value = manifests.get(digest)
    return value && { op: 'manifest', digest, ...value }
  }
  const value = blobs.get(digest)
  return value && { op: 'blob', digest, ...value }
}

function hasEntry(repository: PushedRepository, change: PushedChange): boolean {
  return findEntry(repository, change) !== undefined
}

function isEntryOf(entry: PushedChange, digest: Digest): boolean {
  return (entry.op === 'blob' || entry.op === 'manifest') && entry.digest === digest
}

/** Removals that one line tells of at most: each of them may stand without the others. */
const maxRemovalsPerLine = 1000

function toLines(changes: readonly PushedChange[]): string[] {
  if (changes.length <= maxRemovalsPerLine || !changes.every(isRemoval)) return [formatChanges(changes)]
  const lines: string[] = []
  for (let at = 0; at < changes.length; at += maxRemovalsPerLine)
    lines.push(formatChanges(changes.slice(at, at + maxRemovalsPerLine)))
  return lines
}

const pieceBytes = 64 * 1024

/** The text of a journal; `written` counts what has been given out. */
function* toPieces(
  history: Iterable<string>,
  lines: readonly string[],
  written: { lines: number; bytes: number },
): Generator<Buffer, void> {
  let piece = ''
  for (const part of [history, lines])
    for (const line of part) {
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

/** Format 1 kept each manifest's links and annotations as well; they are passed over. */
const journalFormat = 2

export interface JournalHead {
  readonly name: string
  /** `old`: its lines may hold what this version does not write. `newer`: they may mean what this version does not know. */
  readonly version: 'older' | 'current' | 'newer'
}

/** The first line of a repository's journal. */
function formatHead(name: string): string {
  return `${JSON.stringify({ format: journalFormat, name })}\n`
}

/** What the first line says; undefined when it is damaged. */
export function parseJournalHead(line: string): JournalHead | undefined {
  return readJson(line, (value) => {
    const head = readObject(value)
    const name = readText(head['name'])
    const written = readNumber(head['format'])
    if (!Number.isInteger(written) || written < 1 || !isRepositoryName(name)) return damaged()
    return { name, version: written < journalFormat ? 'older' : written > journalFormat ? 'newer' : 'current' }
  })
}

/** One line a commit: after a crash all of its changes stand, or none. */
function formatChanges(changes: readonly PushedChange[]): string {
  return `${JSON.stringify(changes)}\n`
}

/** The changes of a line; undefined when any of them is damaged. */
export function parseChanges(line: string): PushedChange[] | undefined {
  return readJson(line, (value) => readList(value).map(parseChange))
}

function parseChange(json: unknown): PushedChange {
  const value = readObject(json)
  const op = value['op']
  switch (op) {
    case 'tag':
      return {
        op,
        tag: readTag(value['tag']),
        digest: readDigest(value['digest']),
        pushedAt: readNumber(value['pushedAt']),
      }
    case 'untag':
      return {
        op,
        tag: readTag(value['tag']),
        ...(value['pushedAt'] === undefined ? {} : { pushedAt: readNumber(value['pushedAt']) }),
      }
    case 'blob': {
      const { size, heldSince } = value
      return { op, digest: readDigest(value['digest']), size: readNumber(size), heldSince: readNumber(heldSince) }
    }
    case 'drop-blob':
    case 'drop-manifest':
      return { op, digest: readDigest(value['digest']) }
    case 'manifest':
      return {
        op,
        digest: readDigest(value['digest']),
        mediaType: readText(value['mediaType']),
        size: readNumber(value['size']),
        pushedAt: readNumber(value['pushedAt']),
        heldSince: readNumber(value['heldSince']),
        ...(value['subject'] === undefined ? {} : { subject: readDigest(value['subject']) }),
        ...(value['artifactType'] === undefined
          ? {}
          : { artifactType: artifactTypeKey(readText(value['artifactType'])) }),
      }
    default:
      return damaged()
  }
}
