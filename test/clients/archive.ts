/**
 * Reads and writes text archives: a tree of files as one text that a person can read, edit and compare.
 *
 *     -- before/etc/docker/daemon.json --
 *     {
 *       "debug": true
 *     }
 *     -- before/kind.yaml -- (crlf, no final newline)
 *     kind: Cluster
 *     -- before/etc/containers/registries.conf.d -- (link to ../../opt/registries)
 *     -- before/etc/docker/certs.d/ --
 *
 * A header begins each entry: `-- path --`, as in Go's txtar. The lines up to the next header are the content of the file.
 * Every line that starts with two hyphens and a space is a header. A path that ends with a slash is a folder; only an empty
 * folder, or one with a mode, needs an entry. Notes in parentheses, separated by commas, say what the lines cannot show:
 *
 * - `no final newline`: the content ends without the newline of its last line.
 * - `crlf`: each newline of the content is CR LF.
 * - `bom`: the content begins with the byte order mark of UTF-8.
 * - `escaped`: `\xHH` is a byte, `\r` a carriage return, `\\` a backslash. Needed for bytes that are not UTF-8, for control
 *   characters, for a carriage return that is not part of CR LF everywhere, and for lines that look like a header
 *   (`\x2d- path --`).
 * - `mode 600`: the permissions of a file or folder; without it they are the usual ones.
 * - `link to TARGET`: a symbolic link. It is the only note, and no lines follow.
 *
 * The archive is UTF-8 with LF line ends. The reader refuses everything that it does not understand.
 */
