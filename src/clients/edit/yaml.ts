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
 * Puts a value under a key that is not there yet; maps on the way to it are made. All else stays to the byte. Throws a
 * MirrorError (usage) where that cannot be done.
 */
export function addYamlKey(yaml: YamlText, path: YamlPath, value: unknown): YamlText {
  const holder = path.slice(0, -1)
  const made = { [path.at(-1)!]: value }
  // Merged in from elsewhere, as there is no such key to be seen.
  if (yamlValue(yaml, path) !== undefined) throw unchangeable(yaml, path)
  const node = yamlNode(yaml, holder)
  if (isMap(node)) return replaced(yaml, insertInto(yaml.text, node, made, 'end'), path, () => value)
  if (node !== undefined && !isNothing(node)) throw yamlRefusal(yaml, holder, 'there should be a map here')
  if (holder.length === 0) return replaced(yaml, appended(yaml.text, made), holder, () => made)
  if (node === undefined) return addYamlKey(yaml, holder, made)
  return replaced(yaml, filled(yaml.text, node, made), holder, () => made)
}

/** Puts a value into a list, which is made if it is not there. See addYamlKey. */
export function addYamlItem(yaml: YamlText, path: YamlPath, value: unknown, where: 'start' | 'end' = 'end'): YamlText {
  const node = yamlNode(yaml, path)
  if (node === undefined) return addYamlKey(yaml, path, [value])
  if (isNothing(node)) return replaced(yaml, filled(yaml.text, node, [value]), path, () => [value])
  if (!isSeq(node)) throw yamlRefusal(yaml, path, 'there should be a list here')
  const longer = (list: unknown) => (where === 'end' ? [...asList(list), value] : [value, ...asList(list)])
  return replaced(yaml, insertInto(yaml.text, node, [value], where), path, longer)
}

/** Takes away a key or an item, and what has become empty by it. See addYamlKey. */
export function removeFromYaml(yaml: YamlText, path: YamlPath): YamlText {
  const holder = path.slice(0, -1)
  const step = path.at(-1)!
  const node = yamlNode(yaml, holder)
  if (!isCollection(node)) throw yamlRefusal(yaml, holder, 'there should be a map or a list here')
  if (node.items.length === 1 && holder.length > 0) return removeFromYaml(yaml, holder)
  const at = isSeq(node) ? Number(step) : node.items.findIndex((item) => isPair(item) && keyOf(item) === step)
  return replaced(yaml, without(yaml, node, at, path), holder, (value) => {
    if (Array.isArray(value)) return asList(value).toSpliced(at, 1)
    const rest = Object.entries(value as object).filter(([key]) => key !== step)
    // A file whose last line went says nothing at all.
    return rest.length === 0 && !node.flow ? null : Object.fromEntries(rest)
  })
}

/** The file with another text, if that means what it should: the value at `path` changed, and nothing else. */
function replaced(yaml: YamlText, text: string, path: YamlPath, change: (value: unknown) => unknown): YamlText {
  const expected = changeAt(yamlValue(yaml), path, change)
  try {
    const after = readYamlText(text, yaml.path)
    if (isDeepStrictEqual(yamlValue(after), expected)) return after
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
  }
  throw unchangeable(yaml, path)
}

function unchangeable(yaml: YamlText, path: YamlPath): MirrorError {
  return yamlRefusal(
    yaml,
    path,
    `${path.join('.')} is written in a way that cannot be changed without rewriting more of it`,
  )
}

function changeAt(value: unknown, path: YamlPath, change: (value: unknown) => unknown): unknown {
  const [step, ...rest] = path
  if (step === undefined) return change(value)
  if (Array.isArray(value)) return asList(value).with(Number(step), changeAt(value[Number(step)], rest, change))
  const map = (value ?? {}) as Record<string, unknown>
  return { ...map, [step]: changeAt(map[step], rest, change) }
}

