import { open } from 'node:fs/promises'
import { createDeferred, type Deferred } from '../lib/async.ts'
import { writeFileAtomic } from '../lib/fs.ts'
import { toArtifactTypeKey } from '../oci/content.ts'
import { isRepositoryName } from '../oci/reference.ts'
import {
  throwDamaged,
  readDigest,
  parseRecordJson,
  readList,
  readNumber,
  readObject,
  readTag,
  readText,
} from '../store/record-files.ts'
import {
  applyChange,
  type Holders,
  type MutableRepository,
  toChanges,
  isRemoval,
  type PushedChange,
  type PushedRepository,
} from './repository.ts'

/** Limits the lines: a journal with more, and with `maxWasteFactor` times more than its entries need, is rewritten. */
const maxLines = 1000
/** Limits the bytes: a journal with more, and with `maxWasteFactor` times more than its entries need, is rewritten. */
const maxBytes = 1024 * 1024
const maxWasteFactor = 4
/** Estimates the bytes of an entry; `maxWasteFactor` times this is more than the largest one. */
const entryBytes = 600
/** Limits the removals in one line. Unlike other changes, removals of one commit may be applied without each other. */
const maxRemovalsPerLine = 1000
/** Sets the bytes of a write when a journal is rewritten. */
const pieceBytes = 64 * 1024
/** Is the written format. Format 1 also had each manifest's links and annotations, which are ignored. */
const journalFormat = 2

interface JournalLength {
  readonly lines: number
  readonly bytes: number
}

/**
 * Keeps a repository's state and its journal, a JSON Lines file. Each commit appends one line and syncs it, so the cost of a push
 * does not depend on the size of the repository. Commits that come during a sync share the next one.
 */
export class RepositoryJournal {
  readonly #path: string
  readonly #state: MutableRepository
  readonly #holders: Holders
  #queued: Commit[] = []
  #isWriting = false
  #length: JournalLength | undefined

  /** `holders` counts the content of the state, also while a commit that removes it is not on disk. */
  constructor(path: string, state: MutableRepository, length: JournalLength | undefined, holders: Holders) {
    this.#path = path
    this.#state = state
    this.#length = length
    this.#holders = holders
    for (const held of [state.blobs, state.manifests]) for (const digest of held.keys()) holders.add(digest, 1)
  }

  get repository(): PushedRepository {
    return this.#state
  }

