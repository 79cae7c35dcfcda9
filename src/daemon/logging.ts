import { writeSync } from 'node:fs'
import { errnoOf } from '../lib/errors.ts'

/** Where the lines of a log go. */
export interface LogSink {
  /** Writes what it can of `bytes` from a position on, and returns how many bytes; throws the system's error. */
  write(bytes: Uint8Array, from: number): number
}

export interface LogWriter {
  /** `line`: with its end. */
  write(line: string): void
}

/** Characters that may wait for a slow reader; the oldest lines beyond that are dropped. */
const mostWaiting = 1024 * 1024
/** Characters of a line; the logger's own are shorter. */
const longestWrittenLine = 64 * 1024
/** Characters that are written in one go. */
const batchLength = 64 * 1024
const retryMs = 10
/** How long the last lines wait for a slow reader when the process ends. */
const lastMs = 1000

/** A descriptor as it is. */
export function descriptorSink(descriptor: number): LogSink {
  // Node makes a pipe non-blocking when it opens it: a reader that stands still must not stop this process.
  if (descriptor === 2) void process.stderr
  return { write: (bytes, from) => writeSync(descriptor, bytes, from) }
}

/** What is being written. */
interface Batch {
  readonly bytes: Uint8Array
  /** Lines of the log in it, after `extra` others. */
  readonly lines: number
  /** The end of a line that was cut, and the line that reports lost ones. */
  readonly extra: number
  /** It begins with the end of a line that was cut. */
  readonly endsCutLine: boolean
  /** How many lost lines it reports. */
  readonly lost: number
  /** Bytes that were written. */
  at: number
}

/**
 * Writes lines, those of one turn of the event loop in one go: with thousands of requests a second, a system call for each line
 * is most of what it costs. Synchronous all the same: the last words before an end are the ones that matter. Lines that cannot
 * be written, or wait for too long, are lost and counted; a later line says how many. It never throws.
 */
export function createLogWriter(target: LogSink | number): LogWriter {
  const sink = typeof target === 'number' ? descriptorSink(target) : target
  let lines: string[] = []
  let waiting = 0
  let batch: Batch | undefined
  let lost = 0
  let reason = ''
  let isScheduled = false
  let isBlocked = false
  /** The last write has left a line without its end. */
  let isCut = false

  const lose = (count: number, why: string) => {
    lost += count
    reason = why
  }

  const nextBatch = (): Batch | undefined => {
    if (lines.length === 0) return undefined
    let length = 0
    let count = 0
    while (count < lines.length && (count === 0 || length + lines[count]!.length <= batchLength))
      length += lines[count++]!.length
    const taken = lines.splice(0, count)
    waiting -= length
    const head = `${isCut ? '\n' : ''}${lost === 0 ? '' : lossLine(lost, reason)}`
    const extra = (isCut ? 1 : 0) + (lost === 0 ? 0 : 1)
    const next = { bytes: Buffer.from(head + taken.join('')), lines: count, extra, endsCutLine: isCut, lost, at: 0 }
    lost = 0
    isCut = false
    return next
  }

  /** The rest of the batch, and all that waits behind it, is lost. */
  const giveUp = ({ bytes, at, extra, ...cut }: Batch, why: string) => {
    const written = newlinesIn(bytes.subarray(0, at))
    lose(cut.lines - Math.max(0, written - extra), why)
    if (written < extra) lose(cut.lost, why)
    lose(lines.length, why)
    isCut = at === 0 ? cut.endsCutLine : bytes[at - 1] !== newline
    lines = []
    waiting = 0
  }

  const flush = () => {
    isScheduled = false
    isBlocked = false
    for (batch ??= nextBatch(); batch !== undefined; batch = nextBatch()) {
      try {
        while (batch.at < batch.bytes.length) batch.at += sink.write(batch.bytes, batch.at)
      } catch (error) {
        const code = errnoOf(error)
        if (code === 'EAGAIN') return block()
        giveUp(batch, code ?? String(error))
      }
    }
  }

  const block = () => {
    isBlocked = true
    setTimeout(flush, retryMs).unref()
  }

  process.once('exit', () => {
    for (const end = performance.now() + lastMs; ;) {
      flush()
      if (!isBlocked || performance.now() > end) return
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, retryMs)
    }
  })

  return {
    write(line) {
      const text = line.length > longestWrittenLine ? `${line.slice(0, longestWrittenLine)}…\n` : line
      lines.push(text)
      waiting += text.length
      if (waiting > mostWaiting && !isBlocked) flush()
      while (waiting > mostWaiting) {
        waiting -= lines.shift()!.length
        lose(1, 'EAGAIN')
      }
      if (isScheduled || isBlocked) return
      isScheduled = true
      setImmediate(flush)
    },
  }
}

const newline = 10

function newlinesIn(bytes: Uint8Array): number {
  let found = 0
  for (const byte of bytes) if (byte === newline) found += 1
  return found
}

/** As the logger's own lines are. */
function lossLine(lost: number, reason: string): string {
  const fields = { level: 'warn', time: new Date().toISOString(), lost, reason }
  return `${JSON.stringify({ ...fields, msg: 'lines of the log were lost' })}\n`
}
