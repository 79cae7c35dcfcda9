import { type FileHandle, open, readdir, rm, stat } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { crc32 } from 'node:zlib'
import { createSystemError, getErrno } from '../lib/errors.ts'
import { ignoreMissing, makeFolder, pathExists, writeFileAtomic } from '../lib/fs.ts'

/** Is the content of one line: one commit, or in a checkpoint some entries of one repository. */
export interface LogLine {
  /** Numbers the commits from 1; in a checkpoint, the last commit that it includes. */
  readonly sequence: number
  /** Holds `<host>/<name>` of the repository. */
  readonly repository: string
  /** Holds JSON in ASCII. */
  readonly operations: string
}

/** Describes a part of the log that is lost. */
export interface LogDamage {
  readonly path: string
  /** Names the repository `<host>/<name>`, as far as the damaged line tells it. */
  readonly repository: string | undefined
  /** Holds the damaged line; empty for commits that are missing without a trace. */
  readonly bytes: Buffer
}

export interface LogReader {
  /** `path` names the file of the line. */
  onLine(line: LogLine, path: string): void
  onDamage(damage: LogDamage): void
  /** Is called after each chunk of the files. */
  pause(): Promise<void>
}

const chunkBytes = 1024 * 1024
/** Limits a line, bytes: more than any commit. */
const maxLineBytes = 64 * 1024 * 1024
/** Limits the bytes of segments before a checkpoint … */
const maxLogBytes = 64 * 1024 * 1024
/** … to this many times the bytes of the last checkpoint, and at least `minLogBytes`. */
const maxLogFactor = 4
const minLogBytes = 1024 * 1024
const [lineFeed, space, zero] = [0x0a, 0x20, 0x30]
/**
 * Is the name in lines that describe their file: the last one of a checkpoint, which holds the number of the lines before, and the first one
 * of a segment, which has it from the start. A segment without any line was cut off.
 */
const fileMark = '-'

/** Formats a line: CRC-32 of the rest, bytes of the rest, sequence, repository, operations. */
export function formatLine({ sequence, repository, operations }: LogLine): string {
  const text = `${sequence} ${repository} ${operations}`
  const rest = `${text.length} ${text}`
  return `${crc32(Buffer.from(rest, 'latin1')).toString(16).padStart(8, '0')} ${rest}\n`
}

/** Formats a line that is well formed, but not understood, as damage. Its operations are bytes in Latin-1. */
export function toDamage(path: string, line: LogLine): LogDamage {
  return { path, repository: line.repository, bytes: Buffer.from(formatLine(line).slice(0, -1), 'latin1') }
}

/** Parses the line at a position, and returns the position of its end; undefined when it is damaged. */
function parseLine(
  bytes: Buffer,
  from: number,
  to: number,
): { readonly line: LogLine; readonly end: number } | undefined {
  const digits = from + 9
  let [at, length] = [digits, 0]
  for (; at < to && bytes[at] !== space; at++) length = length * 10 + bytes[at]! - zero
  const end = at + 1 + length
  if (bytes[digits - 1] !== space || !(end <= to)) return undefined
  if (crc32(bytes.subarray(digits, end)) !== Number.parseInt(bytes.toString('latin1', from, from + 8), 16))
    return undefined
  const text = bytes.toString('latin1', at + 1, end)
  const first = text.indexOf(' ')
  const second = text.indexOf(' ', first + 1)
  const [sequence, repository] = [Number(text.slice(0, first)), text.slice(first + 1, second)]
  return { line: { sequence, repository, operations: text.slice(second + 1) }, end }
}

/**
 * Reads the lines of a file in chunks. A line whose line feed is damaged is still found by its length. Returns the position behind the last
 * line feed: a crash may leave a part of a line behind it, which was never acknowledged.
 */
