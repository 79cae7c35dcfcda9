import { open, type FileHandle } from 'node:fs/promises'
import { readChanges, readHead, type JournalHead } from './journal-lines.ts'
import { LongLine } from './long-line.ts'
import { applyChange, emptyRepository, type GrowingRepository } from '../registry/repository.ts'

export interface ReadJournal {
  /** The first line; undefined when it is damaged: then the repository has an empty name. */
  readonly head: JournalHead | undefined
  readonly repository: GrowingRepository
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
    const repository = emptyRepository('')
    const lines = linesOf(file)
    for (;;) {
      const { done, value } = await lines.next()
      if (done) {
        const { bytes, isTorn } = value
        const named = { ...repository, name: head?.name ?? '' }
        return { ...read, head, repository: named, bytes, isTorn }
      }
      read.lines += 1
      if (read.lines === 1) {
        head = value === undefined ? undefined : readHead(value)
        if (head?.age === 'newer') return { ...read, head, repository, bytes: 0, isTorn: false }
        continue
      }
      const changes = value === undefined ? undefined : readChanges(value)
      if (changes === undefined) read.unreadable += 1
      else for (const change of changes) applyChange(repository, change)
    }
  } finally {
    await file.close()
  }
}

/** Each line, undefined for one that cannot be read for its length; at the end, the bytes and whether something follows the last line. */
async function* linesOf(
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
      begun = extended(begun, chunk.subarray(from, end))
      yield begun instanceof LongLine ? begun.end() : begun.toString('utf8')
      begun = Buffer.alloc(0)
      from = end + 1
    }
    isAtStart = from === bytesRead && (from > 0 || isAtStart)
    begun = extended(begun, chunk.subarray(from))
  }
}

function extended(begun: Buffer | LongLine, bytes: Buffer): Buffer | LongLine {
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
