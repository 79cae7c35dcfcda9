import { isDeepStrictEqual } from 'node:util'
import { type JsonMap, stringify } from '@iarna/toml'
import { parse, TomlError } from 'smol-toml'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import {
  commentsOf,
  entriesIn,
  joinSections,
  keyText,
  lineEndIn,
  sectionPath,
  statementPath,
  tablePaths,
  type TomlPath,
  type TomlSection,
  tomlSections,
  valueEnd,
  valueStart,
  withItem,
  withLineEnd,
  withoutBlankEnd,
  withoutItem,
} from './toml-syntax.ts'

export type { TomlPath }

/** A table of a TOML file, as plain JavaScript. */
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
export function tryToml(text: string): TomlTable | undefined {
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
  return `[${path.map(keyText).join('.')}]`
}

/** Returns the value if it is a table, else undefined. */
export function tableOf(value: unknown): TomlTable | undefined {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Date)
    ? (value as TomlTable)
    : undefined
}

/** Returns the tables of an array of tables; none for any other value. */
export function tablesOf(value: unknown): TomlTable[] {
  return Array.isArray(value) ? value.map(tableOf).filter((one) => one !== undefined) : []
}

/** Returns the strings of an array; none for any other value. */
export function stringsOf(value: unknown): string[] {
  return Array.isArray(value) ? value.filter((one) => typeof one === 'string') : []
}

