import { isDeepStrictEqual } from 'node:util'
import { type JsonMap, stringify } from '@iarna/toml'
import { parse, TomlError } from 'smol-toml'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import {
  keepComments,
  findEntries,
  joinSections,
  renderKey,
  getLineEnd,
  getSectionPath,
  getStatementPath,
  getTablePaths,
  type TomlPath,
  type TomlSection,
  splitIntoSections,
  findValueEnd,
  findValueStart,
  withItem,
  withLineEnd,
  withoutBlankEnd,
  withoutItem,
} from './toml-syntax.ts'

export type { TomlPath }

/** Holds a table of a TOML file, as plain JavaScript. */
export type TomlTable = Record<string, unknown>

/**
 * Parses a user's TOML, which may begin with a byte order mark, as strictly as the programs that read it: a carriage return counts
 * only before a newline. Throws a MirrorError (usage) with line and column for invalid TOML.
 */
export function readToml(path: string, text: string): TomlTable {
  const refuse = (line: number, column: number, why: string, cause?: Error): never => {
    throw new MirrorError(`${path}:${line}:${column}: this is not valid TOML, so it is left alone: ${why}.`, {
      exit: exitCode.usage,
      hints: [`fix ${path}, then run the command again`],
      cause,
    })
  }
  const bareReturn = text.search(/\r(?!\n)/)
  if (bareReturn !== -1) {
    const lines = text.slice(0, bareReturn).split('\n')
    refuse(lines.length, lines.at(-1)!.length + 1, 'a carriage return without a newline')
  }
  try {
    // Turn the parser's tables without a prototype, and its own class of dates, into plain values that can be compared.
    return structuredClone(parse(text)) as TomlTable
  } catch (error) {
    if (!(error instanceof TomlError)) throw error
    const why = error.message.split('\n', 1)[0]!.replace(/^Invalid TOML document: /, '')
    return refuse(error.line, error.column, why, error)
  }
}

/** Parses TOML. Returns undefined for invalid TOML. */
export function tryReadToml(text: string): TomlTable | undefined {
  try {
    return readToml('', text)
  } catch (error) {
    if (error instanceof MirrorError) return undefined
    throw error
  }
}

/**
 * Renders a table as TOML text that ends with a newline. Another library than the parser's writes it: reading the text again
 * reveals a fault of either.
 */
export function renderToml(table: TomlTable): string {
  return stringify(table as JsonMap)
}

/** Renders the line that names a table, without a line end: `[plugins."io.containerd.grpc.v1.cri".registry]`. */
export function renderTomlHeading(path: readonly string[]): string {
  return `[${path.map(renderKey).join('.')}]`
}

/** Returns the value if it is a table, else undefined. */
export function asTable(value: unknown): TomlTable | undefined {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Date)
    ? (value as TomlTable)
    : undefined
}

/** Returns the tables of an array of tables; none for any other value. */
export function asTables(value: unknown): TomlTable[] {
  return Array.isArray(value) ? value.map(asTable).filter((one) => one !== undefined) : []
}

/** Returns the strings of an array; none for any other value. */
export function asStrings(value: unknown): string[] {
  return Array.isArray(value) ? value.filter((one) => typeof one === 'string') : []
}

/** Returns the line numbers, from 1, of the headings of an array of tables at the root: `[[registry]]`. */
export function findTomlTableLines(text: string, key: string): number[] {
  const sections = splitIntoSections(text)
  const starts: number[] = []
  let line = 1
  for (const section of sections) {
    starts.push(line)
    line += joinSections([section]).split('\n').length - 1
  }
  return getTablePaths(sections).flatMap((path, at) =>
    path.length === 2 && path[0] === key && typeof path[1] === 'number' ? [starts[at]!] : [],
  )
}

/*
 * Each function below changes a TOML text and keeps all else to the byte: comments, indentation, line ends. It returns undefined
 * where that needs a rewrite of more than the table or key in question. It reads the result again, which has to mean what was
 * intended.
 */

