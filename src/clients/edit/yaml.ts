import { isDeepStrictEqual } from 'node:util'
import {
  isCollection,
  isMap,
  isNode,
  isPair,
  isScalar,
  isSeq,
  type Node,
  type Pair,
  stringify,
  type YAMLMap,
  type YAMLSeq,
} from 'yaml'
import { MirrorError } from '../../lib/errors.ts'
import { readYamlText, yamlNode, type YamlPath, yamlRefusal, type YamlText, yamlValue } from '../yaml-text.ts'

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
