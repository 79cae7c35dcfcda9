import { dirname, resolve } from 'node:path'
import { Alias, LineCounter, parseDocument, Scalar, YAMLMap, YAMLSeq } from 'yaml'
import { type Config, type ConfigLayer, defaultConfig, mergeConfig } from './config.ts'
import { settings } from './schema.ts'
import type { ConfigEntry, ConfigNode, ConfigProblem, SourcePosition } from './values.ts'

// Limit the content: a configuration is small, and a larger one is a mistake, or has aliases that expand without end.
const maxTextLength = 256 * 1024
const maxNodes = 10_000
const maxDepth = 16

/** Holds the text of a file and its path. Relative paths in it start from the file's folder, `~/` from the home folder. */
interface ConfigFile {
  text: string
  /** Is an absolute path. */
  path: string
  /** Names the file in problems. */
  label: string
  homedir: string
}

/** Parses a mirror.yaml into the keys that it sets, and all its problems in the order of its lines. */
export function parseConfigFile({ text, path, label, homedir }: ConfigFile): {
  layer: ConfigLayer
  problems: ConfigProblem[]
} {
  const { root, problems } = readYaml(text, label)
  const resolvePath = (to: string) => (to.startsWith('~/') ? resolve(homedir, to.slice(2)) : resolve(dirname(path), to))
  const layer = settings.read(root, '', { problems, resolvePath }) ?? {}
  return { layer, problems: problems.toSorted(comparePositions) }
}

/** Parses a mirror.yaml over the defaults; returns all its problems in the order of its lines when there are any. */
export function parseConfig(file: ConfigFile): { config: Config } | { problems: ConfigProblem[] } {
  const { layer, problems } = parseConfigFile(file)
  return problems.length > 0 ? { problems } : { config: mergeConfig(defaultConfig(), layer) }
}

function comparePositions(a: ConfigProblem, b: ConfigProblem): number {
  return (a.position.line ?? 0) - (b.position.line ?? 0) || (a.position.column ?? 0) - (b.position.column ?? 0)
}

/** Parses YAML 1.2 into a tree with positions. Reports invalid syntax, several documents and content beyond the limits. */
function readYaml(text: string, source: string): { root: ConfigNode; problems: ConfigProblem[] } {
  const start: SourcePosition = { source, line: 1, column: 1 }
  const absent: ConfigNode = { kind: 'absent', position: start }
  if (text.length > maxTextLength || isNestedTooDeep(text))
    return {
      root: absent,
      problems: [{ position: start, path: '', message: 'is too large or nested too deep for a configuration' }],
    }

  const lines = new LineCounter()
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false, version: '1.2', uniqueKeys: false })
  const getPosition = (offset: number | undefined): SourcePosition => {
    if (offset === undefined) return start
    const { line, col } = lines.linePos(offset)
    return { source, line: Math.max(line, 1), column: Math.max(col, 1) }
  }
  const problems: ConfigProblem[] = [...document.errors, ...document.warnings].slice(0, 20).map((error) => ({
    position: getPosition(error.pos[0]),
    path: '',
    message: `is not valid YAML: ${describeSyntax(error.message)}`,
  }))
  // Ignore the content of a document with syntax errors, because its values would raise false problems.
  if (document.errors.length > 0) return { root: absent, problems }

  const anchors = new Map<string, unknown>()
  let nodes = 0
  let unbounded = false
  const root = toNode(document.contents, start, 0)
  return { root, problems }

  function toNode(node: unknown, parent: SourcePosition, depth: number): ConfigNode {
    if (node instanceof Alias) {
      const position = getPosition(node.range?.[0])
      if (!anchors.has(node.source))
        problems.push({ position, path: '', message: `has no anchor named ${node.source}` })
      return toNode(anchors.get(node.source), position, depth + 1)
    }
    const range = node instanceof Scalar || node instanceof YAMLMap || node instanceof YAMLSeq ? node.range : undefined
    const position = range ? getPosition(range[0]) : parent
    nodes += 1
    if (nodes > maxNodes || depth > maxDepth) {
      if (!unbounded) problems.push({ position, path: '', message: 'has too many values, or aliases without end' })
      unbounded = true
      return { kind: 'absent', position }
    }
    if (node instanceof YAMLMap) {
      if (node.anchor) anchors.set(node.anchor, node)
      const entries: ConfigEntry[] = []
      for (const { key, value } of node.items) {
        const keyNode = toNode(key, position, depth + 1)
        if (keyNode.kind === 'scalar')
          entries.push({
            key: keyNode.text,
            keyPosition: keyNode.position,
            value: toNode(value, keyNode.position, depth + 1),
          })
        else problems.push({ position: keyNode.position, path: '', message: 'has a key that is not a plain value' })
      }
      return { kind: 'map', position, entries }
    }
    if (node instanceof YAMLSeq) {
      if (node.anchor) anchors.set(node.anchor, node)
      return { kind: 'list', position, items: node.items.map((item) => toNode(item, position, depth + 1)) }
    }
    if (!(node instanceof Scalar)) return { kind: 'absent', position }
    if (node.anchor) anchors.set(node.anchor, node)
    if (node.value === null || node.value === undefined) return { kind: 'absent', position }
    return {
      kind: 'scalar',
      position,
      text: typeof node.value === 'string' ? node.value : (node.source ?? String(node.value)),
    }
  }
}

/** Puts the parser's words for frequent mistakes into plain ones. */
function describeSyntax(message: string): string {
  if (/^Implicit (?:map )?keys need to be/.test(message)) return 'a colon is missing after a key'
  const bracket = /end with a ([\]}])/.exec(message)?.[1]
  if (bracket !== undefined) return `a ${bracket === ']' ? '[' : '{'} is not closed`
  return message.startsWith('Tabs are not allowed') ? 'it is indented with a tab; use spaces' : message
}

/** Checks whether collections are nested so deep that the parser, which is recursive, would overflow the stack. */
function isNestedTooDeep(text: string): boolean {
  if (/(?:[-?:][ \t]+){64}/.test(text)) return true
  let depth = 0
  for (const character of text) {
    if (character === '[' || character === '{') depth += 1
    else if (character === ']' || character === '}') depth = Math.max(0, depth - 1)
    if (depth > 64) return true
  }
  return false
}
