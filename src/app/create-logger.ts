import { errnoOf } from '../lib/errors.ts'
import { type LogFields, type Logger, redact } from '../lib/logger.ts'
import { loadKernel } from '../server/send/sendfile.ts'
import { LogFile } from './log-file.ts'
import { createLogWriter, descriptorSink, type LogSink } from '../daemon/logging.ts'

export interface LoggerOptions {
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
  const kernel = await loadKernel(process)
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
