import { open, type FileHandle } from 'node:fs/promises'
import { StringDecoder } from 'node:string_decoder'
import type { Clock } from '../lib/clock.ts'
import { errnoOf } from '../lib/errors.ts'

export interface LogsRequest {
  logFile: string
  /** How many of the last lines to begin with. */
  lines: number
  /** Goes on with what comes, until the signal aborts. */
  follow: boolean
  signal: AbortSignal
  clock: Clock
  /** Takes each line, without its end. */
  write: (line: string) => void
}

const blockBytes = 64 * 1024
const lookMs = 250

/** Reads the end of the log, and what comes after it. Throws ENOENT when there is none. */
export async function readLogs({ logFile, lines, follow, signal, clock, write }: LogsRequest): Promise<void> {
  const file = await open(logFile, 'r')
  try {
    const start = await startOfLast(file, lines)
    let { position } = start
    const reader = new LineReader(write)
    // Most of it may have been put aside a moment ago.
    if (start.missing > 0) await readPrevious(logFile, start.missing, reader)
    for (;;) {
      position = await reader.read(file, position)
      if (!follow || signal.aborted) break
      await clock.sleep(lookMs, signal).catch(() => {})
      if ((await file.stat()).size >= position) continue
      // The log was put aside and begins again: what came since the last look lies there.
      await readRest(logFile, position, reader)
      position = 0
    }
    reader.end()
  } finally {
    await file.close()
  }
}

/** Gathers lines from blocks. */
class LineReader {
  readonly #write: (line: string) => void
  readonly #buffer = Buffer.alloc(blockBytes)
  readonly #decoder = new StringDecoder('utf8')
  #rest = ''

  constructor(write: (line: string) => void) {
    this.#write = write
  }

  /** Reads to the end of the file as it is now; returns where that is. */
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

/** The last lines of the log that was put aside before this one; nothing when there is none. */
async function readPrevious(logFile: string, lines: number, reader: LineReader): Promise<void> {
  await withPrevious(logFile, async (file) => {
    await reader.read(file, (await startOfLast(file, lines)).position)
    reader.end()
  })
}

/** What the log that was put aside holds beyond a position. */
async function readRest(logFile: string, from: number, reader: LineReader): Promise<void> {
  await withPrevious(logFile, async (file) => void (await reader.read(file, from)))
}

async function withPrevious(logFile: string, use: (file: FileHandle) => Promise<void>): Promise<void> {
  let file: FileHandle
  try {
    file = await open(`${logFile}.1`, 'r')
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return
    throw error
  }
  try {
    await use(file)
  } finally {
    await file.close()
  }
}

/** Where the last `lines` lines begin, and how many the file lacks. */
async function startOfLast(file: FileHandle, lines: number): Promise<{ position: number; missing: number }> {
  let end = (await file.stat()).size
  // The line end at the very end begins no line.
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
