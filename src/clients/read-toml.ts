import { stringify, type JsonMap } from '@iarna/toml'
import { TomlError, parse } from 'smol-toml'
import { MirrorError, exitCode } from '../lib/errors.ts'

/** A table of a TOML file, as plain JavaScript. */
export type TomlTable = Record<string, unknown>

/**
 * Parses a user's TOML, which may begin with a byte order mark, as strictly as the programs that read it: a carriage return counts
 * only before a newline. Throws a MirrorError (usage) that names line and column.
 */
export function readToml(path: string, text: string): TomlTable {
  const bare = text.search(/\r(?!\n)/)
  const refuse = (line: number, column: number, why: string, cause?: Error): never => {
    throw new MirrorError(`${path}:${line}:${column}: this is not valid TOML, so it is left alone: ${why}.`, {
      exit: exitCode.usage,
      hints: [`fix ${path}, then run the command again`],
      cause,
    })
  }
  if (bare !== -1) {
    const lines = text.slice(0, bare).split('\n')
    refuse(lines.length, lines.at(-1)!.length + 1, 'a carriage return without a newline')
  }
  try {
    // The parser's tables have no prototype, and dates are a class of its own; comparisons want plain values.
    return structuredClone(parse(text)) as TomlTable
  } catch (error) {
    if (!(error instanceof TomlError)) throw error
    const why = error.message.split('\n', 1)[0]!.replace(/^Invalid TOML document: /, '')
    return refuse(error.line, error.column, why, error)
  }
}

/** Undefined for text that is not valid TOML. */
export function tryToml(text: string): TomlTable | undefined {
  try {
    return readToml('', text)
  } catch (error) {
    if (error instanceof MirrorError) return undefined
    throw error
  }
}

/**
 * Ends with a newline. Another library writes than the one that reads, so that a fault of either shows when what was written is
 * read again.
 */
export function renderToml(table: TomlTable): string {
  return stringify(table as JsonMap)
}

/** A table, whoever wrote what is there; undefined for anything else. */
export function tableOf(value: unknown): TomlTable | undefined {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Date)
    ? (value as TomlTable)
    : undefined
}

/** The tables of an array of tables; none for anything else. */
export function tablesOf(value: unknown): TomlTable[] {
  return Array.isArray(value) ? value.map(tableOf).filter((one) => one !== undefined) : []
}

/** The texts of an array; none for anything else. */
export function stringsOf(value: unknown): string[] {
  return Array.isArray(value) ? value.filter((one) => typeof one === 'string') : []
}
