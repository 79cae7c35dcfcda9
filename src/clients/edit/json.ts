import { type Node, type ParseError, parseTree, printParseErrorCode } from 'jsonc-parser'
import { exitCode, MirrorError } from '../../lib/errors.ts'

const byteOrderMark = '\uFEFF'

/** Texts for the parser's error codes. */
const problemTexts: Readonly<Record<string, string>> = {
  InvalidCommentToken: 'a comment, which JSON does not have',
  EndOfFileExpected: 'something after the end of the object',
  PropertyNameExpected: 'a name is missing, or there is a comma too many',
  ValueExpected: 'a value is missing, or there is a comma too many',
  ColonExpected: 'a colon is missing after a name',
  CommaExpected: 'a comma is missing between two entries',
  CloseBraceExpected: 'an object that is not closed',
  CloseBracketExpected: 'a list that is not closed',
  UnexpectedEndOfString: 'a string that is not closed',
}

/**
 * Reads a file that holds one JSON object, as strictly as the program that reads it. Throws a MirrorError (usage) with line and
 * column for a file that cannot be changed safely: comments, trailing data, a duplicate key, an empty file.
 * https://www.rfc-editor.org/rfc/rfc8259
 */
export function readJsonObject(path: string, text: string): Record<string, unknown> {
  const json = withoutByteOrderMark(text)
  const refuse = (offset: number, why: string): never => {
    const before = json.slice(0, offset).split(/\r\n|\n|\r/)
    const position = `line ${before.length}, column ${before.at(-1)!.length + 1}`
    throw new MirrorError(`${path} is not valid JSON, so it is left alone: ${position}: ${why}.`, {
      exit: exitCode.usage,
      hints: [`Fix ${path}, then run the command again`],
    })
  }
  if (json.trim() === '') refuse(0, 'the file is empty')
  const errors: ParseError[] = []
  const root = parseTree(json, errors, { disallowComments: true, allowTrailingComma: false })
  const first = errors[0]
  if (first !== undefined) {
    const name = printParseErrorCode(first.error)
    refuse(first.offset, problemTexts[name] ?? name.replaceAll(/(?<=[a-z])(?=[A-Z])/g, ' ').toLowerCase())
  }
  try {
    JSON.parse(json)
  } catch (error) {
    // Report what only the stricter parser rejects.
    if (!(error instanceof SyntaxError)) throw error
    refuse(Number(/position (\d+)/.exec(error.message)?.[1] ?? 0), error.message.replace(/ in JSON.*/s, ''))
  }
  if (root?.type !== 'object') refuse(root?.offset ?? 0, 'there is no object')
  const duplicate = findDuplicateKey(root!)
  if (duplicate) refuse(duplicate.offset, `the key ${JSON.stringify(duplicate.value)} stands there twice`)
  return JSON.parse(json) as Record<string, unknown>
}

/** Puts `item` first into the list at `key` of the root, and makes the list if it is missing. Keeps all else to the byte. */
export function prependJsonItem(text: string, key: string, item: string): string {
  const json = withoutByteOrderMark(text)
  const root = parseTree(json)!
  const list = findMember(root, key)?.children![1]
  if (list === undefined) return byteOrderMarkOf(text) + addMember(json, root, key, `[${JSON.stringify(item)}]`)
  // Replace null: dockerd takes it for an empty list.
  if (list.type !== 'array')
    return byteOrderMarkOf(text) + splice(json, list.offset, endOf(list), `[${JSON.stringify(item)}]`)
  const [first, second] = list.children ?? []
  if (first === undefined)
    return byteOrderMarkOf(text) + splice(json, list.offset + 1, endOf(list) - 1, JSON.stringify(item))
  const gap = gapBefore(json, first)
  const between = second ? gapBefore(json, second) : gap.includes('\n') ? gap : ' '
  return byteOrderMarkOf(text) + splice(json, first.offset, first.offset, `${JSON.stringify(item)},${between}`)
}

/**
 * Removes the items for which `isOurs` holds from the list at `key`. A list that becomes empty is dropped with its key, or kept as
 * `[]`. Returns the text unchanged where there is no such list or item.
 */
export function removeJsonItems(
  text: string,
  key: string,
  isOurs: (item: unknown) => boolean,
  emptied: 'drop' | 'keep',
): string {
  const json = withoutByteOrderMark(text)
  const root = parseTree(json)!
  const member = findMember(root, key)
  const list = member?.children![1]
  const items = list?.children ?? []
  const at = items.findIndex((item) => isOurs(item.value))
  if (list?.type !== 'array' || at === -1) return text
  if (items.length > 1) return removeJsonItems(byteOrderMarkOf(text) + removeAt(json, items, at), key, isOurs, emptied)
  if (emptied === 'keep') return byteOrderMarkOf(text) + splice(json, list.offset, endOf(list), '[]')
  const members = root.children!
  if (members.length > 1) return byteOrderMarkOf(text) + removeAt(json, members, members.indexOf(member!))
  return byteOrderMarkOf(text) + splice(json, root.offset + 1, endOf(root) - 1, '')
}

/** Adds an empty list at `key` if the key is missing. */
export function addEmptyJsonList(text: string, key: string): string {
  const json = withoutByteOrderMark(text)
  const root = parseTree(json)!
  return findMember(root, key) ? text : byteOrderMarkOf(text) + addMember(json, root, key, '[]')
}

function addMember(json: string, root: Node, key: string, value: string): string {
  const last = root.children?.at(-1)
  if (last === undefined) {
    const lineEnd = json.includes('\r\n') ? '\r\n' : '\n'
    const line = `${lineEnd}  ${JSON.stringify(key)}: ${value}${lineEnd}`
    return splice(json, root.offset + 1, endOf(root) - 1, line)
  }
  // Format it like its neighbour: the same space before it and around its colon.
  const [name, neighbour] = last.children!
  const colon = json.slice(endOf(name!), neighbour!.offset)
  const set = /[\r\n]/.test(colon) ? ': ' : colon
  return splice(json, endOf(last), endOf(last), `,${gapBefore(json, last)}${JSON.stringify(key)}${set}${value}`)
}

/** Removes one of several entries with its comma and the space before the next one. */
function removeAt(json: string, nodes: readonly Node[], at: number): string {
  const next = nodes[at + 1]
  if (next) return splice(json, nodes[at]!.offset, next.offset, '')
  return splice(json, endOf(nodes[at - 1]!), endOf(nodes[at]!), '')
}

function findMember(root: Node, key: string): Node | undefined {
  return root.children?.find((member) => member.children?.[0]?.value === key)
}

/** Finds the second of two equal keys of an object, at any depth. */
function findDuplicateKey(node: Node): Node | undefined {
  const seen = new Set<unknown>()
  for (const child of node.children ?? []) {
    if (node.type === 'object') {
      const key = child.children![0]!
      if (seen.has(key.value)) return key
      seen.add(key.value)
    }
    const deeper = findDuplicateKey(child)
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

function byteOrderMarkOf(text: string): string {
  return text.startsWith(byteOrderMark) ? byteOrderMark : ''
}

function withoutByteOrderMark(text: string): string {
  return text.slice(byteOrderMarkOf(text).length)
}
