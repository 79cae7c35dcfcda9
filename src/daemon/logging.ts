import { closeSync, copyFileSync, fstatSync, ftruncateSync, openSync, renameSync, rmSync, writeSync } from 'node:fs'
import { copyFile, stat, truncate } from 'node:fs/promises'
import { devNull } from 'node:os'
import { errnoOf } from '../lib/errors.ts'
import { type LogFields, type Logger, redact } from '../lib/logger.ts'
import { loadLibc } from '../server/send/libc.ts'

interface LoggerOptions {
  level: 'debug' | 'info' | 'warn' | 'error'
  /** Takes each JSON line; stderr when there is none. */
  write?: ((line: string) => void) | undefined
  /** The file that stderr is, whose size is to be limited; undefined where stderr is something else. */
  file?: string | undefined
}

const stderr = 2

/** A logger of JSON lines: `level`, `time` (ISO 8601), the fields, `msg`. What looks like a secret is struck out. */
export async function createLogger({ level, write, file }: LoggerOptions): Promise<Logger> {
  const { pino } = (await import('pino')).default
  const options = {
    level,
    base: null,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
  }
  const log = pino(options, write === undefined ? createLogWriter(await sinkOf(file)) : { write })
  return {
    debug: (fields, message) => log.isLevelEnabled('debug') && log.debug(redacted(fields), redact(message)),
    info: (fields, message) => log.isLevelEnabled('info') && log.info(redacted(fields), redact(message)),
    warn: (fields, message) => log.warn(redacted(fields), redact(message)),
    error: (fields, message) => log.error(redacted(fields), redact(message)),
  }
}

async function sinkOf(file: string | undefined): Promise<LogSink> {
  if (file === undefined) return descriptorSink(stderr)
  const kernel = await loadLibc(process)
  try {
    return new LogFile(file, { redirect: kernel?.duplicate, shared: stderr })
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    return descriptorSink(stderr)
  }
}

/** Characters of one value, and of all values and names of one line: what clients and upstreams say may be long. */
const longestText = 4096
const longestRecord = 16 * 1024

interface Budget {
  left: number
}

function redacted(fields: LogFields, budget: Budget = { left: longestRecord }): LogFields {
  const safe: LogFields = {}
  for (const key of Object.keys(fields)) {
    budget.left -= key.length + 1
    if (budget.left <= 0) break
    safe[key] = redactedValue(fields[key], budget)
  }
  return safe
}

function redactedValue(value: unknown, budget: Budget): unknown {
  if (typeof value === 'string') return shortened(redact(value), budget)
  if (value instanceof Error) return shortened(redact(value.stack ?? value.message), budget)
  if (Array.isArray(value)) return redactedItems(value, budget)
  return typeof value === 'object' && value !== null ? redacted(value as LogFields, budget) : value
}

function redactedItems(values: readonly unknown[], budget: Budget): unknown[] {
  const safe: unknown[] = []
  for (const value of values) {
    budget.left -= 1
    if (budget.left <= 0) break
    safe.push(redactedValue(value, budget))
  }
  return safe
}

function shortened(text: string, budget: Budget): string {
  const most = Math.max(0, Math.min(longestText, budget.left))
  budget.left -= Math.min(most, text.length)
  return text.length <= most ? text : `${text.slice(0, most)}… (${text.length - most} more)`
}

/** Where the lines of a log go. */
interface LogSink {
  /** Writes what it can of `bytes` from a position on, and returns how many bytes; throws the system's error. */
  write(bytes: Uint8Array, from: number): number
}

