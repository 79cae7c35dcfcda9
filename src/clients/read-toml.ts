import { parse, type JsonMap } from '@iarna/toml'
import { MirrorError, exitCode } from '../lib/errors.ts'

/** Parses a user's TOML, which may begin with a byte order mark. Throws a MirrorError (usage) that names line and column. */
export function readToml(path: string, text: string): JsonMap {
  try {
    // The parser takes a carriage return for a control character where a comment ends.
    return parse(text.replace(/^\uFEFF/, '').replaceAll('\r\n', '\n'))
  } catch (cause) {
    if (!isTomlError(cause)) throw cause
    const why = cause.message.replace(/ at row \d+[\s\S]*$/, '')
    throw new MirrorError(`${path}:${cause.line + 1}:${cause.col + 1}: this is no TOML, so it is left alone: ${why}.`, {
      exit: exitCode.usage,
      hints: [`mend ${path}, and try again`],
      cause,
    })
  }
}

/** Counted from 0. */
function isTomlError(error: unknown): error is Error & { line: number; col: number } {
  return error instanceof Error && error.name === 'TomlError' && 'line' in error && 'col' in error
}

/** A table, whoever wrote what is there; undefined for anything else. */
export function tableOf(value: unknown): JsonMap | undefined {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Date)
    ? (value as JsonMap)
    : undefined
}

/** The tables of an array of tables; none for anything else. */
export function tablesOf(value: unknown): JsonMap[] {
  return Array.isArray(value) ? value.map(tableOf).filter((one) => one !== undefined) : []
}

/** The texts of an array; none for anything else. */
export function stringsOf(value: unknown): string[] {
  return Array.isArray(value) ? value.filter((one) => typeof one === 'string') : []
}