async function readLines(path: string, reader: LogReader): Promise<number> {
  const onLine = (bytes: Buffer, start: number, to: number) => {
    for (let from = start; from < to;) {
      const parsed = parseLine(bytes, from, to)
      if (!parsed) {
        const damaged = Buffer.from(bytes.subarray(from, to))
        return reader.onDamage({ path, repository: guessRepository(damaged), bytes: damaged })
      }
      reader.onLine(parsed.line, path)
      from = parsed.end + 1
    }
  }
  const file = await open(path, 'r')
  try {
    const chunk = Buffer.allocUnsafeSlow(chunkBytes)
    let position = 0
    let started: Buffer[] = []
    let startedBytes = 0
    for (;;) {
      const { bytesRead } = await file.read(chunk, 0, chunkBytes, position)
      if (bytesRead === 0) break
      position += bytesRead
      let from = 0
      for (let end = chunk.indexOf(lineFeed); end !== -1 && end < bytesRead; end = chunk.indexOf(lineFeed, from)) {
        if (started.length === 0) onLine(chunk, from, end)
        else {
          const whole = Buffer.concat([...started, chunk.subarray(from, end)])
          onLine(whole, 0, whole.length)
        }
        started = []
        startedBytes = 0
        from = end + 1
      }
      started.push(Buffer.from(chunk.subarray(from, bytesRead)))
      startedBytes += bytesRead - from
      if (startedBytes > maxLineBytes) started = [started[0]!]
      await reader.pause()
    }
    let tail = Buffer.concat(started)
    const torn = startedBytes - tail.length
    // The line feeds of the last lines may be damaged, too. A line with nothing behind it is torn.
    const parseTail = () => parseLine(tail, 0, tail.length)
    for (let parsed = parseTail(); parsed && parsed.end < tail.length; parsed = parseTail()) {
      reader.onLine(parsed.line, path)
      tail = tail.subarray(parsed.end + 1)
    }
    return position - torn - tail.length
  } finally {
    await file.close()
  }
}