/** Returns the line numbers, from 1, of the headings of an array of tables at the root: `[[registry]]`. */
export function tomlTableLines(text: string, key: string): number[] {
  const sections = tomlSections(text)
  const starts: number[] = []
  let line = 1
  for (const section of sections) {
    starts.push(line)
    line += joinSections([section]).split('\n').length - 1
  }
  return tablePaths(sections).flatMap((path, at) =>
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
  const edit: Edit = { text, holder: path.slice(0, -1), key: path.at(-1)!, value }
  const wanted = withValue(tryToml(text), path, value)
  for (const attempt of [replaced, belowHeading, besideDotted, atEndOfRoot, inTableOfItsOwn, inInlineTable]) {
    const after = ifItMeans(wanted, attempt(edit))
    if (after !== undefined) return after
  }
  return undefined
}

/** Puts keys first into a table that has a heading, indented like the statement that follows. */
export function addTomlKeys(text: string, path: readonly string[], values: TomlTable): string | undefined {
  let wanted = tryToml(text)
  for (const [key, value] of Object.entries(values)) wanted = withValue(wanted, [...path, key], value)
  const lines = renderToml(values).trimEnd().split('\n')
  return ifItMeans(
    wanted,
    putBelowHeading(text, path, lines, (_, next) => /^[ \t]*(?=\S)/.exec(next ?? '')?.[0] ?? ''),
  )
}

/** Appends a table with its heading, behind a blank line. The table must not be there. */
export function appendTomlTable(text: string, path: readonly string[], table: TomlTable): string | undefined {
  const nested = path.reduceRight<TomlTable>((inner, key) => ({ [key]: inner }), table)
  const lineEnd = lineEndIn(text)
  const start = withLineEnd(text)
  const gap = start === '' || start === '\uFEFF' ? '' : lineEnd
  return ifItMeans(withValue(tryToml(text), path, table), start + gap + renderToml(nested).replaceAll('\n', lineEnd))
}

/**
 * Puts an item first into the list at a key of a table that has a heading: on a line of its own if the other items have theirs.
 */
export function prependTomlItem(text: string, path: readonly string[], item: unknown): string | undefined {
  const before = tryToml(text)
  const list = path.reduce<unknown>((at, key) => tableOf(at)?.[key], before)
  if (!Array.isArray(list)) return undefined
  const found = findStatement(text, path)
  if (found === undefined) return undefined
  const after = withStatements(found, [withItem(found.statement, valueText(item))])
  return ifItMeans(withValue(before, path, [item, ...(list as unknown[])]), joinSections(after))
}

interface RemoveOptions {
  /** True if the blank lines above a table at the end of the text stay. */
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
  const before = tryToml(text)
  if (before === undefined) return undefined
  const wanted = changedAt(before, path, () => undefined) ?? {}
  const attempts = [withoutTable(text, path, blankLinesAbove), withoutKey(text, path), withoutListItem(text, path)]
  return attempts.find((after) => {
    const left = after === undefined ? undefined : tryToml(after)
    // Ignore an empty table or list on the way: a comment in it keeps it.
    return left && isDeepStrictEqual(changedAt(left, path.slice(0, -1), ignoreEmpty) ?? {}, wanted)
  })
}

/** Returns the text if it means the wanted table, else undefined. */
function ifItMeans(wanted: TomlTable | undefined, text: string | undefined): string | undefined {
  return wanted !== undefined && text !== undefined && isDeepStrictEqual(tryToml(text), wanted) ? text : undefined
}

/** Returns the table with one value set, or undefined where something else than a table stands on the way to it. */
function withValue(
  table: TomlTable | undefined,
  [step, ...rest]: readonly string[],
  value: unknown,
): TomlTable | undefined {
  if (table === undefined) return undefined
  if (rest.length === 0) return { ...table, [step!]: value }
  const inner = withValue(tableOf(table[step!] ?? {}), rest, value)
  return inner && { ...table, [step!]: inner }
}

/** Returns a value with another one at a path, or without it, and without lists and tables that become empty by it. */
function changedAt(value: unknown, [step, ...rest]: TomlPath, change: (value: unknown) => unknown): unknown {
  if (step === undefined) return change(value)
  if (Array.isArray(value) && typeof step === 'number' && step < value.length) {
    const inner = changedAt(value[step], rest, change)
    return ignoreEmpty(inner === undefined ? value.toSpliced(step, 1) : value.with(step, inner))
  }
  const table = tableOf(value)
  if (table === undefined || !(step in table)) return ignoreEmpty(value)
  const { [step]: old, ...others } = table
  const inner = changedAt(old, rest, change)
  return ignoreEmpty(inner === undefined ? others : { ...others, [step]: inner })
}

function ignoreEmpty(value: unknown): unknown {
  const isEmpty =
    typeof value === 'object' && value !== null && !(value instanceof Date) && Object.keys(value).length === 0
  return isEmpty ? undefined : value
}

/** One key to be set: `holder` is the path of its table. */
interface Edit {
  readonly text: string
  readonly holder: readonly string[]
  readonly key: string
  readonly value: unknown
}

type Attempt = (edit: Edit) => string | undefined

/** Replaces the value of a key that is there. */
const replaced: Attempt = ({ text, holder, key, value }) =>
  changeStatement(text, (statement, path) => {
    if (!isDeepStrictEqual(path, [...holder, key])) return undefined
    const start = valueStart(statement)!
    return statement.slice(0, start) + valueText(value) + statement.slice(valueEnd(statement, start))
  })

/** Puts the key below the heading of its table, two spaces deeper. */
const belowHeading: Attempt = ({ text, holder, key, value }) =>
  putBelowHeading(text, holder, [lineOf([key], value)], (heading) => `${/^[ \t]*/.exec(heading)![0]}  `)

/** Puts the key behind a dotted key of the same table: `registry.x = 1`. */
const besideDotted: Attempt = ({ text, holder, key, value }) =>
  changeStatement(text, (statement, path, section) => {
    if (path === undefined || section.length > holder.length || path.length <= holder.length) return undefined
    if (!startsWith(path, holder)) return undefined
    const indent = /^\uFEFF?([ \t]*)/.exec(statement)![1]!
    const line = lineOf([...holder.slice(section.length), key], value)
    return withLineEnd(statement, text) + indent + line + lineEndIn(text, statement)
  })

/** Puts a key of the root behind the statements before the first table. */
const atEndOfRoot: Attempt = ({ text, holder, key, value }) => {
  if (holder.length > 0) return undefined
  const [root, ...tables] = tomlSections(text)
  const before = withLineEnd(joinSections([root!]), text)
  return before + lineOf([key], value) + lineEndIn(text) + joinSections(tables)
}

/** Appends the table of the key. */
const inTableOfItsOwn: Attempt = ({ text, holder, key, value }) => {
  const lineEnd = lineEndIn(text)
  return `${withLineEnd(text)}${renderTomlHeading(holder)}${lineEnd}  ${lineOf([key], value)}${lineEnd}`
}

/** Puts the key inside the braces of `registry = { … }`. */
const inInlineTable: Attempt = ({ text, holder, key, value }) =>
  changeStatement(text, (statement, path) => {
    const open = valueStart(statement)
    if (path === undefined || open === undefined || !startsWith(holder, path)) return undefined
    return putInline(statement, open, [...holder.slice(path.length), key], value)
  })

/** `open`: the offset of the value that `path` starts from. */
function putInline(text: string, open: number, path: readonly string[], value: unknown): string | undefined {
  if (text[open] !== '{') return undefined
  const { entries, close } = entriesIn(text, open)
  for (const { start, end } of entries) {
    const entry = text.slice(start, end)
    const keys = statementPath(entry)
    if (keys === undefined || keys.length >= path.length || !startsWith(path, keys)) continue
    const changed = putInline(entry, valueStart(entry)!, path.slice(keys.length), value)
    if (changed !== undefined) return text.slice(0, start) + changed + text.slice(end)
  }
  const before = text.slice(0, close).trimEnd()
  const comma = entries.length === 0 ? ' ' : ', '
  return `${before}${comma}${lineOf(path, value)}${text.slice(before.length)}`
}

/** Puts lines below the heading of a table. `indentOf`: their indentation, by the heading and the statement that follows it. */
function putBelowHeading(
  text: string,
  path: readonly string[],
  lines: readonly string[],
  indentOf: (heading: string, next: string | undefined) => string,
): string | undefined {
  const sections = tomlSections(text)
  const at = tablePaths(sections).findIndex((one, number) => number > 0 && isDeepStrictEqual(one, path))
  if (at === -1) return undefined
  const { heading, statements } = sections[at]!
  const indent = indentOf(heading!, statements[0])
  const added = lines.map((line) => indent + line + lineEndIn(text, heading))
  const section = { heading: withLineEnd(heading!, text), statements: [...added, ...statements] }
  return joinSections(sections.with(at, section))
}

/** Returns the text with the first statement changed for which `change` returns another one; undefined where it returns none. */
function changeStatement(
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
      return joinSections(sections.with(number, { ...section, statements: section.statements.with(at, after) }))
    }
  }
  return undefined
}

