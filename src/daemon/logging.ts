import { closeSync, copyFileSync, fstatSync, ftruncateSync, openSync, renameSync, rmSync, writeSync } from 'node:fs'
import { copyFile, stat, truncate } from 'node:fs/promises'
import { devNull } from 'node:os'
import { getErrno } from '../lib/errors.ts'
import { createJsonLogger, type Logger, type LogLevel } from '../lib/logger.ts'
import { loadLibc } from '../server/send/sendfile.ts'

interface LoggerOptions {
  level: LogLevel
  /** Takes each JSON line; default: stderr. */
  write?: ((line: string) => void) | undefined
  /** Names the file behind stderr, whose size is limited; undefined where stderr is no log file. */
  file?: string | undefined
}

const stderr = 2

/** Creates the logger of a server; see `createJsonLogger`. */
export async function createLogger({ level, write, file }: LoggerOptions): Promise<Logger> {
  return createJsonLogger(level, write === undefined ? createLogWriter(await openSink(file)) : { write })
}

async function openSink(file: string | undefined): Promise<LogSink> {
  if (file === undefined) return createDescriptorSink(stderr)
  const libc = await loadLibc(process)
  try {
    return new LogFile(file, { redirect: libc?.duplicate, shared: stderr })
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    return createDescriptorSink(stderr)
  }
}

/** Describes the target of a log's lines. */
interface LogSink {
  /** Writes `bytes` from a position on, maybe not all, and returns the number of bytes written. Throws the system's error. */
  write(bytes: Uint8Array, from: number): number
}

/** Limits the characters that may wait for a slow reader; the oldest lines beyond that are dropped. */
const maxWaitingLength = 1024 * 1024
/** Limits the characters of a line; the logger's own are shorter. */
const maxLineLength = 64 * 1024
/** Limits the characters of one write. */
const batchLength = 64 * 1024
const retryMs = 10
/** Sets the time that the last lines wait for a slow reader when the process ends. */
const exitFlushMs = 1000

/** Creates a sink that writes to a descriptor. */
function createDescriptorSink(descriptor: number): LogSink {
  // Node makes a pipe non-blocking when it opens the stream: a stalled reader must not block this process.
  if (descriptor === 2) void process.stderr
  return { write: (bytes, from) => writeSync(descriptor, bytes, from) }
}

/** Holds the lines of one write. */
interface Batch {
  readonly bytes: Uint8Array
  /** Counts the log lines in it, after `extra` others. */
  readonly lines: number
  /** Counts the other lines at its start: the end of a cut line, and the report of lost lines. */
  readonly extra: number
  /** Is true when it begins with the end of a cut line. */
  readonly endsCutLine: boolean
  /** Counts the lost lines that it reports. */
  readonly lost: number
  /** Counts the bytes written. */
  at: number
}

/**
 * Creates a writer that writes the lines of one turn of the event loop in one go: with thousands of requests a second, a system call
 * for each line is most of the cost. It is synchronous, because the last lines before an end matter most. Lines that cannot be
 * written, or wait too long, are dropped and counted; a later line reports the count. It never throws.
 */
