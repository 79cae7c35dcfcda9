import { describe, expect, test } from 'vitest'
import {
  addTomlKeys,
  appendTomlTable,
  prependTomlItem,
  readToml,
  removeFromToml,
  setTomlValue,
  findTomlTableLines,
} from '../../../src/clients/edit/toml.ts'
import {
  joinSections,
  getSectionPath,
  getTablePaths,
  splitIntoSections,
} from '../../../src/clients/edit/toml-syntax.ts'

const awkward = [
  '\uFEFF# a mark\r\n',
  'a = [\r\n  "[no.heading]",\r\n  ["x"], # [nor.this]\r\n]\r\n[b]\r\n',
  '[a."b.c".\'d\']\n\tx = \'\'\'\n[not.this]\n\'\'\'\n[[e]]\ny = """\n[nor] this \\""""\n',
  'no = "final newline"',
  '[mixed]\r\na = 1\n\r\nb = { c = "}" }\n# end',
]

describe('a TOML text', () => {
  test.each(awkward)('cut into sections and joined again is the same text: %j', (text) => {
    expect(joinSections(splitIntoSections(text))).toBe(text)
  })

  test('is not cut inside strings and lists of several lines', () => {
    const paths = awkward.map((text) => splitIntoSections(text).map(getSectionPath))
    expect(paths).toEqual([[[]], [[], ['b']], [[], ['a', 'b.c', 'd'], ['e']], [[]], [[], ['mixed']]])
  })

  test('names the tables of an array of tables by their indices, and tells their lines', () => {
    const text = 'x = """\n[[r]]\n"""\n[[r]]\n[[r.m]]\n[[r.m]]\n[o]\n[[ "\\u0072" ]]\n[r.m]\n'
    const paths = [[], ['r', 0], ['r', 0, 'm', 0], ['r', 0, 'm', 1], ['o'], ['r', 1], ['r', 1, 'm']]
    expect(getTablePaths(splitIntoSections(text))).toEqual(paths)
    expect(findTomlTableLines(text, 'r')).toEqual([4, 8])
  })

  test.each([
    ['a list with a carriage return alone', 'a = [\r"x"]', '1:6'],
    ['a comment that ends with a carriage return', 'a = 1 # x\rb = 2\n', '1:10'],
    ['a table that is there twice', '[a]\n[a]\n', '2:2'],
    ['a key that is there twice', 'a = 1\r\na = 2\r\n', '2:1'],
    ['a table that an inline table has closed', 'a = {b = 1}\n[a.c]\n', '2:2'],
  ])('is refused with line and column for %s', (_, text, position) => {
    expect(() => readToml('/f.toml', text)).toThrow(
      expect.objectContaining({ exit: 2, message: expect.stringContaining(`/f.toml:${position}: `) as string }),
    )
  })
})

describe('setting a TOML value', () => {
  test('does not change a text that cannot take the value', () => {
    expect(setTomlValue('plugins = "x"\n', ['plugins', 'a'], 'v')).toBeUndefined()
    expect(setTomlValue('[[plugins.a]]\n', ['plugins', 'a', 'b'], 'v')).toBeUndefined()
    expect(setTomlValue('not toml', ['a'], 'v')).toBeUndefined()
  })

  test('replaces a value of any kind, and keeps the comment behind it', () => {
    expect(setTomlValue('[a]\nb = [\n1, # one\n] # end\n', ['a', 'b'], 'v')).toBe('[a]\nb = "v" # end\n')
    expect(setTomlValue('a.b = true# on\n', ['a', 'b'], false)).toBe('a.b = false# on\n')
  })

  test('puts a key of the root before the first table', () => {
    expect(setTomlValue('# none\r\n[a]\r\n', ['version'], 2)).toBe('# none\r\nversion = 2\r\n[a]\r\n')
  })
})

