import { describe, expect, test } from 'vitest'
import { addYamlItem, addYamlKey, readYamlText, removeFromYaml } from '../../../src/clients/edit/yaml.ts'
import { exitCode } from '../../../src/lib/errors.ts'

const read = (text: string) => readYamlText(text, '/f.yaml')

describe('addYamlKey', () => {
  test.each([
    ['an empty file', '', ['a'], 1, 'a: 1\n'],
    ['a file of comments', '# hi\n', ['a'], 1, '# hi\na: 1\n'],
    ['a map, behind the comment of its last line', 'b: 1 # one\n', ['a'], 2, 'b: 1 # one\na: 2\n'],
    ['a file without a newline at its end, which it does not get', 'b: 1', ['a'], 2, 'b: 1\na: 2'],
    ['a file with CRLF', 'b: 1\r\n', ['a'], { c: [1] }, 'b: 1\r\na:\r\n  c:\r\n  - 1\r\n'],
    ['a file with a byte order mark', '\uFEFFb: 1\n', ['a'], 2, '\uFEFFb: 1\na: 2\n'],
    [
      'a map in a list, at its indent',
      'l:\n  -  x: 1\n  -  x: 2\n',
      ['l', 0, 'y'],
      3,
      'l:\n  -  x: 1\n     y: 3\n  -  x: 2\n',
    ],
    [
      'a map whose last value is a block',
      'm:\n  x: |-\n    one\n    two\n\nz: 1\n',
      ['m', 'y'],
      3,
      'm:\n  x: |-\n    one\n    two\n  y: 3\n\nz: 1\n',
    ],
    [
      'a map that ends with remarks of its own, which stay in it',
      'l:\n  - x: 1\n  # - x: 2\n\n    # more\n# end\n',
      ['a'],
      ['one\n  two'],
      'l:\n  - x: 1\n  # - x: 2\n\n    # more\na:\n- |-\n  one\n    two\n# end\n',
    ],
    ['a map in braces', 'm: {x: 1,  z: [ ]}\n', ['m', 'y'], { a: 1 }, 'm: {x: 1,  z: [ ], "y": { "a": 1 }}\n'],
    ['a map in braces with nothing in it', 'm: {} # c\n', ['m', 'y'], 3, 'm: { "y": 3 } # c\n'],
    ['a key with nothing behind it', 'm: # c\nn: 1\n', ['m', 'y'], 3, 'm: { "y": 3 } # c\nn: 1\n'],
    ['maps that are not there', 'n: 1\n', ['m', 'o', 'y'], 3, 'n: 1\nm:\n  o:\n    y: 3\n'],
  ])('adds to %s', (_, before, path, value, after) => {
    expect(addYamlKey(read(before), path, value).text).toBe(after)
  })

  test.each([
    ['a value in the way', 'a: 1\n', ['a', 'b'], 'line 1, column 4'],
    ['a map that other places share', 'x: &s\n  y: 1\nz: *s\n', ['x', 'b'], 'cannot be changed'],
    ['a map that is merged in', 'x: &s\n  m: {a: 1}\nz:\n  <<: *s\n', ['z', 'm', 'b'], 'cannot be changed'],
  ])('refuses %s', (_, before, path, says) => {
    expect(() => addYamlKey(read(before), path, 1)).toThrow(
      expect.objectContaining({ exit: exitCode.usage, message: expect.stringContaining(says) as string }),
    )
  })
})

describe('addYamlItem', () => {
  test.each([
    ['the end', 'l:\n- a # one\n# tail\n', 'end' as const, 'l:\n- a # one\n- new\n# tail\n'],
    ['the start', 'l:\n  # first\n  - a\n', 'start' as const, 'l:\n  # first\n  - new\n  - a\n'],
    ['the end of one in brackets', 'l: [a,b]\n', 'end' as const, 'l: [a,b, "new"]\n'],
    ['the start of one in brackets', 'l: [ "a" ]\n', 'start' as const, 'l: [ "new", "a" ]\n'],
    ['one that is not there', 'k: 1\n', 'end' as const, 'k: 1\nl:\n- new\n'],
    ['one that is nothing', 'l:\nk: 1\n', 'end' as const, 'l: [ "new" ]\nk: 1\n'],
    ['one that is empty', 'l: []\n', 'end' as const, 'l: [ "new" ]\n'],
  ])('adds to a list at %s', (_, before, where, after) => {
    expect(addYamlItem(read(before), ['l'], 'new', where).text).toBe(after)
  })

  test('writes text of several lines as a block', () => {
    expect(addYamlItem(read('l:\n- x\n'), ['l'], 'a\n  b = 1').text).toBe('l:\n- x\n- |-\n  a\n    b = 1\n')
  })
})

describe('removeFromYaml', () => {
  test.each([
    ['a key', 'a: 1\nb:\n  c: 1\nd: 2\n', ['b'], 'a: 1\nd: 2\n'],
    ['the last key, and its comment', 'a: 1\nb: 2 # two\n', ['b'], 'a: 1\n'],
    ['an item', 'l:\n- a\n- {x: 1}\n- b\n', ['l', 1], 'l:\n- a\n- b\n'],
    ['an item with lines', 'l:\n  - a: 1\n    b: 2\n  - c: 1\n', ['l', 0], 'l:\n  - c: 1\n'],
    ['an item in brackets', 'l: [a, b, c]\n', ['l', 1], 'l: [a, c]\n'],
    ['the first item in brackets', 'l: [ a, b]\n', ['l', 0], 'l: [ b]\n'],
    ['a key in braces', 'm: {a: 1, b: [2]}\n', ['m', 'b'], 'm: {a: 1}\n'],
    ['all there is, but for comments', '# a\na:\n- b\n# c\n', ['a', 0], '# a\n# c\n'],
    ['what is empty then', 'a: 1\nm:\n  n:\n  - x\n', ['m', 'n', 0], 'a: 1\n'],
  ])('removes %s', (_, before, path, after) => {
    expect(removeFromYaml(read(before), path).text).toBe(after)
  })

  test('refuses to remove an entry that shares its line with another one', () => {
    expect(() => removeFromYaml(read('l:\n- a: 1\n  b: 2\n'), ['l', 0, 'a'])).toThrow('line 2, column 6')
  })
})

describe('readYamlText', () => {
  test.each([
    ['a key twice', 'a: 1\nb: 2\na: 3\n', 'line 3, column 1'],
    ['a second document', 'a: 1\n---\nb: 1\n', 'line 2, column 1'],
    ['a tab for indent', 'a:\n\tb: 1\n', 'line 2, column 1'],
    ['an alias of nothing', 'a: *b\n', 'line 1, column 1'],
    ['what is no YAML', 'a: [1\n', 'line 2, column 1'],
  ])('refuses %s', (_, text, where) => {
    expect(() => read(text)).toThrow(
      expect.objectContaining({
        exit: exitCode.usage,
        message: expect.stringContaining(`/f.yaml, ${where}`) as string,
      }),
    )
  })
})