interface LogWriter {
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
function descriptorSink(descriptor: number): LogSink {
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

/**
 * Keeps a log that programs append to below a size: what is beyond goes to `<file>.1`. The file is emptied, not replaced, for
 * a running mirror holds it open.
 */
export async function limitLog(file: string, mostBytes = 16 * 1024 * 1024): Promise<void> {
  try {
    if ((await stat(file)).size <= mostBytes) return
    await copyFile(file, `${file}.1`)
    await truncate(file)
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error
  }
}

interface LogFileOptions {
  /** The file holds at most so much, and `<file>.1`, which is older, as much again. */
  readonly mostBytes?: number
  /**
   * Makes the descriptor `to` mean what `from` means, as dup2 does. What others write to stderr follows the log then. Without it
   * the log is copied and emptied, so that stderr stays the same file.
   */
  readonly redirect?: ((from: number, to: number) => boolean) | undefined
  /** The descriptor that others write to, and that is this file: stderr. */
  readonly shared?: number | undefined
}

const megabyte = 1024 * 1024

/**
 * A log that is limited at every write: what does not fit begins a new file, and the full one becomes `<file>.1` in place of
 * the one before. Throws the system's error when it cannot be opened.
 */
export class LogFile implements LogSink {
  readonly #path: string
  readonly #mostBytes: number
  readonly #redirect: LogFileOptions['redirect']
  readonly #shared: number | undefined
  #descriptor: number
  /** Open only to be closed when the log is put aside: no other descriptor may be left then. */
  readonly #spare: number[] = []

  constructor(path: string, { mostBytes = 16 * megabyte, redirect, shared }: LogFileOptions = {}) {
    this.#path = path
    this.#mostBytes = mostBytes
    this.#redirect = redirect
    this.#shared = shared
    this.#descriptor = openSync(path, 'a', 0o600)
    this.#reserve()
  }

  /** Returns how many bytes were written; throws the system's error. */
  write(bytes: Uint8Array, from: number): number {
    // The log may have been removed by hand; what is written to it then is seen by nobody.
    const isRemoved = fstatSync(this.#descriptor).nlink === 0 && !this.#reopen()
    const { size } = fstatSync(this.#descriptor)
    if (size > 0 && size + bytes.length - from > this.#mostBytes) {
      if (isRemoved) ftruncateSync(this.#descriptor)
      else this.#putAside()
    }
    return writeSync(this.#descriptor, bytes, from)
  }

  close(): void {
    this.#releaseSpare()
    closeSync(this.#descriptor)
  }

  /** Goes on in the file that is at the path now, which somebody may have put there, or in a new one. */
  #reopen(): boolean {
    try {
      this.#take(openSync(this.#path, 'a', 0o600))
      return true
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
      return false
    }
  }

  #putAside(): void {
    this.#releaseSpare()
    if (this.#redirect === undefined) this.#copy()
    else this.#rename()
    this.#reserve()
  }

  #releaseSpare(): void {
    for (const descriptor of this.#spare.splice(0)) closeSync(descriptor)
  }

  /** As many as it takes to put the log aside: a new file has one descriptor, a copy has two. */
  #reserve(): void {
    const wanted = this.#redirect === undefined ? 2 : 1
    try {
      while (this.#spare.length < wanted) this.#spare.push(openSync(devNull, 'r'))
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
    }
  }

  #rename(): void {
    try {
      renameSync(this.#path, `${this.#path}.1`)
      this.#take(openSync(this.#path, 'ax', 0o600))
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
      this.#restore()
    }
  }

  /** Goes on in another file. */
  #take(descriptor: number): void {
    const before = this.#descriptor
    this.#descriptor = descriptor
    if (this.#shared !== undefined) this.#redirect?.(descriptor, this.#shared)
    closeSync(before)
  }

  /** No new file is to be had: the limit holds all the same. */
  #restore(): void {
    try {
      renameSync(`${this.#path}.1`, this.#path)
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
    }
    ftruncateSync(this.#descriptor)
  }

  #copy(): void {
    const older = `${this.#path}.1`
    try {
      // Its space may be all there is.
      rmSync(older, { force: true })
      copyFileSync(this.#path, older)
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
    }
    ftruncateSync(this.#descriptor)
  }
}
