import { describe, expect, test } from 'vitest'
import { prependJsonItem, parseJsonFile, removeJsonItems } from '../../../src/clients/edit/json.ts'

const isNew = (item: unknown) => item === 'new'

describe('a list in a JSON file', () => {
  test.each([
    ['{"a": 1}', '{"a": 1,"k": ["new"]}'],
    ['{ "a": 1 }\n', '{ "a": 1, "k": ["new"] }\n'],
    ['{\n   "a" : 1\n}', '{\n   "a" : 1,\n   "k" : ["new"]\n}'],
    ['{\r\n\t"a": {\r\n\t}\r\n}\r\n', '{\r\n\t"a": {\r\n\t},\r\n\t"k": ["new"]\r\n}\r\n'],
    ['{"k":[1,"b"]}', '{"k":["new",1,"b"]}'],
    ['{"k": ["b"], "a": 1}', '{"k": ["new", "b"], "a": 1}'],
    ['{\n  "k": [\n    "b"\n  ]\n}', '{\n  "k": [\n    "new",\n    "b"\n  ]\n}'],
    ['\uFEFF{"a":[]}', '\uFEFF{"a":[],"k":["new"]}'],
  ])('%j gets an item at its front, and is as before without it', (before, after) => {
    expect(prependJsonItem(before, 'k', 'new')).toBe(after)
    expect(removeJsonItems(after, 'k', isNew, 'drop')).toBe(before)
  })

  test.each([
    ['{}', '{\n  "k": ["new"]\n}', '{}'],
    ['{\r\n}', '{\r\n  "k": ["new"]\r\n}', '{}'],
    ['{"k": [ ]}', '{"k": ["new"]}', '{}'],
    ['{"k": null}', '{"k": ["new"]}', '{}'],
  ])('%j gets a new list for an item', (before, after, without) => {
    expect(prependJsonItem(before, 'k', 'new')).toBe(after)
    expect(removeJsonItems(after, 'k', isNew, 'drop')).toBe(without)
  })

  test('loses every item of the mirror at any position', () => {
    expect(removeJsonItems('{"k": ["new", "b", "new"], "a": 1}', 'k', isNew, 'drop')).toBe('{"k": ["b"], "a": 1}')
    expect(removeJsonItems('{"k": ["new", "new"], "a": 1}', 'k', isNew, 'drop')).toBe('{"a": 1}')
    expect(removeJsonItems('{"a": 1, "k": ["new"]}', 'k', isNew, 'drop')).toBe('{"a": 1}')
  })

  test('stays as an empty list if the caller asks for that', () => {
    expect(removeJsonItems('{"k": ["new"], "a": 1}', 'k', isNew, 'keep')).toBe('{"k": [], "a": 1}')
  })

  test.each(['{"a": 1}', '{"k": ["b"]}', '{"k": "new"}', '{"k": []}'])(
    '%j has no item of the mirror and is not changed',
    (text) => {
      expect(removeJsonItems(text, 'k', isNew, 'drop')).toBe(text)
      expect(removeJsonItems(text, 'k', isNew, 'keep')).toBe(text)
    },
  )

  test('keeps the spelling of numbers, strings and keys', () => {
    const text = '{"n": 1.50e+3, "t": "\\u00e9\\/", "\\u006b2": null}'
    expect(prependJsonItem(text, 'k', 'new')).toBe(`${text.slice(0, -1)}, "k": ["new"]}`)
  })
})

describe('a file that is not one JSON object', () => {
  test.each([
    ['', 'line 1, column 1'],
    [' \n\t', 'line 1, column 1'],
    ['\uFEFF', 'line 1, column 1'],
    ['{\n  /* c */\n}', 'line 2, column 3'],
    ['{} // c', 'line 1, column 4'],
    ['{"a": 1,}', 'line 1, column 9'],
    ['{"a" 1}', 'line 1, column 6'],
    ['{"a": 1', 'line 1, column'],
    ['{\r\n"a": 1\r\n}\r\n{}', 'line 4, column 1'],
    ['{"a": 1, "b": {"c": 1, "c": 2}}', 'line 1, column 24'],
    ['{"a": 1, "\\u0061": 2}', 'line 1, column 10'],
    ['{"a": 01}', 'line 1, column'],
    ["{'a': 1}", 'line 1, column 2'],
    ['{"a": "\t"}', 'line 1, column'],
    ['{"a": \u00a01}', 'line 1, column'],
    ['[1]', 'line 1, column 1'],
    ['null', 'line 1, column 1'],
    ['{"a": NaN}', 'line 1, column 7'],
  ])('%j is refused with line and column', (text, place) => {
    expect(() => parseJsonFile('/etc/x.json', text)).toThrow(
      expect.objectContaining({ exit: 2, message: expect.stringContaining(place) }),
    )
  })

  test('is accepted with a byte order mark', () => {
    expect(parseJsonFile('/etc/x.json', '\uFEFF{"a": [1]}')).toEqual({ a: [1] })
  })
})