/** Sets the value of a key, however its table is written. Makes the tables on the way to it. */
export function setTomlValue(text: string, path: readonly string[], value: unknown): string | undefined {
  const edit: Edit = { text, tablePath: path.slice(0, -1), key: path.at(-1)!, value }
  const expected = withValue(tryReadToml(text), path, value)
  for (const attempt of [
    replaceValue,
    insertBelowHeading,
    insertBesideDottedKey,
    appendToRoot,
    appendWithOwnTable,
    insertIntoInlineTable,
  ]) {
    const after = acceptIfEqual(expected, attempt(edit))
    if (after !== undefined) return after
  }
  return undefined
}

/** Puts keys first into a table that has a heading, indented like the statement that follows. */
export function addTomlKeys(text: string, path: readonly string[], values: TomlTable): string | undefined {
  let expected = tryReadToml(text)
  for (const [key, value] of Object.entries(values)) expected = withValue(expected, [...path, key], value)
  const lines = renderToml(values).trimEnd().split('\n')
  const after = putBelowHeading(text, path, lines, (_, next) => /^[ \t]*(?=\S)/.exec(next ?? '')?.[0] ?? '')
  return acceptIfEqual(expected, after)
}

/** Appends a table with its heading, behind a blank line. The table must not be there. */
export function appendTomlTable(text: string, path: readonly string[], table: TomlTable): string | undefined {
  const nested = path.reduceRight<TomlTable>((inner, key) => ({ [key]: inner }), table)
  const lineEnd = getLineEnd(text)
  const start = withLineEnd(text)
  const gap = start === '' || start === '\uFEFF' ? '' : lineEnd
  const after = start + gap + renderToml(nested).replaceAll('\n', lineEnd)
  return acceptIfEqual(withValue(tryReadToml(text), path, table), after)
}

/**
 * Puts an item first into the list at a key of a table that has a heading: on a line of its own if the other items have theirs.
 */
export function prependTomlItem(text: string, path: readonly string[], item: unknown): string | undefined {
  const before = tryReadToml(text)
  const list = path.reduce<unknown>((inner, key) => asTable(inner)?.[key], before)
  if (!Array.isArray(list)) return undefined
  const found = findStatement(text, path)
  if (found === undefined) return undefined
  const after = withStatements(found, [withItem(found.statement, renderValue(item))])
  return acceptIfEqual(withValue(before, path, [item, ...(list as unknown[])]), joinSections(after))
}

interface RemoveOptions {
  /** Decides whether the blank lines above a table at the end of the text stay. */
  readonly blankLinesAbove?: 'keep' | 'drop'
}

/**
 * Removes a table with a heading, a key of such a table, or an item of a list there, and what becomes empty by it. Comments stay,
 * except for one on the line of a removed key.
 */
export function removeFromToml(
  text: string,
  path: TomlPath,
  { blankLinesAbove = 'keep' }: RemoveOptions = {},
): string | undefined {
  const before = tryReadToml(text)
  if (before === undefined) return undefined
  const expected = changeAt(before, path, () => undefined) ?? {}
  const attempts = [withoutTable(text, path, blankLinesAbove), withoutKey(text, path), withoutListItem(text, path)]
  return attempts.find((after) => {
    const remaining = after === undefined ? undefined : tryReadToml(after)
    // Ignore an empty table or list on the way: a comment in it keeps it.
    return remaining && isDeepStrictEqual(changeAt(remaining, path.slice(0, -1), ignoreEmpty) ?? {}, expected)
  })
}

/** Returns the text if it means the wanted table, else undefined. */
function acceptIfEqual(table: TomlTable | undefined, text: string | undefined): string | undefined {
  return table !== undefined && text !== undefined && isDeepStrictEqual(tryReadToml(text), table) ? text : undefined
}

/** Returns the table with one value set, or undefined where something else than a table stands on the way to it. */
function withValue(
  table: TomlTable | undefined,
  [step, ...rest]: readonly string[],
  value: unknown,
): TomlTable | undefined {
  if (table === undefined) return undefined
  if (rest.length === 0) return { ...table, [step!]: value }
  const inner = withValue(asTable(table[step!] ?? {}), rest, value)
  return inner && { ...table, [step!]: inner }
}

