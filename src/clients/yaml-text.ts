import { type Document, type Node, LineCounter, isAlias, isMap, isScalar, isSeq, parseDocument } from 'yaml'
import { MirrorError, exitCode } from '../lib/errors.ts'

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
