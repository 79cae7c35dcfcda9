import { type Node, type ParseError, parseTree, printParseErrorCode } from 'jsonc-parser'
import { exitCode, MirrorError } from '../../lib/errors.ts'

const byteOrderMark = '\uFEFF'

/** Maps the parser's error codes to texts. */
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
export function parseJsonFile(path: string, text: string): Record<string, unknown> {
  const json = removeByteOrderMark(text)
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
  const json = removeByteOrderMark(text)
  const root = parseTree(json)!
  const list = findMember(root, key)?.children![1]
  if (list === undefined) return getByteOrderMark(text) + addMember(json, root, key, `[${JSON.stringify(item)}]`)
  // Replace null: dockerd takes it for an empty list.
  if (list.type !== 'array')
    return getByteOrderMark(text) + splice(json, list.offset, getEnd(list), `[${JSON.stringify(item)}]`)
  const [first, second] = list.children ?? []
  if (first === undefined)
    return getByteOrderMark(text) + splice(json, list.offset + 1, getEnd(list) - 1, JSON.stringify(item))
  const gap = getGapBefore(json, first)
  const between = second ? getGapBefore(json, second) : gap.includes('\n') ? gap : ' '
  return getByteOrderMark(text) + splice(json, first.offset, first.offset, `${JSON.stringify(item)},${between}`)
}

/**
 * Removes the items for which `isOwn` holds from the list at `key`. A list that becomes empty is dropped with its key, or kept as
 * `[]`. Returns the text unchanged where there is no such list or item.
 */
export function removeJsonItems(
  text: string,
  key: string,
  isOwn: (item: unknown) => boolean,
  emptied: 'drop' | 'keep',
): string {
  const json = removeByteOrderMark(text)
  const root = parseTree(json)!
  const member = findMember(root, key)
  const list = member?.children![1]
  const items = list?.children ?? []
  const at = items.findIndex((item) => isOwn(item.value))
  if (list?.type !== 'array' || at === -1) return text
  if (items.length > 1) return removeJsonItems(getByteOrderMark(text) + removeAt(json, items, at), key, isOwn, emptied)
  if (emptied === 'keep') return getByteOrderMark(text) + splice(json, list.offset, getEnd(list), '[]')
  const members = root.children!
  if (members.length > 1) return getByteOrderMark(text) + removeAt(json, members, members.indexOf(member!))
  return getByteOrderMark(text) + splice(json, root.offset + 1, getEnd(root) - 1, '')
}

/** Adds an empty list at `key` if the key is missing. */
export function addEmptyJsonList(text: string, key: string): string {
  const json = removeByteOrderMark(text)
  const root = parseTree(json)!
  return findMember(root, key) ? text : getByteOrderMark(text) + addMember(json, root, key, '[]')
}

function addMember(json: string, root: Node, key: string, value: string): string {
  const last = root.children?.at(-1)
  if (last === undefined) {
    const lineEnd = json.includes('\r\n') ? '\r\n' : '\n'
    const line = `${lineEnd}  ${JSON.stringify(key)}: ${value}${lineEnd}`
    return splice(json, root.offset + 1, getEnd(root) - 1, line)
  }
  // Format it like its neighbour: the same space before it and around its colon.
  const [name, neighbour] = last.children!
  const colon = json.slice(getEnd(name!), neighbour!.offset)
  const separator = /[\r\n]/.test(colon) ? ': ' : colon
  return splice(
    json,
    getEnd(last),
    getEnd(last),
    `,${getGapBefore(json, last)}${JSON.stringify(key)}${separator}${value}`,
  )
}

/** Removes one of several entries with its comma and the space before the next one. */
function removeAt(json: string, nodes: readonly Node[], at: number): string {
  const next = nodes[at + 1]
  if (next) return splice(json, nodes[at]!.offset, next.offset, '')
  return splice(json, getEnd(nodes[at - 1]!), getEnd(nodes[at]!), '')
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

function getGapBefore(json: string, node: Node): string {
  return /[ \t\r\n]*$/.exec(json.slice(0, node.offset))![0]
}

function splice(text: string, from: number, to: number, inserted: string): string {
  return text.slice(0, from) + inserted + text.slice(to)
}

function getEnd(node: Node): number {
  return node.offset + node.length
}

function getByteOrderMark(text: string): string {
  return text.startsWith(byteOrderMark) ? byteOrderMark : ''
}

function removeByteOrderMark(text: string): string {
  return text.slice(getByteOrderMark(text).length)
}