/** Returns a value with another one at a path, or without it, and without lists and tables that become empty by it. */
function changeAt(value: unknown, [step, ...rest]: TomlPath, change: (value: unknown) => unknown): unknown {
  if (step === undefined) return change(value)
  if (Array.isArray(value) && typeof step === 'number' && step < value.length) {
    const inner = changeAt(value[step], rest, change)
    return ignoreEmpty(inner === undefined ? value.toSpliced(step, 1) : value.with(step, inner))
  }
  const table = asTable(value)
  if (table === undefined || !(step in table)) return ignoreEmpty(value)
  const { [step]: old, ...others } = table
  const inner = changeAt(old, rest, change)
  return ignoreEmpty(inner === undefined ? others : { ...others, [step]: inner })
}

function ignoreEmpty(value: unknown): unknown {
  const isEmpty =
    typeof value === 'object' && value !== null && !(value instanceof Date) && Object.keys(value).length === 0
  return isEmpty ? undefined : value
}

/** Sets one key: `tablePath` is the path of its table. */
interface Edit {
  readonly text: string
  readonly tablePath: readonly string[]
  readonly key: string
  readonly value: unknown
}

type Attempt = (edit: Edit) => string | undefined

/** Replaces the value of a key that is there. */
const replaceValue: Attempt = ({ text, tablePath, key, value }) =>
  changeStatement(text, (statement, path) => {
    if (!isDeepStrictEqual(path, [...tablePath, key])) return undefined
    const start = findValueStart(statement)!
    return statement.slice(0, start) + renderValue(value) + statement.slice(findValueEnd(statement, start))
  })

/** Puts the key below the heading of its table, two spaces deeper. */
const insertBelowHeading: Attempt = ({ text, tablePath, key, value }) =>
  putBelowHeading(text, tablePath, [renderLine([key], value)], (heading) => `${/^[ \t]*/.exec(heading)![0]}  `)

/** Puts the key behind a dotted key of the same table: `registry.x = 1`. */
const insertBesideDottedKey: Attempt = ({ text, tablePath, key, value }) =>
  changeStatement(text, (statement, path, section) => {
    if (path === undefined || section.length > tablePath.length || path.length <= tablePath.length) return undefined
    if (!startsWith(path, tablePath)) return undefined
    const indent = /^\uFEFF?([ \t]*)/.exec(statement)![1]!
    const line = renderLine([...tablePath.slice(section.length), key], value)
    return withLineEnd(statement, text) + indent + line + getLineEnd(text, statement)
  })

/** Puts a key of the root behind the statements before the first table. */
const appendToRoot: Attempt = ({ text, tablePath, key, value }) => {
  if (tablePath.length > 0) return undefined
  const [root, ...tables] = splitIntoSections(text)
  const before = withLineEnd(joinSections([root!]), text)
  return before + renderLine([key], value) + getLineEnd(text) + joinSections(tables)
}

/** Appends the table of the key. */
const appendWithOwnTable: Attempt = ({ text, tablePath, key, value }) => {
  const lineEnd = getLineEnd(text)
  return `${withLineEnd(text)}${renderTomlHeading(tablePath)}${lineEnd}  ${renderLine([key], value)}${lineEnd}`
}

/** Puts the key inside the braces of `registry = { … }`. */
const insertIntoInlineTable: Attempt = ({ text, tablePath, key, value }) =>
  changeStatement(text, (statement, path) => {
    const open = findValueStart(statement)
    if (path === undefined || open === undefined || !startsWith(tablePath, path)) return undefined
    return putInline(statement, open, [...tablePath.slice(path.length), key], value)
  })

/** Puts a key into an inline table. `open`: the offset of the value that `path` starts from. */
function putInline(text: string, open: number, path: readonly string[], value: unknown): string | undefined {
  if (text[open] !== '{') return undefined
  const { entries, close } = findEntries(text, open)
  for (const { start, end } of entries) {
    const entry = text.slice(start, end)
    const keys = getStatementPath(entry)
    if (keys === undefined || keys.length >= path.length || !startsWith(path, keys)) continue
    const changed = putInline(entry, findValueStart(entry)!, path.slice(keys.length), value)
    if (changed !== undefined) return text.slice(0, start) + changed + text.slice(end)
  }
  const before = text.slice(0, close).trimEnd()
  const comma = entries.length === 0 ? ' ' : ', '
  return `${before}${comma}${renderLine(path, value)}${text.slice(before.length)}`
}