/** Finds the name of a repository in a damaged line. */
function guessRepository(bytes: Buffer): string | undefined {
  return /^[0-9a-f]{8} \d+ \d+ ([a-zA-Z0-9.:[\]_-]*(?:\/[a-z0-9._-]+)+) \[/.exec(bytes.toString('latin1', 0, 1024))?.[1]
}

interface LogFile {
  readonly path: string
  /** Is the first sequence of a segment, or the last one of a checkpoint. */
  readonly sequence: number
}

/**
 * Appends commits to segment files, and replaces old segments by a checkpoint. A folder holds at most one valid checkpoint
 * (`<sequence>.checkpoint`) and the segments after it (`<sequence>.log`), at least one from the start: a log without a segment has lost it.
 */
export class MetadataLog {
  readonly folder: string
  #segments: LogFile[] = []
  /** Resolves with the path of the current segment. It is open only during an append, so that its disk can be mounted read-only. */
  #current: Promise<string> | undefined
  /** Is the position behind the last line of the current segment. */
  #end = 0
  /** Is true when there may be bytes behind `#end`. */
  #hasTail = false
  /** Counts the bytes of all segments. */
  #bytes = 0
  #checkpointBytes = 0
  #checkpointPath: string | undefined

  /** Starts an empty log in this folder. */
  constructor(folder: string) {
    this.folder = folder
  }

  /** Is true when the segments have so many bytes that a checkpoint pays. */
  get isLong(): boolean {
    return this.#bytes > Math.max(minLogBytes, Math.min(maxLogBytes, this.#checkpointBytes * maxLogFactor))
  }

  /** Returns the bytes of the checkpoint on the disk; 0 without one. */
  async measureCheckpoint(): Promise<number> {
    const { checkpoint } = await listFiles(this.folder)
    return checkpoint ? (await stat(checkpoint.path)).size : 0
  }

  /**
   * Reads the log without changing it. Returns the sequence of the last commit. `isNew`: reports whether the store has no content; without a
   * log, all other stores have lost it. Throws the system's error when a file cannot be read.
   */
  async read(reader: LogReader, isNew: () => Promise<boolean>): Promise<number> {
    // List all at once: while a running mirror replaces the checkpoint, one of them is missing, and never just a part of the commits.
    const { checkpoint, segments } = await listFiles(this.folder)
    let [sequence, missing] = [checkpoint?.sequence ?? 0, 0]
    const pause = () => reader.pause()
    const onDamage = (damage: LogDamage) => {
      missing += 1
      reader.onDamage(damage)
    }
    const onMissing = (path: string) => onDamage({ path, repository: undefined, bytes: Buffer.alloc(0) })
    this.#checkpointPath = checkpoint?.path
    if (checkpoint) {
      let [lines, isComplete] = [0, false]
      const onLine = (line: LogLine, path: string) => {
        isComplete = line.repository === fileMark && Number(line.operations) === lines + missing
        lines += 1
        if (line.repository !== fileMark) reader.onLine(line, path)
      }
      this.#checkpointBytes = await readLines(checkpoint.path, { onLine, onDamage, pause })
      if (!isComplete && missing === 0) onMissing(checkpoint.path)
    }
    this.#segments = segments.filter((segment) => segment.sequence > sequence)
    missing = 0
    if (this.#segments.length === 0 && (checkpoint || !(await isNew()))) onMissing(this.#toPath(sequence + 1, 'log'))
    const onLine = (line: LogLine, path: string) => {
      const isStart = line.repository === fileMark
      if ((isStart ? line.sequence : line.sequence - 1) > sequence + missing) onMissing(path)
      sequence = line.sequence
      missing = 0
      if (!isStart) reader.onLine(line, path)
    }
    for (const { path } of this.#segments) {
      this.#end = await readLines(path, { onLine, onDamage, pause })
      if (this.#end === 0) onMissing(path)
      this.#bytes += this.#end
    }
    this.#hasTail = true
    return sequence + missing
  }

  /** Continues a log that was read up to this sequence: removes what a crash has left. Throws the system's error. */
  async continue(sequence: number): Promise<void> {
    await makeFolder(this.folder)
    const names = await readdir(this.folder)
    const kept = new Set(this.#segments.map(({ path }) => path))
    if (this.#checkpointPath !== undefined) kept.add(this.#checkpointPath)
    for (const name of names) if (!kept.has(join(this.folder, name))) await rm(join(this.folder, name), { force: true })
    const last = this.#segments.at(-1)
    if (last) this.#current = Promise.resolve(last.path)
    else await this.#openSegment(sequence + 1)
  }

  /** Appends lines whose first has this sequence; `isDurable` syncs them. Throws the system's error; then nothing is appended. */
  async append(text: Buffer, sequence: number, isDurable: boolean): Promise<void> {
    const file = await open(await this.#openSegment(sequence), 'r+')
    try {
      await this.#write(file, text)
      if (isDurable) await file.datasync()
    } catch (error) {
      await this.#dropTail(file)
      throw error
    } finally {
      await file.close()
    }
    this.#hasTail = false
    this.#end += text.length
    this.#bytes += text.length
  }

  /** Reports whether a file of the log was deleted from outside. */
  async isLost(): Promise<boolean> {
    const before = this.#listPaths()
    const names = new Set(await ignoreMissing(() => readdir(this.folder)))
    // A checkpoint may have replaced files meanwhile.
    const after = new Set(this.#listPaths())
    const missing = before.find((path) => after.has(path) && !names.has(basename(path)))
    return missing !== undefined && !(await pathExists(missing))
  }

  #listPaths(): string[] {
    const paths = this.#segments.map(({ path }) => path)
    return this.#checkpointPath === undefined ? paths : [this.#checkpointPath, ...paths]
  }

  /**
   * Writes a checkpoint that includes all commits up to `sequence`, and removes the segments before it. The next commit starts a new
   * segment. `pieces` yields whole lines; it may pause. Throws the system's error; then the log stays as it was.
   */
  async writeCheckpoint(sequence: number, pieces: AsyncIterable<string[]>): Promise<void> {
    this.#current = undefined
    await this.#openSegment(sequence + 1)
    const path = this.#toPath(sequence, 'checkpoint')
    let [bytes, lines] = [0, 0]
    const formatContent = async function* () {
      for await (const piece of pieces) {
        const text = Buffer.from(piece.join(''))
        bytes += text.length
        lines += piece.length
        yield text
      }
      yield Buffer.from(formatLine({ sequence, repository: fileMark, operations: String(lines) }))
    }
    await writeFileAtomic(path, formatContent())
    this.#checkpointBytes = bytes
    this.#checkpointPath = path
    // Forget the files before they are removed, for `isLost`.
    this.#segments = this.#segments.filter((segment) => segment.sequence > sequence)
    this.#bytes = this.#end
    const { checkpoints, segments } = await listFiles(this.folder)
    for (const file of checkpoints) if (file.sequence < sequence) await rm(file.path, { force: true })
    for (const file of segments) if (file.sequence <= sequence) await rm(file.path, { force: true })
  }

  /** Returns the path of the current segment. Creates it for a first commit with this sequence. */
  #openSegment(sequence: number): Promise<string> {
    this.#current ??= this.#createSegment(sequence).catch((error: unknown) => {
      this.#current = undefined
      throw error
    })
    return this.#current
  }

  async #createSegment(sequence: number): Promise<string> {
    const path = this.#toPath(sequence, 'log')
    const start = Buffer.from(formatLine({ sequence: sequence - 1, repository: fileMark, operations: '0' }))
    await writeFileAtomic(path, start)
    // A segment without a commit has the same name.
    this.#segments = [...this.#segments.filter((segment) => segment.sequence !== sequence), { path, sequence }]
    this.#end = start.length
    this.#bytes += start.length
    this.#hasTail = false
    return path
  }

  /** Writes bytes behind the last line. Leaves `#hasTail` true. */
  async #write(file: FileHandle, text: Buffer): Promise<void> {
    if (this.#hasTail) await file.truncate(this.#end)
    this.#hasTail = true
    for (let at = 0; at < text.length;) {
      const { bytesWritten } = await file.write(text, at, text.length - at, this.#end + at)
      if (bytesWritten === 0) throw createSystemError('EIO', 'write', 'the disk takes nothing')
      at += bytesWritten
    }
  }

  async #dropTail(file: FileHandle): Promise<void> {
    try {
      await file.truncate(this.#end)
      this.#hasTail = false
    } catch (error) {
      // The next append tries again, before it writes.
      if (getErrno(error) === undefined) throw error
    }
  }

  #toPath(sequence: number, type: 'log' | 'checkpoint'): string {
    return join(this.folder, `${String(sequence).padStart(16, '0')}.${type}`)
  }
}

/** Lists the files of a log: the latest checkpoint, and the segments in their order. */
async function listFiles(folder: string) {
  const names = ((await ignoreMissing(() => readdir(folder))) ?? []).toSorted()
  const ofType = (type: 'log' | 'checkpoint'): LogFile[] =>
    names
      .filter((name) => /^\d{16}$/.test(name.slice(0, 16)) && name.slice(16) === `.${type}`)
      .map((name) => ({ path: join(folder, name), sequence: Number(name.slice(0, 16)) }))
  return { checkpoint: ofType('checkpoint').at(-1), checkpoints: ofType('checkpoint'), segments: ofType('log') }
}

/** Stands for commits that are missing without a trace. */
const missingLine = Buffer.from('commits are missing')

/** Writes damaged lines to a file of their own. */
export async function writeDamage(path: string, damage: readonly LogDamage[]): Promise<void> {
  const lines = damage.map(({ bytes }) => (bytes.length > 0 ? bytes : missingLine))
  await writeFileAtomic(
    path,
    lines.flatMap((line) => [line, Buffer.from('\n')]),
  )
}

/** Counts the lines of a file from `writeDamage` by their repository, `<host>/<name>`; undefined for a line that does not tell it. */
export async function countDamagedLines(path: string): Promise<Map<string | undefined, number>> {
  const counts = new Map<string | undefined, number>()
  const onRepository = ({ repository }: Pick<LogDamage, 'repository'>) =>
    void counts.set(repository, (counts.get(repository) ?? 0) + 1)
  await readLines(path, { onLine: onRepository, onDamage: onRepository, pause: () => Promise.resolve() })
  return counts
}
