import { isDeepStrictEqual } from 'node:util'
import { type JsonMap, stringify } from '@iarna/toml'
import { parse, TomlError } from 'smol-toml'
import { exitCode, MirrorError } from '../../lib/errors.ts'

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

/** A stretch of a TOML file: the line that names a table, and the statements up to the next one. */
export interface TomlSection {
  /** With its line end; undefined for the statements before the first table. */
  readonly heading: string | undefined
  /** Keys with their values, comments and empty lines, each with its line ends: a list of several lines is one statement. */
  readonly statements: readonly string[]
}

/** Cuts a TOML text into sections. Joined again they are the same text, to the byte. */
export function tomlSections(text: string): TomlSection[] {
  const sections: { heading: string | undefined; statements: string[] }[] = [{ heading: undefined, statements: [] }]
  for (const statement of tomlStatements(text)) {
    if (/^\uFEFF?[ \t]*\[/.test(statement)) sections.push({ heading: statement, statements: [] })
    else sections.at(-1)!.statements.push(statement)
  }
  return sections
}

export function joinSections(sections: readonly TomlSection[]): string {
  return sections.flatMap(({ heading, statements }) => [heading ?? '', ...statements]).join('')
}

/** The keys that lead to a section's table; none for the statements before the first table; undefined for what is no heading. */
export function sectionPath({ heading }: TomlSection): readonly string[] | undefined {
  return heading === undefined ? [] : pathIn(tryToml(heading))
}

/** The keys that a statement sets, from its section on; undefined for a comment or an empty line. */
export function statementPath(statement: string): readonly string[] | undefined {
  const [key] = keyAndValue(statement) ?? []
  return key === undefined ? undefined : pathIn(tryToml(`${key}= 0`))
}

/**
 * The text with one value set; all else stays to the byte. Undefined where that cannot be done without rewriting more: the
 * result is read again, and has to mean exactly what was intended.
 */
export function setTomlValue(text: string, path: readonly string[], value: string): string | undefined {
  const before = tryToml(text)
  if (before === undefined) return undefined
  const wanted = withValue(before, path, value)
  if (wanted === undefined) return undefined
  const holder = path.slice(0, -1)
  for (const attempt of [replaced, underHeading, besideDotted, inSectionOfItsOwn, inInlineTable]) {
    const after = attempt(text, holder, path.at(-1)!, value)
    if (after !== undefined && isDeepStrictEqual(tryToml(after), wanted)) return after
  }
  return undefined
}

/** The line end of a text, or of the statement that a new one is put beside. */
export function lineEndIn(text: string, beside = ''): string {
  return /\r?\n$/.exec(beside)?.[0] ?? /\r?\n/.exec(text)?.[0] ?? '\n'
}

/** A part of a text with a line end, so that something can follow it. */
export function withLineEnd(part: string, text = part): string {
  return part === '' || part === '\uFEFF' || part.endsWith('\n') ? part : part + lineEndIn(text)
}

/** A table of its own at the end of a text, in the text's line ends. */
export function appendTable(text: string, table: TomlTable): string {
  const end = lineEndIn(text)
  const start = withLineEnd(text)
  // A blank line sets it apart from what somebody has written above it.
  return start + (start === '' || start === '\uFEFF' ? '' : end) + renderToml(table).replaceAll('\n', end)
}

function tomlStatements(text: string): string[] {
  const statements: string[] = []
  let start = 0
  let depth = 0
  for (let at = 0; at < text.length; at += 1) {
    const char = text[at]!
    if (char === '#') at = endOfLine(text, at) - 1
    else if (char === '"' || char === "'") at = endOfString(text, at) - 1
    else if (char === '[' || char === '{') depth += 1
    else if (char === ']' || char === '}') depth -= 1
    else if (char === '\n' && depth <= 0) {
      statements.push(text.slice(start, at + 1))
      start = at + 1
      depth = 0
    }
  }
  return start < text.length ? [...statements, text.slice(start)] : statements
}

/** Where the newline that ends a comment is. */
function endOfLine(text: string, from: number): number {
  const end = text.indexOf('\n', from)
  return end === -1 ? text.length : end
}

/** Behind the closing quote of a string. */
function endOfString(text: string, from: number): number {
  const quote = text[from]!
  const long = quote.repeat(3)
  const isLong = text.startsWith(long, from)
  const closing = isLong ? long : quote
  for (let at = from + closing.length; at < text.length; at += 1) {
    if (quote === '"' && text[at] === '\\') at += 1
    else if (!isLong && text[at] === '\n') return at
    else if (text.startsWith(closing, at)) {
      let end = at + closing.length
      // One or two quotes may stand before the closing ones.
      if (isLong) while (text[end] === quote && end - at < 5) end += 1
      return end
    }
  }
  return text.length
}

/** Cut at its equals sign; undefined for a statement that sets nothing. */
function keyAndValue(statement: string): [key: string, value: string] | undefined {
  for (let at = 0; at < statement.length; at += 1) {
    const char = statement[at]!
    if (char === '"' || char === "'") at = endOfString(statement, at) - 1
    else if (char === '#') return undefined
    else if (char === '=') return [statement.slice(0, at), statement.slice(at + 1)]
  }
  return undefined
}

function pathIn(table: TomlTable | undefined): readonly string[] | undefined {
  const path: string[] = []
  for (let at: unknown = table; ;) {
    const inner = Array.isArray(at) ? (at as unknown[])[0] : at
    const [entry, ...others] = Object.entries(tableOf(inner) ?? {})
    if (entry === undefined) return path.length > 0 ? path : undefined
    if (others.length > 0) return undefined
    path.push(entry[0])
    at = entry[1]
  }
}

function withValue(table: TomlTable, [step, ...rest]: readonly string[], value: string): TomlTable | undefined {
  if (rest.length === 0) return { ...table, [step!]: value }
  const there = table[step!]
  const inner = there === undefined ? {} : tableOf(there)
  const after = inner && withValue(inner, rest, value)
  return after && { ...table, [step!]: after }
}

type Attempt = (text: string, holder: readonly string[], key: string, value: string) => string | undefined

/** The value of a key that is there. */
const replaced: Attempt = (text, holder, key, value) =>
  eachStatement(text, (statement, path) => {
    if (!isDeepStrictEqual(path, [...holder, key])) return undefined
    const [name, old] = keyAndValue(statement)!
    const [, space, rest] = /^([ \t]*)([\s\S]*)$/.exec(old)!
    const length = /^["']/.test(rest!) ? endOfString(rest!, 0) : /^[^\s#]*/.exec(rest!)![0].length
    return `${name}=${space}${JSON.stringify(value)}${rest!.slice(length)}`
  })

/** Below the line that names the table. */
const underHeading: Attempt = (text, holder, key, value) => {
  const sections = tomlSections(text)
  const at = sections.findIndex(
    (section) => section.heading !== undefined && isDeepStrictEqual(sectionPath(section), holder),
  )
  if (at === -1) return undefined
  const { heading, statements } = sections[at]!
  const end = lineEndIn(text, heading)
  const line = `${/^[ \t]*/.exec(heading!)![0]}  ${key} = ${JSON.stringify(value)}${end}`
  return joinSections(sections.with(at, { heading: withLineEnd(heading!, text), statements: [line, ...statements] }))
}

/** Behind a dotted key of the same table: `registry.x = 1`. */
const besideDotted: Attempt = (text, holder, key, value) =>
  eachStatement(text, (statement, path, section) => {
    if (path === undefined || section.length > holder.length) return undefined
    if (!isDeepStrictEqual(path.slice(0, holder.length), holder) || path.length <= holder.length) return undefined
    const indent = /^\uFEFF?([ \t]*)/.exec(statement)![1]!
    const name = [...holder.slice(section.length), key].map(keyText).join('.')
    return `${withLineEnd(statement, text)}${indent}${name} = ${JSON.stringify(value)}${lineEndIn(text, statement)}`
  })

/** As a table of its own, at the end. */
const inSectionOfItsOwn: Attempt = (text, holder, key, value) => {
  const end = lineEndIn(text)
  const line = `  ${key} = ${JSON.stringify(value)}${end}`
  return `${withLineEnd(text)}[${holder.map(keyText).join('.')}]${end}${line}`
}

/** Inside the braces of `registry = { … }`. */
const inInlineTable: Attempt = (text, holder, key, value) =>
  eachStatement(text, (statement, path) => {
    const [name, inner] = keyAndValue(statement) ?? ['', '']
    const isAbove = path !== undefined && isDeepStrictEqual(path, holder.slice(0, path.length))
    if (!isAbove || !inner.trimStart().startsWith('{')) return undefined
    return insertInline(statement, name.length + 1 + inner.indexOf('{') + 1, holder.slice(path.length), key, value)
  })

/** `start`: behind the opening brace of the table that `holder` starts from. */
function insertInline(text: string, start: number, holder: readonly string[], key: string, value: string): string {
  let depth = 0
  let from = start
  for (let at = start; at < text.length; at += 1) {
    const char = text[at]!
    if (char === '"' || char === "'") at = endOfString(text, at) - 1
    else if (char === '[' || char === '{') depth += 1
    else if (depth > 0 && (char === ']' || char === '}')) depth -= 1
    else if (depth === 0 && (char === ',' || char === '}')) {
      const entry = text.slice(from, at)
      const [name, inner] = keyAndValue(entry) ?? ['', '']
      const path = pathIn(tryToml(`${name}= 0`))
      const isAbove = path !== undefined && isDeepStrictEqual(path, holder.slice(0, path.length))
      if (isAbove && inner.trimStart().startsWith('{')) {
        const open = from + name.length + 1 + inner.indexOf('{') + 1
        return insertInline(text, open, holder.slice(path.length), key, value)
      }
      if (char === '}') {
        const before = text.slice(0, at).trimEnd()
        const added = `${[...holder, key].map(keyText).join('.')} = ${JSON.stringify(value)}`
        return `${before}${before.endsWith('{') ? ' ' : ', '}${added}${text.slice(before.length, at)}${text.slice(at)}`
      }
      from = at + 1
    }
  }
  return text
}

/** The text with the first statement replaced for which there is a replacement; undefined where there is none. */
function eachStatement(
  text: string,
  change: (statement: string, path: readonly string[] | undefined, section: readonly string[]) => string | undefined,
): string | undefined {
  const sections = tomlSections(text)
  for (const [number, section] of sections.entries()) {
    const above = sectionPath(section)
    if (above === undefined) continue
    for (const [at, statement] of section.statements.entries()) {
      const own = statementPath(statement)
      const after = change(statement, own && [...above, ...own], above)
      if (after === undefined) continue
      const statements = section.statements.with(at, after)
      return joinSections(sections.with(number, { ...section, statements }))
    }
  }
  return undefined
}

function keyText(key: string): string {
  return /^[A-Za-z0-9_-]+$/.test(key) ? key : JSON.stringify(key)
}