import { isUtf8 } from 'node:buffer'
import { chmod, lstat, mkdir, readFile, readdir, readlink, symlink, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'

export type Entry =
  | { kind: 'file'; content: Buffer; mode?: number | undefined }
  | { kind: 'folder'; mode?: number | undefined }
  | { kind: 'link'; target: string }

/** Entries by their path; `/` separates its parts, and no path ends with one. */
export type Tree = ReadonlyMap<string, Entry>

type Notes = { newline: boolean; crlf: boolean; bom: boolean; escaped: boolean }

const headerPattern = /^-- (.+?) --(?: \((.+)\))?$/
const byteOrderMark = '\u00ef\u00bb\u00bf'

export function parseArchive(text: string): Tree {
  if (text.includes('\r')) throw new Error('The archive has a carriage return; write (crlf) or (escaped) instead.')
  if (text !== '' && !text.endsWith('\n')) throw new Error('The archive does not end with a newline.')
  const tree = new Map<string, Entry>()
  // Each part is a header and the lines below it. `^` with the flag m would also match behind U+2028.
  for (const part of text === '' ? [] : text.split(/(?<=\n)(?=-- )/)) {
    const end = part.indexOf('\n')
    const header = part.slice(0, end)
    const [, name, notes] = headerPattern.exec(header) ?? []
    if (name === undefined) throw new Error(`Not a header: ${header}`)
    const path = name.endsWith('/') ? name.slice(0, -1) : name
    if (tree.has(path)) throw new Error(`The archive has two entries: ${header}`)
    tree.set(path, parseEntry(header, name, notes, part.slice(end + 1)))
  }
  return tree
}

export function formatArchive(tree: Tree): string {
  return [...tree].map(([path, entry]) => formatEntry(path, entry)).join('')
}

/** Reads a folder with everything below it, sorted by path; each file and each folder has its mode. */
export async function readTree(root: string): Promise<Tree> {
  const found = await readFolder(root, '')
  return new Map(found.toSorted(([a], [b]) => (a < b ? -1 : 1)))
}

/** Writes the entries of the tree below a folder that exists. */
export async function unpackTree(tree: Tree, root: string): Promise<void> {
  for (const [path, entry] of tree) {
    const file = join(root, path)
    await mkdir(entry.kind === 'folder' ? file : dirname(file), { recursive: true })
    if (entry.kind === 'file') await writeFile(file, entry.content)
    if (entry.kind === 'link') await symlink(entry.target, file)
  }
  // Set modes last, because they can forbid writing, and those of deeper entries first, because they can forbid access.
  for (const [path, entry] of [...tree].toSorted(([a], [b]) => b.length - a.length)) {
    if (entry.kind !== 'link' && entry.mode !== undefined) await chmod(join(root, path), entry.mode)
  }
}

function parseEntry(header: string, name: string, notes: string | undefined, body: string): Entry {
  const isFolder = name.endsWith('/')
  const target = notes?.match(/^link to (.+)$/)?.[1]
  if ((isFolder || target !== undefined) && body !== '')
    throw new Error(`Lines follow an entry that has no content: ${header}`)
  if (target !== undefined && !isFolder) return { kind: 'link', target }
  const found: Notes = { newline: true, crlf: false, bom: false, escaped: false }
  let mode: number | undefined
  for (const note of notes?.split(', ') ?? []) {
    const digits = note.match(/^mode ([0-7]{3})$/)?.[1]
    if (digits !== undefined) mode = Number.parseInt(digits, 8)
    else if (isFolder) throw new Error(`A folder has no such note: ${header}`)
    else if (note === 'no final newline') found.newline = false
    else if (note === 'crlf' || note === 'bom' || note === 'escaped') found[note] = true
    else throw new Error(`There is no such note: ${header}`)
  }
  if (isFolder) return { kind: 'folder', mode }
  if (body === '' && !found.newline) throw new Error(`An empty file has no final newline to leave out: ${header}`)
  return { kind: 'file', content: decodeContent(body, found), mode }
}

function formatEntry(path: string, entry: Entry): string {
  const name = entry.kind === 'folder' ? `${path}/` : path
  const { notes, body } = entry.kind === 'file' ? encodeContent(entry.content) : { notes: [], body: '' }
  if (entry.kind === 'link') notes.push(`link to ${entry.target}`)
  else if (entry.mode !== undefined) notes.push(`mode ${entry.mode.toString(8).padStart(3, '0')}`)
  const header = `-- ${name} --${notes.length === 0 ? '' : ` (${notes.join(', ')})`}`
  const read = headerPattern.exec(header)
  if (read?.[1] !== name || (read[2] ?? '') !== notes.join(', '))
    throw new Error(`No header can hold the path or the target of the link: ${header}`)
  return `${header}\n${body}`
}

// Avoid the recursive readdir: in newer versions of Node it follows symbolic links.
async function readFolder(root: string, folder: string): Promise<[path: string, entry: Entry][]> {
  const found: [path: string, entry: Entry][] = []
  for (const name of await readdir(join(root, folder))) {
    const path = folder === '' ? name : `${folder}/${name}`
    const entry = await readEntry(join(root, path))
    found.push([path, entry])
    if (entry.kind === 'folder') found.push(...(await readFolder(root, path)))
  }
  return found
}

async function readEntry(file: string): Promise<Entry> {
  const stats = await lstat(file)
  if (stats.isSymbolicLink()) return { kind: 'link', target: await readlink(file) }
  const mode = stats.mode & 0o777
  return stats.isDirectory() ? { kind: 'folder', mode } : { kind: 'file', content: await readFile(file), mode }
}

// Both directions work on strings with one character for each byte (latin1), so that no byte gets lost.

function encodeContent(content: Buffer): { notes: string[]; body: string } {
  const notes: string[] = []
  let text = content.toString('latin1')
  if (text.startsWith(byteOrderMark)) {
    notes.push('bom')
    text = text.slice(byteOrderMark.length)
  }
  if (text.includes('\r\n') && !/\r(?!\n)|(?<!\r)\n/.test(text)) {
    notes.push('crlf')
    text = text.replaceAll('\r\n', '\n')
  }
  if (text !== '' && !text.endsWith('\n')) {
    notes.push('no final newline')
    text += '\n'
  }
  // Escape every byte beyond ASCII when the content is not UTF-8.
  const hidden = isUtf8(Buffer.from(text, 'latin1')) ? /^-(?=- )|[^\t\n -~\x80-\xff]/m : /^-(?=- )|[^\t\n -~]/m
  if (hidden.test(text)) {
    notes.push('escaped')
    text = text.replaceAll(new RegExp(`${hidden.source}|\\\\`, 'gm'), escapeCharacter)
  }
  return { notes, body: Buffer.from(text, 'latin1').toString('utf8') }
}

function decodeContent(body: string, { newline, crlf, bom, escaped }: Notes): Buffer {
  let text = Buffer.from(body, 'utf8').toString('latin1')
  if (escaped) text = text.replaceAll(/\\(\\|r|x[0-9a-f]{2}|)/g, (_, code: string) => unescapeCharacter(code))
  if (!newline) text = text.slice(0, -1)
  if (crlf) text = text.replaceAll('\n', '\r\n')
  return Buffer.from(bom ? byteOrderMark + text : text, 'latin1')
}

function escapeCharacter(character: string): string {
  if (character === '\\') return String.raw`\\`
  if (character === '\r') return String.raw`\r`
  return String.raw`\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`
}

function unescapeCharacter(code: string): string {
  if (code === '') throw new Error('A backslash begins something that is not an escape.')
  if (code === '\\') return '\\'
  return code === 'r' ? '\r' : String.fromCharCode(Number.parseInt(code.slice(1), 16))
}