describe.each(['\n', '\r\n'])('a TOML text with the line end %j', (end) => {
  const lines = (text: string) => text.replaceAll('\n', end)

  test('gets keys below the heading of their table, indented like its first statement', () => {
    const after = addTomlKeys(lines('[a]\n[b."c.d"] # c\n\tx = 1\n'), ['b', 'c.d'], { y: true, z: ['1'] })
    expect(after).toBe(lines('[a]\n[b."c.d"] # c\n\ty = true\n\tz = [ "1" ]\n\tx = 1\n'))
  })

  test('gets a table at its end, behind a blank line', () => {
    expect(appendTomlTable(lines('a = 1\n[b]'), ['r', 'x.y'], { z: 1 })).toBe(lines('a = 1\n[b]\n\n[r."x.y"]\nz = 1\n'))
    expect(appendTomlTable('', ['r'], { z: 1 })).toBe('[r]\nz = 1\n')
  })

  test('gets an item at the front of a list, on a line of its own if the other items have one', () => {
    const put = (text: string) => prependTomlItem(lines(text), ['t', 'l'], 'x')
    expect(put('[t]\nl = ["a"]\n')).toBe(lines('[t]\nl = ["x", "a"]\n'))
    expect(put('[t]\nl = []\n')).toBe(lines('[t]\nl = ["x"]\n'))
    expect(put('[t]\nl = [ # c\n  "a",\n]\n')).toBe(lines('[t]\nl = [ # c\n  "x",\n  "a",\n]\n'))
  })

  test.each([
    ['an item between others', '[t]\nl = ["a","b", "c"]\n', ['t', 'l', 1], '[t]\nl = ["a","c"]\n'],
    ['the last item', '[t]\nl = [ "a", "b" ] # c\n', ['t', 'l', 1], '[t]\nl = [ "a" ] # c\n'],
    ['an item with its line', '[t]\nl = [\n  "a", # a\n  "b"\n]\n', ['t', 'l', 1], '[t]\nl = [\n  "a", # a\n]\n'],
    ['the only item with its table', 'k = 1\n[t]\nl = ["a"]\n[u]\n', ['t', 'l', 0], 'k = 1\n[u]\n'],
    ['the only item, but not a comment in its list', '[t]\nl = [ # c\n"a"\n]\n', ['t', 'l', 0], '[t]\nl = [ # c\n]\n'],
    ['a key of the root', '# r\nk = 1 # k\n[t]\n', ['k'], '# r\n[t]\n'],
    ['a key of a table', '[t]\na = 1\n# b\nb = 2\n', ['t', 'a'], '[t]\n# b\nb = 2\n'],
    ['a table with its tables', '[a]\nx = 1\n[a.b]\n[c]\n[a.d]\n', ['a'], '[c]\n'],
    ['a table, but not its comments', '[a]\nx = 1\n# next\n[c]\n', ['a'], '# next\n[c]\n'],
    ['a table of an array with its tables', '[[a]]\nx = 1\n[[a.b]]\n[[a]]\nx = 2\n', ['a', 0], '[[a]]\nx = 2\n'],
  ] as const)('loses %s', (_, before, path, after) => {
    expect(removeFromToml(lines(before), path)).toBe(lines(after))
  })

  test('loses the blank lines above a table at its end where that is wanted', () => {
    const text = lines('a = 1\n\n[b]\nc = 1\n')
    expect(removeFromToml(text, ['b'], { blankLinesAbove: 'drop' })).toBe(lines('a = 1\n'))
    expect(removeFromToml(text, ['b'])).toBe(lines('a = 1\n\n'))
  })

  test('is not changed where a key is dotted or in an inline table', () => {
    const text = lines('a.b = 1\nc = { d = ["x"] }\n')
    expect(removeFromToml(text, ['a', 'b'])).toBeUndefined()
    expect(removeFromToml(text, ['c', 'd', 0])).toBeUndefined()
    expect(prependTomlItem(text, ['c', 'd'], 'y')).toBeUndefined()
    expect(addTomlKeys(text, ['a'], { e: 1 })).toBeUndefined()
    expect(appendTomlTable(text, ['a'], { e: 1 })).toBeUndefined()
  })
})