/** A statement in the section of its table. */
interface FoundStatement {
  readonly sections: readonly TomlSection[]
  readonly section: number
  readonly at: number
  readonly statement: string
}

/** Finds the statement that sets a key of the root, or of a table with a heading, without dots. */
function findStatement(text: string, path: TomlPath): FoundStatement | undefined {
  const sections = tomlSections(text)
  const paths = tablePaths(sections)
  const holder = path.slice(0, -1)
  for (const [section, { statements }] of sections.entries()) {
    if (!isDeepStrictEqual(paths[section], holder)) continue
    const at = statements.findIndex((statement) => isDeepStrictEqual(statementPath(statement), path.slice(-1)))
    if (at !== -1) return { sections, section, at, statement: statements[at]! }
  }
  return undefined
}

/** Returns the sections with other statements in place of one. A table that sets nothing then loses its heading. */
function withStatements({ sections, section, at }: FoundStatement, statements: readonly string[]): TomlSection[] {
  const old = sections[section]!
  const changed = { ...old, statements: old.statements.toSpliced(at, 1, ...statements) }
  const isEmpty = old.heading !== undefined && changed.statements.every((one) => statementPath(one) === undefined)
  return sections.toSpliced(section, 1, ...(isEmpty ? commentsOf(changed) : [changed]))
}

function withoutTable(text: string, path: TomlPath, blankLinesAbove: 'keep' | 'drop'): string | undefined {
  const sections = tomlSections(text)
  const paths = tablePaths(sections)
  const left = sections.map((section, at) => (startsWith(paths[at]!, path) ? commentsOf(section) : [section]))
  if (!paths.some((one) => startsWith(one, path))) return undefined
  const after = joinSections(left.flat())
  return blankLinesAbove === 'drop' && left.at(-1)!.length === 0 ? withoutBlankEnd(after) : after
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
  const isKept = entriesIn(statement, valueStart(statement)!).entries.length > 0 || statement.includes('#')
  return joinSections(withStatements(found, isKept ? [statement] : []))
}

function lineOf(path: readonly string[], value: unknown): string {
  return `${path.map(keyText).join('.')} = ${valueText(value)}`
}

/** Returns a string, number, boolean or list as TOML text. */
function valueText(value: unknown): string {
  return renderToml({ value }).slice('value = '.length).trimEnd()
}

function startsWith(path: TomlPath, start: TomlPath): boolean {
  return isDeepStrictEqual(path.slice(0, start.length), start)
}