  /** Is true when a rewrite is worth it, or necessary. */
  get isWasteful(): boolean {
    if (this.#length === undefined) return true
    const { lines, bytes } = this.#length
    const enough = this.#entries * maxWasteFactor
    return (lines > maxLines && lines > enough) || (bytes > maxBytes && bytes > enough * entryBytes)
  }

  /**
   * Resolves when the changes are on disk and visible. Rejects with the disk's error; then nothing has changed. Removals are
   * visible at once, because no push may build on content that is about to be removed.
   */
  commit(changes: readonly PushedChange[]): Promise<void> {
    const done = createDeferred()
    this.#queued.push({ changes, done, hidden: applyRemovals(this.#state, changes) })
    if (!this.#isWriting) void this.#write()
    return done.promise
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
      try {
        await this.#append(batch.flatMap(({ changes }) => toLines(changes)))
        for (const { changes, hidden } of batch) {
          this.#countRemoved(hidden)
          for (const change of changes) this.#apply(change)
        }
        for (const { done } of batch) done.resolve()
      } catch (error) {
        // Let the next commit rewrite the file, which may end with a part of a line.
        this.#length = undefined
        this.#restore(batch)
        for (const { done } of batch) done.reject(error)
      }
    }
    this.#isWriting = false
  }

  /** Restores the entries that these commits have hidden, except those that a queued commit removes. */
  #restore(failed: readonly Commit[]): void {
    const entries = failed.flatMap(({ hidden }) => hidden)
    for (const entry of entries.toReversed())
      if (hasEntry(this.#state, entry)) this.#countRemoved([entry])
      else applyChange(this.#state, entry)
    for (const { changes, hidden } of this.#queued) hidden.unshift(...applyRemovals(this.#state, changes))
  }

  #apply(change: PushedChange): void {
    const before = findEntry(this.#state, change)
    applyChange(this.#state, change)
    if (change.op === 'tag' || change.op === 'untag') return
    if (before && isRemoval(change)) this.#holders.add(change.digest, -1)
    else if (!before && !isRemoval(change)) this.#holders.add(change.digest, 1)
  }

  #countRemoved(entries: readonly PushedChange[]): void {
    for (const entry of entries) if (entry.op === 'blob' || entry.op === 'manifest') this.#holders.add(entry.digest, -1)
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

  /**
   * Yields the lines for the current state, without the commits that are being written. Includes the entries that queued commits
   * have hidden, because those commits may fail.
   */
  *#formatState(): Generator<string, void> {
    yield formatHead(this.#state.name)
    for (const change of toChanges(this.#state)) yield formatChanges([change])
    for (const { hidden } of this.#queued)
      for (const entry of hidden) if (!hasEntry(this.#state, entry)) yield formatChanges([entry])
  }

  /** Replaces the file by one with the current state only, written in pieces. */
  async #rewrite(lines: readonly string[]): Promise<void> {
    const written = { lines: 0, bytes: 0 }
    await writeFileAtomic(this.#path, toPieces(this.#formatState(), lines, written))
    this.#length = written
  }
}

/** Groups changes that are written together. */
interface Commit {
  readonly changes: readonly PushedChange[]
  /** Holds the entries that its removals have hidden. They come back when the disk refuses the commit. */
  readonly hidden: PushedChange[]
  readonly done: Deferred<void>
}

/** Applies the removals among the changes. Returns the changes that restore the removed entries. */
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

/** Finds the repository's current entry for the tag or digest of a change, as the change that creates it. */
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

function toLines(changes: readonly PushedChange[]): string[] {
  if (changes.length <= maxRemovalsPerLine || !changes.every(isRemoval)) return [formatChanges(changes)]
  const lines: string[] = []
  for (let at = 0; at < changes.length; at += maxRemovalsPerLine)
    lines.push(formatChanges(changes.slice(at, at + maxRemovalsPerLine)))
  return lines
}

/** Yields the text of a journal in pieces. Counts the yielded lines and bytes in `written`. */
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

/** Holds the first line of a journal. */
export interface JournalHead {
  /** Names the repository. */
  readonly name: string
  /**
   * Distinguishes `older`: lines may have members that this version does not write; and `newer`: this version may not understand
   * the lines.
   */
  readonly version: 'older' | 'current' | 'newer'
}

function formatHead(name: string): string {
  return `${JSON.stringify({ format: journalFormat, name })}\n`
}

/** Parses the first line; undefined when it is damaged. */
export function parseJournalHead(line: string): JournalHead | undefined {
  return parseRecordJson(line, (value) => {
    const head = readObject(value)
    const name = readText(head['name'])
    const written = readNumber(head['format'])
    if (!Number.isInteger(written) || written < 1 || !isRepositoryName(name)) return throwDamaged()
    return { name, version: written < journalFormat ? 'older' : written > journalFormat ? 'newer' : 'current' }
  })
}

/** Formats the line of a commit: after a crash all of its changes are there, or none. */
function formatChanges(changes: readonly PushedChange[]): string {
  return `${JSON.stringify(changes)}\n`
}

/** Parses the changes of a line; undefined when any of them is damaged. */
export function parseChanges(line: string): PushedChange[] | undefined {
  return parseRecordJson(line, (value) => readList(value).map(parseChange))
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
          : { artifactType: toArtifactTypeKey(readText(value['artifactType'])) }),
      }
    default:
      return throwDamaged()
  }
}
