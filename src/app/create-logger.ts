import type { LogFields, Logger } from '../lib/logger.ts'
import { redact } from '../lib/redact.ts'
import { createLogWriter } from './log-writer.ts'

export interface LoggerOptions {
  level: 'debug' | 'info' | 'warn' | 'error'
  /** Takes each JSON line; stderr when there is none. */
  write?: ((line: string) => void) | undefined
}

/** A logger of JSON lines: `level`, `time` (ISO 8601), the fields, `msg`. What looks like a secret is struck out. */
export async function createLogger({ level, write }: LoggerOptions): Promise<Logger> {
  const { pino } = await import('pino')
  const options = {
    level,
    base: null,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
  }
  const log = pino(options, write === undefined ? createLogWriter(2) : { write })
  return {
    debug: (fields, message) => log.isLevelEnabled('debug') && log.debug(redacted(fields), redact(message)),
    info: (fields, message) => log.isLevelEnabled('info') && log.info(redacted(fields), redact(message)),
    warn: (fields, message) => log.warn(redacted(fields), redact(message)),
    error: (fields, message) => log.error(redacted(fields), redact(message)),
  }
}

function redacted(fields: LogFields): LogFields {
  const safe: LogFields = {}
  for (const key of Object.keys(fields)) safe[key] = redactedValue(fields[key])
  return safe
}

function redactedValue(value: unknown): unknown {
  if (typeof value === 'string') return redact(value)
  if (value instanceof Error) return redact(value.stack ?? value.message)
  if (Array.isArray(value)) return value.map(redactedValue)
  return typeof value === 'object' && value !== null ? redacted(value as LogFields) : value
}