/** A map with one more entry, or a list with one more item. */
function insertInto(text: string, node: YAMLMap | YAMLSeq, value: object, where: 'start' | 'end'): string {
  const [first, last] = [node.items[0], node.items.at(-1)]
  if (first === undefined || last === undefined) return filled(text, node, value)
  if (node.flow) {
    const inner = flow(value).slice(1, -1).trim()
    if (where === 'start') return spliced(text, startOf(first), 0, `${inner}, `)
    return spliced(text, endOf(last), 0, `, ${inner}`)
  }
  const from = isSeq(node) ? node.srcToken!.offset : startOf(first)
  const indent = from - lineStart(text, from)
  const lines = block(text, value, indent)
  if (where === 'start') return spliced(text, lineStart(text, from), 0, lines)
  return appended(text, value, indent, behindRemarks(text, lineEnd(text, endOf(last)), indent))
}

/** Behind the remarks that stand deeper than a collection, and so belong to its last item: a block put before them would take them for its text. */
function behindRemarks(text: string, from: number, indent: number): number {
  for (let at = from; at < text.length;) {
    const end = lineEnd(text, at + 1)
    const line = text.slice(at, end)
    const margin = /^ *(?=#)/.exec(line)?.[0].length
    if (margin === undefined ? line.trim() !== '' : margin <= indent) break
    at = end
    if (margin !== undefined) from = end
  }
  return from
}

/** Lines of their own at the end of a line; a final newline that was missing stays missing. */
function appended(text: string, value: object, indent = 0, at = text.length): string {
  const lines = block(text, value, indent)
  if (at > 0 && text[at - 1] !== '\n') return spliced(text, at, 0, newlineOf(text) + lines.trimEnd())
  return spliced(text, at, 0, lines)
}

/** In the place of nothing, or of an empty collection. */
function filled(text: string, node: Node, value: object): string {
  const [start, end] = node.range!
  const before = /\s$/.test(text.slice(0, start)) ? '' : ' '
  const after = text[end] === '#' ? ' ' : ''
  return spliced(text, start, end - start, `${before}${flow(value)}${after}`)
}

function without(yaml: YamlText, node: YAMLMap | YAMLSeq, at: number, path: YamlPath): string {
  const { text } = yaml
  const item = node.items[at]!
  if (node.flow) {
    const next = node.items[at + 1]
    const from = at === 0 ? startOf(item) : endOf(node.items[at - 1])
    return spliced(text, from, (at === 0 && next !== undefined ? startOf(next) : endOf(item)) - from, '')
  }
  const dash = isSeq(node) && node.srcToken?.type === 'block-seq' ? node.srcToken.items[at]?.start : undefined
  const start = dash?.find(({ type }) => type === 'seq-item-ind')?.offset ?? startOf(item)
  const from = lineStart(text, start)
  if (text.slice(from, start).trim() !== '')
    throw yamlRefusal(yaml, path, 'this cannot be taken away without rewriting the file')
  return spliced(text, from, lineEnd(text, endOf(item)) - from, '')
}

function block(text: string, value: object, indent: number): string {
  const margin = ' '.repeat(indent)
  const lines = stringify(value, { lineWidth: 0, indentSeq: false }).trimEnd().split('\n')
  return lines.map((line) => (line === '' ? '' : margin + line) + newlineOf(text)).join('')
}

/** In one line; as JSON, which is YAML too, so that a JSON file stays one. */
function flow(value: object): string {
  return JSON.stringify(value, undefined, 1).replaceAll(/\n\s*/g, ' ')
}

function startOf(item: unknown): number {
  const node = isPair(item) ? item.key : item
  return isNode(node) ? (node.range?.[0] ?? 0) : 0
}

/** Where the content of an item ends: before the comment and the newline behind it. */
function endOf(item: unknown): number {
  if (isPair(item)) return isNode(item.value) ? endOf(item.value) : endOf(item.key)
  if (isCollection(item) && !item.flow && item.items.length > 0) return endOf(item.items.at(-1))
  return isNode(item) ? (item.range?.[1] ?? 0) : 0
}

function lineStart(text: string, at: number): number {
  const start = text.lastIndexOf('\n', at - 1) + 1
  // A byte order mark takes no place in the line.
  return start === 0 && text.startsWith('\uFEFF') ? 1 : start
}

/** The start of the next line, or the end of the text. */
function lineEnd(text: string, at: number): number {
  if (at > 0 && text[at - 1] === '\n') return at
  const newline = text.indexOf('\n', at)
  return newline === -1 ? text.length : newline + 1
}

function newlineOf(text: string): string {
  return text.includes('\r\n') ? '\r\n' : '\n'
}

function spliced(text: string, at: number, length: number, put: string): string {
  return text.slice(0, at) + put + text.slice(at + length)
}

function isNothing(node: Node): boolean {
  return isScalar(node) && node.value === null
}

function keyOf({ key }: Pair): unknown {
  return isScalar(key) ? key.value : key
}

function asList(value: unknown): unknown[] {
  return value as unknown[]
}

/** A YAML file of the user's. */
export interface YamlText {
  readonly path: string
  readonly text: string
  readonly document: Document.Parsed
}

/** Keys of maps and indices of lists, from the root on. */
export type YamlPath = readonly (string | number)[]

/**
 * Reads the one YAML document of a file; an empty file is one. Throws a MirrorError (usage) with line and column for what is no
 * YAML, for a carriage return alone, for keys that are there twice, and for a second document: whoever reads the file might take another one than we do.
 */
export function readYamlText(text: string, path: string): YamlText {
  const document = parseDocument(text, { prettyErrors: false, keepSourceTokens: true, merge: true })
  const yaml = { path, text, document }
  // The parsers of Go take one for a line end; this one does not.
  const bare = text.search(/\r(?!\n)/)
  if (bare !== -1) throw yamlProblem(yaml, bare, 'a carriage return without a newline')
  const [error] = document.errors
  if (error?.code === 'MULTIPLE_DOCS') throw yamlProblem(yaml, error.pos[0], 'a second document begins here')
  if (error) throw yamlProblem(yaml, error.pos[0], error.message)
  try {
    document.toJS()
  } catch (cause) {
    // Aliases without an anchor, or without end.
    if (!(cause instanceof ReferenceError)) throw cause
    throw yamlProblem(yaml, 0, cause.message)
  }
  return yaml
}

/** The value at a place as plain JavaScript; undefined when there is none. */
export function yamlValue(yaml: YamlText, path: YamlPath = []): unknown {
  let at: unknown = yaml.document.toJS()
  for (const step of path) at = typeof at === 'object' && at !== null ? (at as never)[step] : undefined
  return at
}

/** The node at a place, through aliases; undefined when there is none, or when it comes out of a merge (`<<`). */
export function yamlNode({ document }: YamlText, path: YamlPath): Node | undefined {
  let at = throughAlias(document.contents, document)
  for (const step of path) {
    const next: unknown = isMap(at)
      ? at.items.find(({ key }) => (isScalar(key) ? key.value : key) === step)?.value
      : isSeq(at) && typeof step === 'number'
        ? at.items[step]
        : undefined
    at = throughAlias(next, document)
    if (at === undefined) return undefined
  }
  return at
}

/** The refusal (usage) to touch a file because of what stands at a place in it. */
export function yamlRefusal(yaml: YamlText, path: YamlPath, what: string, hints: string[] = []): MirrorError {
  let known = path
  while (known.length > 0 && !yamlNode(yaml, known)?.range) known = known.slice(0, -1)
  return yamlProblem(yaml, yamlNode(yaml, known)?.range?.[0] ?? 0, what, hints)
}

function yamlProblem({ path, text }: YamlText, offset: number, what: string, hints: string[] = []): MirrorError {
  const lines = new LineCounter()
  for (let at = text.indexOf('\n'); at !== -1; at = text.indexOf('\n', at + 1)) lines.addNewLine(at + 1)
  lines.lineStarts.unshift(0)
  const { line, col } = lines.linePos(offset)
  const message = `${path}, line ${Math.max(line, 1)}, column ${Math.max(col, 1)}: ${what.replace(/\.$/, '')}. It is left alone.`
  return new MirrorError(message, { exit: exitCode.usage, hints })
}

function throughAlias(node: unknown, document: Document): Node | undefined {
  if (isAlias(node)) return throughAlias(node.resolve(document), document)
  return isMap(node) || isSeq(node) || isScalar(node) ? node : undefined
}
