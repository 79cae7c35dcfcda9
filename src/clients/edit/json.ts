import { type Node, type ParseError, parseTree, printParseErrorCode } from 'jsonc-parser'
import { exitCode, MirrorError } from '../../lib/errors.ts'

const byteOrderMark = '\uFEFF'

/** What a person is told instead of the parser's own names. */
const complaints: Readonly<Record<string, string>> = {
  InvalidCommentToken: 'a comment, which JSON does not have',
  EndOfFileExpected: 'something after the end of the object',
  PropertyNameExpected: 'no name where one is expected, or a comma too many',
  ValueExpected: 'no value where one is expected, or a comma too many',
  ColonExpected: 'no colon after a name',
  CommaExpected: 'no comma between two entries',
  CloseBraceExpected: 'an object that is not closed',
  CloseBracketExpected: 'a list that is not closed',
  UnexpectedEndOfString: 'a text that is not closed',
}

/**
 * Reads a file that holds one JSON object, as strictly as the programs that it is for. Throws a MirrorError (usage) with line
 * and column for anything that could not be changed safely: comments, trailing data, a key that stands twice, an empty file.
 * https://www.rfc-editor.org/rfc/rfc8259
 */
export function readJsonObject(path: string, text: string): Record<string, unknown> {
  const json = withoutMark(text)
  const refuse = (offset: number, why: string): never => {
    const before = json.slice(0, offset).split(/\r\n|\n|\r/)
    const place = `line ${before.length}, column ${before.at(-1)!.length + 1}`
    throw new MirrorError(`${path} is not what its program can read, so it is left alone: ${place}: ${why}.`, {
      exit: exitCode.usage,
      hints: [`Fix ${path} and run this again`],
    })
  }
  if (json.trim() === '') refuse(0, 'the file is empty')
  const errors: ParseError[] = []
  const root = parseTree(json, errors, { disallowComments: true, allowTrailingComma: false })
  const first = errors[0]
  if (first !== undefined) {
    const name = printParseErrorCode(first.error)
    refuse(first.offset, complaints[name] ?? name.replaceAll(/(?<=[a-z])(?=[A-Z])/g, ' ').toLowerCase())
  }
  try {
    JSON.parse(json)
  } catch (error) {
    // What only the stricter parser minds.
    if (!(error instanceof SyntaxError)) throw error
    refuse(Number(/position (\d+)/.exec(error.message)?.[1] ?? 0), error.message.replace(/ in JSON.*/s, ''))
  }
  if (root?.type !== 'object') refuse(root?.offset ?? 0, 'there is no object')
  const twice = findTwin(root!)
  if (twice) refuse(twice.offset, `the key ${JSON.stringify(twice.value)} stands there twice`)
  return JSON.parse(json) as Record<string, unknown>
}

/** The text with `item` at the front of the list at `key`, which is made when it is not there; all else stays as it is. */
export function putFirst(text: string, key: string, item: string): string {
  const json = withoutMark(text)
  const root = parseTree(json)!
  const list = memberOf(root, key)?.children![1]
  if (list === undefined) return markOf(text) + addMember(json, root, key, `[${JSON.stringify(item)}]`)
  // dockerd takes null for an empty list.
  if (list.type !== 'array') return markOf(text) + splice(json, list.offset, endOf(list), `[${JSON.stringify(item)}]`)
  const [first, second] = list.children ?? []
  if (first === undefined) return markOf(text) + splice(json, list.offset + 1, endOf(list) - 1, JSON.stringify(item))
  const gap = gapBefore(json, first)
  const between = second ? gapBefore(json, second) : gap.includes('\n') ? gap : ' '
  return markOf(text) + splice(json, first.offset, first.offset, `${JSON.stringify(item)},${between}`)
}

/**
 * The text without those items of the list at `key` that are ours. A list that becomes empty goes with its key, or stays as
 * `[]`. Nothing changes where there is no such list, or none of ours in it.
 */
export function takeOut(
  text: string,
  key: string,
  isOurs: (item: unknown) => boolean,
  emptied: 'drop' | 'keep',
): string {
  const json = withoutMark(text)
  const root = parseTree(json)!
  const member = memberOf(root, key)
  const list = member?.children![1]
  const items = list?.children ?? []
  const at = items.findIndex((item) => isOurs(item.value))
  if (list?.type !== 'array' || at === -1) return text
  if (items.length > 1) return takeOut(markOf(text) + removeAt(json, items, at), key, isOurs, emptied)
  if (emptied === 'keep') return markOf(text) + splice(json, list.offset, endOf(list), '[]')
  const members = root.children!
  if (members.length > 1) return markOf(text) + removeAt(json, members, members.indexOf(member!))
  return markOf(text) + splice(json, root.offset + 1, endOf(root) - 1, '')
}

/** The text with an empty list at `key`, where it has nothing there. */
export function putEmptyList(text: string, key: string): string {
  const json = withoutMark(text)
  const root = parseTree(json)!
  return memberOf(root, key) ? text : markOf(text) + addMember(json, root, key, '[]')
}

function addMember(json: string, root: Node, key: string, value: string): string {
  const last = root.children?.at(-1)
  if (last === undefined) {
    const lineEnd = json.includes('\r\n') ? '\r\n' : '\n'
    const line = `${lineEnd}  ${JSON.stringify(key)}: ${value}${lineEnd}`
    return splice(json, root.offset + 1, endOf(root) - 1, line)
  }
  // Set as its neighbour is: the same space before it, and around its colon.
  const [name, neighbour] = last.children!
  const colon = json.slice(endOf(name!), neighbour!.offset)
  const set = /[\r\n]/.test(colon) ? ': ' : colon
  return splice(json, endOf(last), endOf(last), `,${gapBefore(json, last)}${JSON.stringify(key)}${set}${value}`)
}

/** Without one of several neighbours, its comma, and the space that set it apart. */
function removeAt(json: string, nodes: readonly Node[], at: number): string {
  const next = nodes[at + 1]
  if (next) return splice(json, nodes[at]!.offset, next.offset, '')
  return splice(json, endOf(nodes[at - 1]!), endOf(nodes[at]!), '')
}

function memberOf(root: Node, key: string): Node | undefined {
  return root.children?.find((member) => member.children?.[0]?.value === key)
}

/** The second key of two that are the same, at any depth. */
function findTwin(node: Node): Node | undefined {
  const seen = new Set<unknown>()
  for (const child of node.children ?? []) {
    if (node.type === 'object') {
      const key = child.children![0]!
      if (seen.has(key.value)) return key
      seen.add(key.value)
    }
    const deeper = findTwin(child)
    if (deeper) return deeper
  }
  return undefined
}

function gapBefore(json: string, node: Node): string {
  return /[ \t\r\n]*$/.exec(json.slice(0, node.offset))![0]
}

function splice(text: string, from: number, to: number, inserted: string): string {
  return text.slice(0, from) + inserted + text.slice(to)
}

function endOf(node: Node): number {
  return node.offset + node.length
}

function markOf(text: string): string {
  return text.startsWith(byteOrderMark) ? byteOrderMark : ''
}

function withoutMark(text: string): string {
  return text.slice(markOf(text).length)
}
