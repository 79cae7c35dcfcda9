import { open, type FileHandle } from 'node:fs/promises'
import { StringDecoder } from 'node:string_decoder'
import type { Clock } from '../lib/clock.ts'

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
    let position = await startOfLast(file, lines)
    let rest = ''
    const decoder = new StringDecoder('utf8')
    const buffer = Buffer.alloc(blockBytes)
    for (;;) {
      const { bytesRead } = await file.read(buffer, 0, blockBytes, position)
      if (bytesRead > 0) {
        position += bytesRead
        const parts = (rest + decoder.write(buffer.subarray(0, bytesRead))).split('\n')
        rest = parts.pop()!
        for (const line of parts) write(line)
        continue
      }
      if (!follow || signal.aborted) break
      await clock.sleep(lookMs, signal).catch(() => {})
      // The log was put aside and begins anew.
      if ((await file.stat()).size < position) position = 0
    }
    if (rest !== '') write(rest)
  } finally {
    await file.close()
  }
}

/** Where the last `lines` lines begin. */
async function startOfLast(file: FileHandle, lines: number): Promise<number> {
  let end = (await file.stat()).size
  // The line end at the very end begins no line.
  let found = -1
  const buffer = Buffer.alloc(blockBytes)
  while (end > 0) {
    const start = Math.max(0, end - blockBytes)
    const { bytesRead } = await file.read(buffer, 0, end - start, start)
    for (let at = bytesRead - 1; at >= 0; at--) {
      if (buffer[at] === 10) found += 1
      if (found === lines) return start + at + 1
    }
    end = start
  }
  return 0
}
