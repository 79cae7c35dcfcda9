import { chmod, mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { type Entry, type Tree, formatArchive, parseArchive, readTree, unpackTree } from './archive.ts'

const file = (content: string | Buffer, mode?: number): Entry => ({ kind: 'file', content: Buffer.from(content), mode })
const archiveOf = (content: string | Buffer) => formatArchive(new Map([['a', file(content)]]))
const lines = (...each: string[]) => each.map((line) => `${line}\n`).join('')

/** Contents of files with the archive of each, by their special property. */
const contents: [title: string, content: string | Buffer, archive: string][] = [
  ['with a final newline', 'one\n\ntwo\n', lines('-- a --', 'one', '', 'two')],
  ['without a final newline', 'one\ntwo', lines('-- a -- (no final newline)', 'one', 'two')],
  ['that is empty', '', lines('-- a --')],
  ['of one newline', '\n', lines('-- a --', '')],
  ['that ends with two newlines', 'one\n\n', lines('-- a --', 'one', '')],
  ['with blanks and tabs at the ends of lines', ' one \t\n\t\n', lines('-- a --', ' one \t', '\t')],
  ['with CRLF', 'one\r\ntwo\r\n', lines('-- a -- (crlf)', 'one', 'two')],
  ['of one CRLF', '\r\n', lines('-- a -- (crlf)', '')],
  ['with CRLF, without a final newline', 'one\r\ntwo', lines('-- a -- (crlf, no final newline)', 'one', 'two')],
  ['with CRLF and LF', 'one\r\ntwo\n', lines('-- a -- (escaped)', String.raw`one\r`, 'two')],
  ['with CRLF and a bare CR', 'one\rtwo\r\n', lines('-- a -- (escaped)', String.raw`one\rtwo\r`)],
  ['that ends with a bare CR', 'one\r', lines('-- a -- (no final newline, escaped)', String.raw`one\r`)],
  ['with a byte order mark', '\u{feff}one\n', lines('-- a -- (bom)', 'one')],
  ['of a byte order mark', '\u{feff}', lines('-- a -- (bom)')],
  ['with two byte order marks', '\u{feff}\u{feff}one\n', lines('-- a -- (bom)', '\u{feff}one')],
  [
    'with a byte order mark and CRLF, without a final newline',
    '\u{feff}one\r\ntwo',
    lines('-- a -- (bom, crlf, no final newline)', 'one', 'two'),
  ],
  ['with letters beyond ASCII', 'größer 鏡 🪞\n', lines('-- a --', 'größer 鏡 🪞')],
  [
    'with a byte that is not UTF-8',
    Buffer.from('{"a": "\u00e9", "b": "\\n"}', 'latin1'),
    lines('-- a -- (no final newline, escaped)', String.raw`{"a": "\xe9", "b": "\\n"}`),
  ],
  [
    'with a byte that is not UTF-8, and CRLF',
    Buffer.from('\u00ff\r\n\u00fe\r\n', 'latin1'),
    lines('-- a -- (crlf, escaped)', String.raw`\xff`, String.raw`\xfe`),
  ],
  ['with a backslash', String.raw`\r \x2d \\`, lines('-- a -- (no final newline)', String.raw`\r \x2d \\`)],
  ['with control characters', '\0\u{1b}[1m\u{7f}\t\n', lines('-- a -- (escaped)', String.raw`\x00\x1b[1m\x7f` + '\t')],
  ['with a line that is a header', 'one\n-- b --\n', lines('-- a -- (escaped)', 'one', String.raw`\x2d- b --`)],
  ['with a line that begins as a header', '-- b\n', lines('-- a -- (escaped)', String.raw`\x2d- b`)],
  ['with lines that resemble a header', '--\n--- b ---\n -- b --\n', lines('-- a --', '--', '--- b ---', ' -- b --')],
  ['with a header behind a line separator', 'one\u{2028}-- b --\n', lines('-- a --', 'one\u{2028}-- b --')],
  ['with a header behind a bare CR', 'one\r-- b --\n', lines('-- a -- (escaped)', String.raw`one\r\x2d- b --`)],
]

describe('a text archive', () => {
  test.each(contents)('represents a file %s', (_, content, archive) => {
    expect(archiveOf(content)).toBe(archive)
    expect(parseArchive(archive)).toEqual(new Map([['a', file(content)]]))
  })

  test('preserves all 256 bytes', () => {
    const bytes = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte))
    expect(parseArchive(archiveOf(bytes))).toEqual(new Map([['a', file(bytes)]]))
  })

  test('preserves any mix of special bytes', () => {
    const pieces = [
      '\r',
      '\n',
      '\r\n',
      '-- ',
      ' --',
      '\\',
      'x2d',
      '\u00ef\u00bb\u00bf',
      '\u00c3\u00a9',
      '\u00ff',
      '\0',
      'a',
    ]
    let state = 1
    const random = (below: number) => (state = (state * 48_271) % 2_147_483_647) % below
    for (let round = 0; round < 2000; round++) {
      const text = Array.from({ length: random(7) }, () => pieces[random(pieces.length)]).join('')
      const content = Buffer.from(text, 'latin1')
      const tree: Tree = new Map([
        ['a', file(content)],
        ['b', file('b\n')],
      ])
      const archive = formatArchive(tree)
      expect(archive).not.toContain('\r')
      expect(formatArchive(parseArchive(archive))).toBe(archive)
      expect(readContent(parseArchive(archive), 'a').equals(content), archive).toBe(true)
    }
  })

  test('represents modes, folders and links', () => {
    const tree: Tree = new Map<string, Entry>([
      ['etc/only for me', file('one\n', 0o600)],
      ['etc/certs.d/registry.corp.example:5000/ca.crt', file('two', 0o444)],
      ['etc/empty', { kind: 'folder', mode: undefined }],
      ['etc/closed', { kind: 'folder', mode: 0o700 }],
      ['etc/link', { kind: 'link', target: '../a (b), c' }],
      ['etc/also -- (crlf)', file('')],
    ])
    const archive = lines(
      '-- etc/only for me -- (mode 600)',
      'one',
      '-- etc/certs.d/registry.corp.example:5000/ca.crt -- (no final newline, mode 444)',
      'two',
      '-- etc/empty/ --',
      '-- etc/closed/ -- (mode 700)',
      '-- etc/link -- (link to ../a (b), c)',
      '-- etc/also -- (crlf) --',
    )
    expect(formatArchive(tree)).toBe(archive)
    expect(parseArchive(archive)).toEqual(tree)
    expect([...parseArchive(archive).keys()]).toEqual([...tree.keys()])
  })

  test('is empty for an empty tree', () => {
    expect(formatArchive(new Map())).toBe('')
    expect(parseArchive('')).toEqual(new Map())
  })

  test.each([
    ['a path with a newline', 'a\nb', file('')],
    ['a path with a carriage return', 'a\rb', file('')],
    ['a path with what ends a header', 'a -- (crlf) -- (bom)', { kind: 'link', target: 'b' }],
    ['an empty path', '', file('')],
    ['a link to a path with a newline', 'a', { kind: 'link', target: 'b\nc' }],
  ] satisfies [string, string, Entry][])('is not written for %s', (_, path, entry) => {
    expect(() => formatArchive(new Map([[path, entry]]))).toThrow('No header can hold')
  })

  test.each([
    ['text before the first header', lines('one', '-- a --'), 'Not a header: one'],
    ['a header that does not end', lines('-- a', 'one'), 'Not a header: -- a'],
    ['a header with something behind it', lines('-- a -- crlf'), 'Not a header: -- a -- crlf'],
    ['an unknown note', lines('-- a -- (lf)'), 'There is no such note: -- a -- (lf)'],
    ['a mode that is none', lines('-- a -- (mode 888)'), 'There is no such note'],
    ['a link with another note', lines('-- a -- (mode 600, link to b)'), 'There is no such note'],
    ['a folder with line ends', lines('-- a/ -- (crlf)'), 'A folder has no such note'],
    ['a folder that is a link', lines('-- a/ -- (link to b)'), 'A folder has no such note'],
    ['a folder with lines', lines('-- a/ --', 'one'), 'Lines follow an entry that has no content'],
    ['a link with lines', lines('-- a -- (link to b)', ''), 'Lines follow an entry that has no content'],
    ['an empty file without a final newline', lines('-- a -- (no final newline)'), 'An empty file'],
    ['the same path twice', lines('-- a --', '-- a/ --'), 'two entries'],
    ['an unknown escape', lines('-- a -- (escaped)', String.raw`\n`), 'not an escape'],
    ['an end in the middle of a line', '-- a --\none', 'does not end with a newline'],
    ['line ends of its own that are CRLF', '-- a --\r\none\r\n', 'carriage return'],
  ])('is not read with %s', (_, archive, reason) => {
    expect(() => parseArchive(archive)).toThrow(reason)
  })
})

