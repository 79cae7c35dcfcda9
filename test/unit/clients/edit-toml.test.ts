import { describe, expect, test } from 'vitest'
import { joinSections, readToml, sectionPath, setTomlValue, tomlSections } from '../../../src/clients/edit/toml.ts'

const awkward = [
  '\uFEFF# a mark\r\n',
  'a = [\r\n  "[no.heading]",\r\n  ["x"], # [nor.this]\r\n]\r\n[b]\r\n',
  '[a."b.c".\'d\']\n\tx = \'\'\'\n[not.this]\n\'\'\'\n[[e]]\ny = """\n[nor] this \\""""\n',
  'no = "final newline"',
  '[mixed]\r\na = 1\n\r\nb = { c = "}" }\n# end',
]

describe('TOML text', () => {
  test.each(awkward)('is cut into sections that make the same text again: %j', (text) => {
    expect(joinSections(tomlSections(text))).toBe(text)
  })

  test('is not cut inside strings and lists of several lines', () => {
    const paths = awkward.map((text) => tomlSections(text).map(sectionPath))
    expect(paths).toEqual([[[]], [[], ['b']], [[], ['a', 'b.c', 'd'], ['e']], [[]], [[], ['mixed']]])
  })

  test.each([
    ['a list with a carriage return alone', 'a = [\r"x"]', '1:6'],
    ['a comment that ends with one', 'a = 1 # x\rb = 2\n', '1:10'],
    ['a table that is there twice', '[a]\n[a]\n', '2:2'],
    ['a key that is there twice', 'a = 1\r\na = 2\r\n', '2:1'],
    ['a table that an inline table has closed', 'a = {b = 1}\n[a.c]\n', '2:2'],
  ])('is refused with line and column for %s', (_, text, place) => {
    expect(() => readToml('/f.toml', text)).toThrow(
      expect.objectContaining({ exit: 2, message: expect.stringContaining(`/f.toml:${place}: `) as string }),
    )
  })

  test('that cannot take a value is not changed', () => {
    expect(setTomlValue('plugins = "x"\n', ['plugins', 'a'], 'v')).toBeUndefined()
    expect(setTomlValue('[[plugins.a]]\n', ['plugins', 'a', 'b'], 'v')).toBeUndefined()
    expect(setTomlValue('not toml', ['a'], 'v')).toBeUndefined()
  })
})
