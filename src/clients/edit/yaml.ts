import { isDeepStrictEqual } from 'node:util'
import {
  type Document,
  isAlias,
  isCollection,
  isMap,
  isNode,
  isPair,
  isScalar,
  isSeq,
  LineCounter,
  type Node,
  type Pair,
  parseDocument,
  stringify,
  type YAMLMap,
  type YAMLSeq,
} from 'yaml'
import { exitCode, MirrorError } from '../../lib/errors.ts'

/**
 * Adds a key with a value, and the maps on the way to it. The key must not be there. Keeps all else to the byte. Throws a
 * MirrorError (usage) where that is not possible.
 */
export function addYamlKey(yaml: YamlText, path: YamlPath, value: unknown): YamlText {
  const parentPath = path.slice(0, -1)
  const entry = { [path.at(-1)!]: value }
  // Refuse a key that has a value without a node of its own: a merge (`<<`) brings it in.
  if (getYamlValue(yaml, path) !== undefined) throw createUnchangeableError(yaml, path)
  const node = getYamlNode(yaml, parentPath)
  if (isMap(node)) return changeYaml(yaml, insertInto(yaml.text, node, entry, 'end'), path, () => value)
  if (node !== undefined && !isNull(node)) throw createYamlError(yaml, parentPath, 'there should be a map here')
  if (parentPath.length === 0) return changeYaml(yaml, appendBlock(yaml.text, entry), parentPath, () => entry)
  if (node === undefined) return addYamlKey(yaml, parentPath, entry)
  return changeYaml(yaml, fillEmpty(yaml.text, node, entry), parentPath, () => entry)
}

/** Adds an item to a list, and makes the list if it is missing. Throws like addYamlKey. */
export function addYamlItem(yaml: YamlText, path: YamlPath, value: unknown, where: 'start' | 'end' = 'end'): YamlText {
  const node = getYamlNode(yaml, path)
  if (node === undefined) return addYamlKey(yaml, path, [value])
  if (isNull(node)) return changeYaml(yaml, fillEmpty(yaml.text, node, [value]), path, () => [value])
  if (!isSeq(node)) throw createYamlError(yaml, path, 'there should be a list here')
  const addToList = (list: unknown) => (where === 'end' ? [...asList(list), value] : [value, ...asList(list)])
  return changeYaml(yaml, insertInto(yaml.text, node, [value], where), path, addToList)
}

/** Removes a key or an item, and what becomes empty by it. Throws like addYamlKey. */
export function removeFromYaml(yaml: YamlText, path: YamlPath): YamlText {
  const parentPath = path.slice(0, -1)
  const step = path.at(-1)!
  const node = getYamlNode(yaml, parentPath)
  if (!isCollection(node)) throw createYamlError(yaml, parentPath, 'there should be a map or a list here')
  if (node.items.length === 1 && parentPath.length > 0) return removeFromYaml(yaml, parentPath)
  const at = isSeq(node) ? Number(step) : node.items.findIndex((item) => isPair(item) && getKey(item) === step)
  return changeYaml(yaml, withoutEntry(yaml, node, at, path), parentPath, (value) => {
    if (Array.isArray(value)) return asList(value).toSpliced(at, 1)
    const rest = Object.entries(value as object).filter(([key]) => key !== step)
    // Expect null for a file without any line, not an empty map.
    return rest.length === 0 && !node.flow ? null : Object.fromEntries(rest)
  })
}

/** Returns the file with another text if only the value at `path` changed, as `change` says. Throws otherwise. */
function changeYaml(yaml: YamlText, text: string, path: YamlPath, change: (value: unknown) => unknown): YamlText {
  const expected = changeAt(getYamlValue(yaml), path, change)
  try {
    const after = readYamlText(text, yaml.path)
    if (isDeepStrictEqual(getYamlValue(after), expected)) return after
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
  }
  throw createUnchangeableError(yaml, path)
}

function createUnchangeableError(yaml: YamlText, path: YamlPath): MirrorError {
  return createYamlError(yaml, path, `${path.join('.')} cannot be changed without rewriting more of the file`)
}

function changeAt(value: unknown, path: YamlPath, change: (value: unknown) => unknown): unknown {
  const [step, ...rest] = path
  if (step === undefined) return change(value)
  if (Array.isArray(value)) return asList(value).with(Number(step), changeAt(value[Number(step)], rest, change))
  const map = (value ?? {}) as Record<string, unknown>
  return { ...map, [step]: changeAt(map[step], rest, change) }
}