export function createLogWriter(target: LogSink | number) {
  const sink = typeof target === 'number' ? createDescriptorSink(target) : target
  let lines: string[] = []
  let waiting = 0
  let batch: Batch | undefined
  let lost = 0
  let reason = ''
  let isScheduled = false
  let isBlocked = false
  /** Is true when the last write left a line without its end. */
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
    const head = `${isCut ? '\n' : ''}${lost === 0 ? '' : formatLoss(lost, reason)}`
    const extra = (isCut ? 1 : 0) + (lost === 0 ? 0 : 1)
    const next = { bytes: Buffer.from(head + taken.join('')), lines: count, extra, endsCutLine: isCut, lost, at: 0 }
    lost = 0
    isCut = false
    return next
  }

  /** Drops the rest of the batch and all waiting lines. */
  const giveUp = ({ bytes, at, extra, ...cut }: Batch, why: string) => {
    const written = countNewlines(bytes.subarray(0, at))
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
        const code = getErrno(error)
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
    for (const end = performance.now() + exitFlushMs; ;) {
      flush()
      if (!isBlocked || performance.now() > end) return
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, retryMs)
    }
  })

  return {
    /** Queues a line, which includes its end. */
    write(line: string): void {
      const text = line.length > maxLineLength ? `${line.slice(0, maxLineLength)}…\n` : line
      lines.push(text)
      waiting += text.length
      if (waiting > maxWaitingLength && !isBlocked) flush()
      while (waiting > maxWaitingLength) {
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

function countNewlines(bytes: Uint8Array): number {
  let found = 0
  for (const byte of bytes) if (byte === newline) found += 1
  return found
}

/** Formats the report of lost lines as the logger formats its lines. */
function formatLoss(lost: number, reason: string): string {
  const fields = { level: 'warn', time: new Date().toISOString(), lost, reason }
  return `${JSON.stringify({ ...fields, msg: 'lines of the log were lost' })}\n`
}

/**
 * Rotates a log that is larger than `maxBytes`: copies it to `<file>.1` and truncates it. The file is not replaced, because a
 * running mirror holds it open.
 */
export async function limitLog(file: string, maxBytes = 16 * 1024 * 1024): Promise<void> {
  try {
    if ((await stat(file)).size <= maxBytes) return
    await copyFile(file, `${file}.1`)
    await truncate(file)
  } catch (error) {
    if (getErrno(error) !== 'ENOENT') throw error
  }
}

interface LogFileOptions {
  /** Limits the size of the file, bytes; the older `<file>.1` may be as large. */
  readonly maxBytes?: number
  /**
   * Makes the descriptor `to` refer to the file of `from`, as dup2 does, so that other output to stderr follows the log. Without it
   * the log is copied and truncated, so that stderr stays the same file.
   */
  readonly redirect?: ((from: number, to: number) => boolean) | undefined
  /** Holds another descriptor of this file, to which other code writes: stderr. */
  readonly shared?: number | undefined
}

const megabyte = 1024 * 1024

/**
 * Writes to a log file that is rotated before a write that does not fit: the full file becomes `<file>.1` and replaces the earlier
 * one. The constructor throws the system's error.
 */
export class LogFile implements LogSink {
  readonly #path: string
  readonly #maxBytes: number
  readonly #redirect: LogFileOptions['redirect']
  readonly #shared: number | undefined
  #descriptor: number
  /** Holds reserved descriptors, closed for a rotation: no other one may be free then. */
  readonly #spare: number[] = []

  constructor(path: string, { maxBytes = 16 * megabyte, redirect, shared }: LogFileOptions = {}) {
    this.#path = path
    this.#maxBytes = maxBytes
    this.#redirect = redirect
    this.#shared = shared
    this.#descriptor = openSync(path, 'a', 0o600)
    this.#reserve()
  }

  /** Returns the number of bytes written. Throws the system's error. */
  write(bytes: Uint8Array, from: number): number {
    // The log may have been removed by hand; nothing can read what is written to it then.
    const isRemoved = fstatSync(this.#descriptor).nlink === 0 && !this.#reopen()
    const { size } = fstatSync(this.#descriptor)
    if (size > 0 && size + bytes.length - from > this.#maxBytes) {
      if (isRemoved) ftruncateSync(this.#descriptor)
      else this.#rotate()
    }
    return writeSync(this.#descriptor, bytes, from)
  }

  close(): void {
    this.#releaseSpare()
    closeSync(this.#descriptor)
  }

  /** Switches to the file that is at the path now, or to a new one. */
  #reopen(): boolean {
    try {
      this.#switchTo(openSync(this.#path, 'a', 0o600))
      return true
    } catch (error) {
      if (getErrno(error) === undefined) throw error
      return false
    }
  }

  #rotate(): void {
    this.#releaseSpare()
    if (this.#redirect === undefined) this.#copy()
    else this.#rename()
    this.#reserve()
  }

  #releaseSpare(): void {
    for (const descriptor of this.#spare.splice(0)) closeSync(descriptor)
  }

  /** Reserves the descriptors of a rotation: one for a new file, two for a copy. */
  #reserve(): void {
    const wanted = this.#redirect === undefined ? 2 : 1
    try {
      while (this.#spare.length < wanted) this.#spare.push(openSync(devNull, 'r'))
    } catch (error) {
      if (getErrno(error) === undefined) throw error
    }
  }

  #rename(): void {
    try {
      renameSync(this.#path, `${this.#path}.1`)
      this.#switchTo(openSync(this.#path, 'ax', 0o600))
    } catch (error) {
      if (getErrno(error) === undefined) throw error
      this.#restore()
    }
  }

  /** Switches to another file. */
  #switchTo(descriptor: number): void {
    const before = this.#descriptor
    this.#descriptor = descriptor
    if (this.#shared !== undefined) this.#redirect?.(descriptor, this.#shared)
    closeSync(before)
  }

  /** Keeps the limit where no new file can be opened. */
  #restore(): void {
    try {
      renameSync(`${this.#path}.1`, this.#path)
    } catch (error) {
      if (getErrno(error) === undefined) throw error
    }
    ftruncateSync(this.#descriptor)
  }

  #copy(): void {
    const older = `${this.#path}.1`
    try {
      // The disk may have no space but that of the older file.
      rmSync(older, { force: true })
      copyFileSync(this.#path, older)
    } catch (error) {
      if (getErrno(error) === undefined) throw error
    }
    ftruncateSync(this.#descriptor)
  }
}
