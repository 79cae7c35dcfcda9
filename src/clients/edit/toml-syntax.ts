/** Lists the keys of tables, with an index behind the key of each array of tables or list, from the root. */
export type TomlPath = readonly (string | number)[]

/** Holds a stretch of a TOML text: the line that names a table, and the statements up to the next such line. */
export interface TomlSection {
  /** Holds the line that names the table, with its line end; undefined for the statements before the first table. */
  readonly heading: string | undefined
  /** Holds keys with their values, comments and empty lines, each with its line ends. A list of several lines is one statement. */
  readonly statements: readonly string[]
}

/** Cuts a valid TOML text into sections. Joined again they are the same text, to the byte. */
export function splitIntoSections(text: string): TomlSection[] {
  const sections: { heading: string | undefined; statements: string[] }[] = [{ heading: undefined, statements: [] }]
  for (const statement of splitIntoStatements(text)) {
    if (/^\uFEFF?[ \t]*\[/.test(statement)) sections.push({ heading: statement, statements: [] })
    else sections.at(-1)!.statements.push(statement)
  }
  return sections
}

/** Joins sections to a text. */
export function joinSections(sections: readonly TomlSection[]): string {
  return sections.flatMap(({ heading, statements }) => [heading ?? '', ...statements]).join('')
}

/** Returns the keys that lead to a section's table: none before the first table. Undefined for a line that names no table. */
export function getSectionPath({ heading }: TomlSection): readonly string[] | undefined {
  if (heading === undefined) return []
  const start = /^\uFEFF?[ \t]*\[\[?/.exec(heading)
  return start === null ? undefined : parseKeys(heading, start[0].length, ']')
}

/** Returns the paths of the tables of all sections of a text, in their order. */
export function getTablePaths(sections: readonly TomlSection[]): TomlPath[] {
  const lastIndices = new Map<string, number>()
  return sections.map((section) => {
    const keys = getSectionPath(section) ?? []
    const isElement = /^\uFEFF?[ \t]*\[\[/.test(section.heading ?? '')
    const path: (string | number)[] = []
    for (const [depth, key] of keys.entries()) {
      path.push(key)
      const name = JSON.stringify(path)
      if (isElement && depth === keys.length - 1) lastIndices.set(name, (lastIndices.get(name) ?? -1) + 1)
      const index = lastIndices.get(name)
      if (index !== undefined) path.push(index)
    }
    return path
  })
}

/** Returns the keys that a statement sets, from its section on. Undefined for a comment or an empty line. */
export function getStatementPath(statement: string): readonly string[] | undefined {
  const equals = findEqualsSign(statement)
  return equals === undefined ? undefined : parseKeys(statement, /^\uFEFF?/.exec(statement)![0].length, '=')
}

/** Returns the offset of the value that a statement sets. Undefined for a comment or an empty line. */
export function findValueStart(statement: string): number | undefined {
  const equals = findEqualsSign(statement)
  return equals === undefined ? undefined : equals + /^=[ \t]*/.exec(statement.slice(equals))![0].length
}

/** Returns the offset behind the value that begins at `start`. */
export function findValueEnd(text: string, start: number): number {
  const char = text[start]
  if (char === '"' || char === "'") return findStringEnd(text, start)
  if (char === '[' || char === '{') return findEntries(text, start).close + 1
  return start + /^[^\s#,\]}]*/.exec(text.slice(start))![0].length
}

interface Entries {
  /** Holds the offsets of each entry, without spaces, comments and commas around it. */
  readonly entries: readonly { readonly start: number; readonly end: number }[]
  /** Holds the offset of the closing bracket. */
  readonly close: number
}

/** Finds the items of a list, or the keys with values of an inline table, whose bracket is at `open`. */
export function findEntries(text: string, open: number): Entries {
  const entries: { start: number; end: number }[] = []
  let depth = 0
  let entry: { start: number; end: number } | undefined
  for (let at = open + 1; at < text.length; at += 1) {
    const char = text[at]!
    const isClosing = char === ']' || char === '}'
    if (depth === 0 && (isClosing || char === ',')) {
      if (entry) entries.push(entry)
      if (isClosing) return { entries, close: at }
      entry = undefined
    } else if (char === '#') at = findLineEnd(text, at) - 1
    else if (!/\s/.test(char)) {
      const start = at
      if (char === '"' || char === "'") at = findStringEnd(text, at) - 1
      else if (char === '[' || char === '{') depth += 1
      else if (isClosing) depth -= 1
      entry = { start: entry?.start ?? start, end: at + 1 }
    }
  }
  return { entries, close: text.length }
}

/** Returns the comments of a section, with the blank lines among them, as a section without a heading; none without comments. */
export function keepComments({ statements }: TomlSection): TomlSection[] {
  const rest = statements.filter((statement) => getStatementPath(statement) === undefined)
  return rest.every((statement) => statement.trim() === '') ? [] : [{ heading: undefined, statements: rest }]
}

/** Returns the statement of a list with `item`, as TOML text, in front. */
export function withItem(statement: string, item: string): string {
  const open = findValueStart(statement)! + 1
  const isEmpty = findEntries(statement, open - 1).entries.length === 0
  const [start, rest] = [statement.slice(0, open), statement.slice(open)]
  const firstLine = /^[ \t]*(?:#[^\n]*)?\r?\n/.exec(rest)?.[0]
  if (firstLine !== undefined && !isEmpty) {
    const others = rest.slice(firstLine.length)
    const indent = /^[ \t]*/.exec(others)![0]
    return `${start}${firstLine}${indent}${item},${getLineEnd(statement, firstLine)}${others}`
  }
  const space = /^[ \t]*/.exec(rest)![0]
  const others = rest.slice(space.length)
  if (isEmpty && others.startsWith('#')) return `${start}${item}${space === '' ? ' ' : space}${others}`
  return `${start}${space}${item}${isEmpty ? '' : ', '}${others}`
}

/**
 * Returns the statement of a list without an item: with its line if it stands alone on it, else with its comma. Undefined where
 * there is no such item, or where it is an inline table.
 */
export function withoutItem(statement: string, index: number): string | undefined {
  const entry = findEntries(statement, findValueStart(statement)!).entries[index]
  if (entry === undefined || statement[entry.start] === '{') return undefined
  const comma = /^[ \t]*,/.exec(statement.slice(entry.end))?.[0] ?? ''
  const [before, after] = [statement.slice(0, entry.start), statement.slice(entry.end + comma.length)]
  if (/\n[ \t]*$/.test(before) && /^[ \t]*\r?\n/.test(after))
    return before.replace(/[ \t]*$/, '') + after.replace(/^[ \t]*\r?\n/, '')
  return comma === '' ? before.replace(/,[ \t]*$/, '') + after : before + after.replace(/^[ \t]/, '')
}

/** Returns a key as TOML text: quoted where necessary. */
export function renderKey(key: string): string {
  return /^[A-Za-z0-9_-]+$/.test(key) ? key : JSON.stringify(key)
}

/** Returns the line end of a part of a text; for a part without one, the first line end of the text. */
export function getLineEnd(text: string, part = ''): string {
  return /\r?\n$/.exec(part)?.[0] ?? /\r?\n/.exec(text)?.[0] ?? '\n'
}

/** Returns a part of a text with a line end, so that a line can follow it. */
export function withLineEnd(part: string, text = part): string {
  return part === '' || part === '\uFEFF' || part.endsWith('\n') ? part : part + getLineEnd(text)
}

/** Removes the empty lines at the end of a text. */
export function withoutBlankEnd(text: string): string {
  return text.replace(/(\r?\n)(?:[ \t]*\r?\n)+$/, '$1')
}

function splitIntoStatements(text: string): string[] {
  const statements: string[] = []
  let start = 0
  let depth = 0
  for (let at = 0; at < text.length; at += 1) {
    const char = text[at]!
    if (char === '#') at = findLineEnd(text, at) - 1
    else if (char === '"' || char === "'") at = findStringEnd(text, at) - 1
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

/** Returns the offset of the newline that ends a comment. */
function findLineEnd(text: string, from: number): number {
  const end = text.indexOf('\n', from)
  return end === -1 ? text.length : end
}

/** Returns the offset behind the closing quote of a string. */
function findStringEnd(text: string, from: number): number {
  const quote = text[from]!
  const long = quote.repeat(3)
  const isLong = text.startsWith(long, from)
  const closing = isLong ? long : quote
  for (let at = from + closing.length; at < text.length; at += 1) {
    if (quote === '"' && text[at] === '\\') at += 1
    else if (!isLong && text[at] === '\n') return at
    else if (text.startsWith(closing, at)) {
      let end = at + closing.length
      // Include one or two quotes before the closing ones.
      if (isLong) while (text[end] === quote && end - at < 5) end += 1
      return end
    }
  }
  return text.length
}

/** Returns the offset of the equals sign behind a key. */
function findEqualsSign(statement: string): number | undefined {
  for (let at = 0; at < statement.length; at += 1) {
    const char = statement[at]!
    if (char === '"' || char === "'") at = findStringEnd(statement, at) - 1
    else if (char === '#') return undefined
    else if (char === '=') return at
  }
  return undefined
}

/** Parses a dotted key that begins at `start` and ends before the character `end`. */
function parseKeys(text: string, start: number, end: string): readonly string[] | undefined {
  const keys: string[] = []
  const part = /[ \t]*(?:([A-Za-z0-9_-]+)|"((?:[^"\\\n]|\\.)*)"|'([^'\n]*)')[ \t]*([.=\]])/y
  part.lastIndex = start
  for (let found = part.exec(text); found !== null; found = part.exec(text)) {
    const [, bare, basic, literal, next] = found
    keys.push(basic === undefined ? (bare ?? literal!) : unescape(basic))
    if (next !== '.') return next === end ? keys : undefined
  }
  return undefined
}

const escapes: Readonly<Record<string, string>> = { b: '\b', t: '\t', n: '\n', f: '\f', r: '\r' }

/** Resolves the escapes of a basic string. */
function unescape(basic: string): string {
  return basic.replaceAll(
    /\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))/g,
    (_, short?: string, long?: string, char?: string) =>
      char === undefined ? String.fromCodePoint(Number.parseInt(short ?? long!, 16)) : (escapes[char] ?? char),
  )
}