describe('a tree on the disk', () => {
  test('is the same after an archive of it is unpacked', async ({ onTestFinished }) => {
    const root = await mkdtemp(join(tmpdir(), 'mirror-archive-'))
    onTestFinished(() => rm(root, { recursive: true, force: true }))
    const tree: Tree = new Map<string, Entry>([
      ['closed', { kind: 'folder', mode: 0o500 }],
      ['closed/in', { kind: 'folder', mode: 0o755 }],
      ['closed/in/read-only', file('one\n', 0o400)],
      ['dangling', { kind: 'link', target: 'no/such' }],
      ['empty', { kind: 'folder', mode: 0o755 }],
      ['linked', { kind: 'link', target: 'closed/in' }],
      ...contents.map(([, content], at): [string, Entry] => [`z${String(at).padStart(3, '0')}`, file(content, 0o644)]),
    ])
    await unpackTree(parseArchive(formatArchive(tree)), root)
    expect(await readTree(root)).toEqual(tree)
    expect([...(await readTree(root)).keys()]).toEqual([...tree.keys()])
    await chmod(join(root, 'closed'), 0o700)
  })

  test('gets folders that the archive does not name', async ({ onTestFinished }) => {
    const root = await mkdtemp(join(tmpdir(), 'mirror-archive-'))
    onTestFinished(() => rm(root, { recursive: true, force: true }))
    await unpackTree(parseArchive(lines('-- a/b/c --', '-- d/e/ --', '-- f/g -- (link to h)')), root)
    expect((await readdir(root, { recursive: true })).toSorted()).toEqual(['a', 'a/b', 'a/b/c', 'd', 'd/e', 'f', 'f/g'])
  })
})

function readContent(tree: Tree, path: string): Buffer {
  const entry = tree.get(path)
  if (entry?.kind !== 'file') throw new Error(`No file: ${path}`)
  return entry.content
}