/** Inserts an entry into a map, or an item into a list. */
function insertInto(text: string, node: YAMLMap | YAMLSeq, value: object, where: 'start' | 'end'): string {
  const [first, last] = [node.items[0], node.items.at(-1)]
  if (first === undefined || last === undefined) return fillEmpty(text, node, value)
  if (node.flow) {
    const inner = renderFlow(value).slice(1, -1).trim()
    if (where === 'start') return splice(text, getStart(first), 0, `${inner}, `)
    return splice(text, getEnd(last), 0, `, ${inner}`)
  }
  const from = isSeq(node) ? node.srcToken!.offset : getStart(first)
  const indent = from - findLineStart(text, from)
  const lines = renderBlock(text, value, indent)
  if (where === 'start') return splice(text, findLineStart(text, from), 0, lines)
  return appendBlock(text, value, indent, skipComments(text, findLineEnd(text, getEnd(last)), indent))
}

/** Returns the offset behind the comments that are indented deeper than a collection: they belong to its last item. */
function skipComments(text: string, from: number, indent: number): number {
  for (let at = from; at < text.length;) {
    const end = findLineEnd(text, at + 1)
    const line = text.slice(at, end)
    const margin = /^ *(?=#)/.exec(line)?.[0].length
    if (margin === undefined ? line.trim() !== '' : margin <= indent) break
    at = end
    if (margin !== undefined) from = end
  }
  return from
}

/** Puts a block at the end of a line. A missing final newline stays missing. */
function appendBlock(text: string, value: object, indent = 0, at = text.length): string {
  const lines = renderBlock(text, value, indent)
  if (at > 0 && text[at - 1] !== '\n') return splice(text, at, 0, getNewline(text) + lines.trimEnd())
  return splice(text, at, 0, lines)
}

/** Replaces null or an empty collection. */
function fillEmpty(text: string, node: Node, value: object): string {
  const [start, end] = node.range!
  const before = /\s$/.test(text.slice(0, start)) ? '' : ' '
  const after = text[end] === '#' ? ' ' : ''
  return splice(text, start, end - start, `${before}${renderFlow(value)}${after}`)
}

function withoutEntry(yaml: YamlText, node: YAMLMap | YAMLSeq, at: number, path: YamlPath): string {
  const { text } = yaml
  const item = node.items[at]!
  if (node.flow) {
    const next = node.items[at + 1]
    const from = at === 0 ? getStart(item) : getEnd(node.items[at - 1])
    return splice(text, from, (at === 0 && next !== undefined ? getStart(next) : getEnd(item)) - from, '')
  }
  const dash = isSeq(node) && node.srcToken?.type === 'block-seq' ? node.srcToken.items[at]?.start : undefined
  const start = dash?.find(({ type }) => type === 'seq-item-ind')?.offset ?? getStart(item)
  const from = findLineStart(text, start)
  if (text.slice(from, start).trim() !== '')
    throw createYamlError(yaml, path, 'this cannot be removed without rewriting the file')
  return splice(text, from, findLineEnd(text, getEnd(item)) - from, '')
}

function renderBlock(text: string, value: object, indent: number): string {
  const margin = ' '.repeat(indent)
  const lines = stringify(value, { lineWidth: 0, indentSeq: false }).trimEnd().split('\n')
  return lines.map((line) => (line === '' ? '' : margin + line) + getNewline(text)).join('')
}

/** Renders a value in one line, as JSON: JSON is YAML too, so that a JSON file stays JSON. */
function renderFlow(value: object): string {
  return JSON.stringify(value, undefined, 1).replaceAll(/\n\s*/g, ' ')
}

function getStart(item: unknown): number {
  const node = isPair(item) ? item.key : item
  return isNode(node) ? (node.range?.[0] ?? 0) : 0
}

/** Returns the offset behind the content of an item: before its comment and newline. */
function getEnd(item: unknown): number {
  if (isPair(item)) return isNode(item.value) ? getEnd(item.value) : getEnd(item.key)
  if (isCollection(item) && !item.flow && item.items.length > 0) return getEnd(item.items.at(-1))
  return isNode(item) ? (item.range?.[1] ?? 0) : 0
}

function findLineStart(text: string, at: number): number {
  const start = text.lastIndexOf('\n', at - 1) + 1
  // Skip the byte order mark: it is not part of the line.
  return start === 0 && text.startsWith('\uFEFF') ? 1 : start
}

/** Returns the offset of the next line, or of the end of the text. */
function findLineEnd(text: string, at: number): number {
  if (at > 0 && text[at - 1] === '\n') return at
  const newline = text.indexOf('\n', at)
  return newline === -1 ? text.length : newline + 1
}

function getNewline(text: string): string {
  return text.includes('\r\n') ? '\r\n' : '\n'
}

function splice(text: string, at: number, length: number, inserted: string): string {
  return text.slice(0, at) + inserted + text.slice(at + length)
}

function isNull(node: Node): boolean {
  return isScalar(node) && node.value === null
}

function getKey({ key }: Pair): unknown {
  return isScalar(key) ? key.value : key
}

function asList(value: unknown): unknown[] {
  return value as unknown[]
}

/** Holds a user's YAML file. */
export interface YamlText {
  readonly path: string
  readonly text: string
  readonly document: Document.Parsed
}

/** Lists keys of maps and indices of lists, from the root. */
export type YamlPath = readonly (string | number)[]

/**
 * Reads the one YAML document of a file; an empty file is one. Throws a MirrorError (usage) with line and column for invalid
 * YAML, a carriage return without a newline, duplicate keys, and a second document, because its program might read another one
 * than mirror.
 */
export function readYamlText(text: string, path: string): YamlText {
  const document = parseDocument(text, { prettyErrors: false, keepSourceTokens: true, merge: true })
  const yaml = { path, text, document }
  // Refuse a bare carriage return: Go's parsers take it for a line end, this parser does not.
  const bareReturn = text.search(/\r(?!\n)/)
  if (bareReturn !== -1) throw createErrorAt(yaml, bareReturn, 'a carriage return without a newline')
  const [error] = document.errors
  if (error?.code === 'MULTIPLE_DOCS') throw createErrorAt(yaml, error.pos[0], 'a second document begins here')
  if (error) throw createErrorAt(yaml, error.pos[0], error.message)
  try {
    document.toJS()
  } catch (cause) {
    // Refuse an alias without an anchor, and endless aliases.
    if (!(cause instanceof ReferenceError)) throw cause
    throw createErrorAt(yaml, 0, cause.message)
  }
  return yaml
}

/** Returns the value at a path as plain JavaScript; undefined where there is none. */
export function getYamlValue(yaml: YamlText, path: YamlPath = []): unknown {
  let at: unknown = yaml.document.toJS()
  for (const step of path) at = typeof at === 'object' && at !== null ? (at as never)[step] : undefined
  return at
}

/** Returns the node at a path, with aliases resolved; undefined where there is none, or where a merge (`<<`) brings it in. */
export function getYamlNode({ document }: YamlText, path: YamlPath): Node | undefined {
  let at = resolveAlias(document.contents, document)
  for (const step of path) {
    const next: unknown = isMap(at)
      ? at.items.find(({ key }) => (isScalar(key) ? key.value : key) === step)?.value
      : isSeq(at) && typeof step === 'number'
        ? at.items[step]
        : undefined
    at = resolveAlias(next, document)
    if (at === undefined) return undefined
  }
  return at
}

/** Returns the MirrorError (usage) that refuses to change a file because of the value at a path. */
export function createYamlError(yaml: YamlText, path: YamlPath, what: string, hints: string[] = []): MirrorError {
  let known = path
  while (known.length > 0 && !getYamlNode(yaml, known)?.range) known = known.slice(0, -1)
  return createErrorAt(yaml, getYamlNode(yaml, known)?.range?.[0] ?? 0, what, hints)
}

function createErrorAt({ path, text }: YamlText, offset: number, what: string, hints: string[] = []): MirrorError {
  const lines = new LineCounter()
  for (let at = text.indexOf('\n'); at !== -1; at = text.indexOf('\n', at + 1)) lines.addNewLine(at + 1)
  lines.lineStarts.unshift(0)
  const { line, col } = lines.linePos(offset)
  const message = `${path}, line ${Math.max(line, 1)}, column ${Math.max(col, 1)}: ${what.replace(/\.$/, '')}. It is left alone.`
  return new MirrorError(message, { exit: exitCode.usage, hints })
}

function resolveAlias(node: unknown, document: Document): Node | undefined {
  if (isAlias(node)) return resolveAlias(node.resolve(document), document)
  return isMap(node) || isSeq(node) || isScalar(node) ? node : undefined
}
