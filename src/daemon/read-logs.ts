import { type FileHandle, open } from 'node:fs/promises'
import { StringDecoder } from 'node:string_decoder'
import { getErrno } from '../lib/errors.ts'
import type { Clock } from '../lib/time.ts'

interface LogsRequest {
  logFile: string
  /** Counts the last lines to begin with. */
  lines: number
  /** Is true to continue with new lines until the signal aborts. */
  follow: boolean
  signal: AbortSignal
  clock: Clock
  /** Takes each line, without its end. */
  write: (line: string) => void
}

const blockBytes = 64 * 1024
const pollMs = 250

/** Reads the end of the log, then new lines. Throws ENOENT when there is no log. */
export async function readLogs({ logFile, lines, follow, signal, clock, write }: LogsRequest): Promise<void> {
  let file = await open(logFile, 'r')
  try {
    const start = await findStartOfLast(file, lines)
    let { position } = start
    const reader = new LineReader(write)
    // Most of the lines may be in the rotated file.
    if (start.missing > 0) await readPrevious(logFile, file, start.missing, reader)
    for (;;) {
      position = await reader.read(file, position)
      if (!follow || signal.aborted) break
      await clock.sleep(pollMs, signal).catch(() => {})
      const next = await openNext(logFile, file)
      if (next !== undefined) {
        // The rotated file gets no more lines.
        await reader.read(file, position)
        reader.end()
        await readBetween(logFile, file, next, reader)
        await file.close()
        file = next
        position = 0
      } else if ((await file.stat()).size < position) {
        // The log was copied and truncated: lines since the last poll are in the copy.
        await readRest(logFile, position, reader)
        position = 0
      }
    }
    reader.end()
  } finally {
    await file.close()
  }
}

/** Opens the file that has replaced the log; undefined while the open one is current. */
async function openNext(logFile: string, file: FileHandle): Promise<FileHandle | undefined> {
  const next = await openIfThere(logFile)
  if (next === undefined || !(await isSame(next, file))) return next
  await next.close()
  return undefined
}

/** Reads all of a file in between, when the log was rotated more than once since the last poll. */
async function readBetween(logFile: string, before: FileHandle, next: FileHandle, reader: LineReader): Promise<void> {
  await withPrevious(logFile, async (between) => {
    if ((await isSame(between, before)) || (await isSame(between, next))) return
    await reader.read(between, 0)
    reader.end()
  })
}

async function isSame(one: FileHandle, other: FileHandle): Promise<boolean> {
  const [a, b] = [await one.stat(), await other.stat()]
  return a.ino === b.ino && a.dev === b.dev
}

/** Joins blocks into lines. */
class LineReader {
  readonly #write: (line: string) => void
  readonly #buffer = Buffer.alloc(blockBytes)
  readonly #decoder = new StringDecoder('utf8')
  #rest = ''

  constructor(write: (line: string) => void) {
    this.#write = write
  }

  /** Reads to the current end of the file, and returns that position. */
  async read(file: FileHandle, from: number): Promise<number> {
    for (let position = from; ;) {
      const { bytesRead } = await file.read(this.#buffer, 0, blockBytes, position)
      if (bytesRead === 0) return position
      position += bytesRead
      const parts = (this.#rest + this.#decoder.write(this.#buffer.subarray(0, bytesRead))).split('\n')
      this.#rest = parts.pop()!
      for (const line of parts) this.#write(line)
    }
  }

  end(): void {
    if (this.#rest !== '') this.#write(this.#rest)
    this.#rest = ''
  }
}

/** Reads the last lines of the rotated log, if there is one. */
async function readPrevious(logFile: string, current: FileHandle, lines: number, reader: LineReader): Promise<void> {
  await withPrevious(logFile, async (file) => {
    if (await isSame(file, current)) return
    await reader.read(file, (await findStartOfLast(file, lines)).position)
    reader.end()
  })
}

/** Reads the rotated log from a position on. */
async function readRest(logFile: string, from: number, reader: LineReader): Promise<void> {
  await withPrevious(logFile, async (file) => void (await reader.read(file, from)))
}

async function withPrevious(logFile: string, use: (file: FileHandle) => Promise<void>): Promise<void> {
  const file = await openIfThere(`${logFile}.1`)
  if (file === undefined) return
  try {
    await use(file)
  } finally {
    await file.close()
  }
}

async function openIfThere(path: string): Promise<FileHandle | undefined> {
  try {
    return await open(path, 'r')
  } catch (error) {
    if (getErrno(error) === 'ENOENT') return undefined
    throw error
  }
}

/** Finds the position of the last `lines` lines, and the number of lines that the file lacks. */
async function findStartOfLast(file: FileHandle, lines: number): Promise<{ position: number; missing: number }> {
  let end = (await file.stat()).size
  // Do not count the line end at the end of the file.
  let found = -1
  const buffer = Buffer.alloc(blockBytes)
  while (end > 0) {
    const start = Math.max(0, end - blockBytes)
    const { bytesRead } = await file.read(buffer, 0, end - start, start)
    for (let at = bytesRead - 1; at >= 0; at--) {
      if (buffer[at] === 10) found += 1
      if (found === lines) return { position: start + at + 1, missing: 0 }
    }
    end = start
  }
  return { position: 0, missing: Math.max(0, lines - (found + 1)) }
}