/** Puts lines below the heading of a table. `getIndent` gives their indentation from the heading and the statement that follows it. */
function putBelowHeading(
  text: string,
  path: readonly string[],
  lines: readonly string[],
  getIndent: (heading: string, next: string | undefined) => string,
): string | undefined {
  const sections = splitIntoSections(text)
  const at = getTablePaths(sections).findIndex((one, number) => number > 0 && isDeepStrictEqual(one, path))
  if (at === -1) return undefined
  const { heading, statements } = sections[at]!
  const indent = getIndent(heading!, statements[0])
  const added = lines.map((line) => indent + line + getLineEnd(text, heading))
  const section = { heading: withLineEnd(heading!, text), statements: [...added, ...statements] }
  return joinSections(sections.with(at, section))
}

/** Returns the text with the first statement changed for which `change` returns another one; undefined where it returns none. */
function changeStatement(
  text: string,
  change: (statement: string, path: readonly string[] | undefined, section: readonly string[]) => string | undefined,
): string | undefined {
  const sections = splitIntoSections(text)
  for (const [number, section] of sections.entries()) {
    const above = getSectionPath(section)
    if (above === undefined) continue
    for (const [at, statement] of section.statements.entries()) {
      const own = getStatementPath(statement)
      const after = change(statement, own && [...above, ...own], above)
      if (after === undefined) continue
      return joinSections(sections.with(number, { ...section, statements: section.statements.with(at, after) }))
    }
  }
  return undefined
}

/** Locates a statement in the section of its table. */
interface FoundStatement {
  readonly sections: readonly TomlSection[]
  readonly section: number
  readonly at: number
  readonly statement: string
}

/** Finds the statement that sets a key of the root, or of a table with a heading, without dots. */
function findStatement(text: string, path: TomlPath): FoundStatement | undefined {
  const sections = splitIntoSections(text)
  const paths = getTablePaths(sections)
  const tablePath = path.slice(0, -1)
  for (const [section, { statements }] of sections.entries()) {
    if (!isDeepStrictEqual(paths[section], tablePath)) continue
    const at = statements.findIndex((statement) => isDeepStrictEqual(getStatementPath(statement), path.slice(-1)))
    if (at !== -1) return { sections, section, at, statement: statements[at]! }
  }
  return undefined
}

/** Returns the sections with other statements in place of one. A table that sets nothing then loses its heading. */
function withStatements({ sections, section, at }: FoundStatement, statements: readonly string[]): TomlSection[] {
  const old = sections[section]!
  const changed = { ...old, statements: old.statements.toSpliced(at, 1, ...statements) }
  const isEmpty = old.heading !== undefined && changed.statements.every((one) => getStatementPath(one) === undefined)
  return sections.toSpliced(section, 1, ...(isEmpty ? keepComments(changed) : [changed]))
}

function withoutTable(text: string, path: TomlPath, blankLinesAbove: 'keep' | 'drop'): string | undefined {
  const sections = splitIntoSections(text)
  const paths = getTablePaths(sections)
  const remaining = sections.map((section, at) => (startsWith(paths[at]!, path) ? keepComments(section) : [section]))
  if (!paths.some((one) => startsWith(one, path))) return undefined
  const after = joinSections(remaining.flat())
  return blankLinesAbove === 'drop' && remaining.at(-1)!.length === 0 ? withoutBlankEnd(after) : after
}

function withoutKey(text: string, path: TomlPath): string | undefined {
  const found = findStatement(text, path)
  return found && joinSections(withStatements(found, []))
}

function withoutListItem(text: string, path: TomlPath): string | undefined {
  const index = path.at(-1)
  const found = findStatement(text, path.slice(0, -1))
  if (found === undefined || typeof index !== 'number') return undefined
  const statement = withoutItem(found.statement, index)
  if (statement === undefined) return undefined
  const isKept = findEntries(statement, findValueStart(statement)!).entries.length > 0 || statement.includes('#')
  return joinSections(withStatements(found, isKept ? [statement] : []))
}

function renderLine(path: readonly string[], value: unknown): string {
  return `${path.map(renderKey).join('.')} = ${renderValue(value)}`
}

/** Returns a string, number, boolean or list as TOML text. */
function renderValue(value: unknown): string {
  return renderToml({ value }).slice('value = '.length).trimEnd()
}

function startsWith(path: TomlPath, start: TomlPath): boolean {
  return isDeepStrictEqual(path.slice(0, start.length), start)
}
