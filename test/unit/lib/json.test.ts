import { describe, expect, test } from 'vitest'
import { maxJsonDepth, JsonError, maxJsonMembers, readJson, readJsonNow } from '../../../src/lib/json.ts'

const MiB = 1024 * 1024
const digest = `sha256:${'a'.repeat(64)}`
const layer = { mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip', digest, size: 1 }

const problemOf = async (text: string | Buffer, unambiguous = false) => {
  try {
    await readJson(Buffer.from(text as string), { unambiguous })
    return undefined
  } catch (error) {
    if (error instanceof JsonError) return error.problem
    throw error
  }
}

describe('untrusted JSON', () => {
  test.each([
    '{"a":[1,-0,1.5e3,"\\u0041\\n\\ud800",true,false,null,{},[]],"é":"日本"}',
    ' [ 1 , { "a" : { } } ]\n',
    '{"__proto__":{"x":1},"constructor":2}',
    '{"a":1,"a":2}',
    '"\\"\\\\\\/"',
    '1e400',
    '0',
  ])('has the value that JSON.parse returns: %s', (text) => {
    const value = readJsonNow(Buffer.from(text))
    expect(JSON.stringify(value)).toBe(JSON.stringify(JSON.parse(text)))
    expect(value).toEqual(JSON.parse(text))
    expect(({} as Record<string, unknown>)['x']).toBeUndefined()
  })

  test('random JSON tokens are accepted and rejected as JSON.parse does', () => {
    const signs = [
      '{',
      '}',
      '[',
      ']',
      ':',
      ',',
      '"a"',
      '"\\u00e9"',
      '"é"',
      '1',
      '-',
      '0.5',
      '01',
      '1.',
      'true',
      'nul',
      ' ',
      '"',
      '\\',
    ]
    let state = 1
    const random = (below: number) => (state = (state * 48271) % 2147483647) % below
    for (let run = 0; run < 5000; run++) {
      const text = Array.from({ length: 1 + random(9) }, () => signs[random(signs.length)]!).join('')
      const read = (parse: () => unknown) => {
        try {
          return JSON.stringify(parse())
        } catch {
          return 'refused'
        }
      }
      expect(
        read(() => readJsonNow(Buffer.from(text))),
        text,
      ).toBe(read(() => JSON.parse(text)))
    }
  })

  test.each<[string, string | Buffer, string | undefined]>([
    ['brackets to the bottom', '['.repeat(4 * MiB), 'too-deep'],
    ['objects to the bottom', '{"a":'.repeat(MiB / 2), 'too-deep'],
    ['the deepest that is read', '['.repeat(maxJsonDepth) + ']'.repeat(maxJsonDepth), undefined],
    ['one level more', '['.repeat(maxJsonDepth + 1) + ']'.repeat(maxJsonDepth + 1), 'too-deep'],
    ['a million empty objects', `[${'{},'.repeat(1_000_000)}{}]`, 'too-many'],
    ['two million numbers', `[${'1,'.repeat(2_000_000)}1]`, 'too-many'],
    ['400,000 keys', `{${Array.from({ length: 400_000 }, (_, at) => `"${at}":1`).join()}}`, 'too-many'],
    ['one key 600,000 times', `{${'"a":1,'.repeat(600_000)}"a":1}`, 'too-many'],
    [
      'as many keys as are read',
      JSON.stringify(Object.fromEntries(Array.from({ length: maxJsonMembers }, (_, at) => [`k${at}`, at]))),
      undefined,
    ],
    ['4 MB of text', JSON.stringify('x'.repeat(4 * MiB)), undefined],
    ['4 MB of escapes', `"${'\\u0041'.repeat(700_000)}"`, undefined],
    ['4 MB of quotation marks', `"${'\\"'.repeat(2 * MiB)}"`, undefined],
    ['4 MB of digits', '1'.repeat(4 * MiB), 'not-json'],
    ['4 MB of blanks', `${' '.repeat(4 * MiB)}1`, undefined],
    [
      '27,000 layers',
      JSON.stringify({ schemaVersion: 2, layers: Array.from({ length: 27_000 }, () => layer) }),
      undefined,
    ],
    ['bytes that are no text', Buffer.from([0x22, 0xff, 0x22]), 'not-json'],
    ['a text without an end', `{"a":"${'x'.repeat(MiB)}`, 'not-json'],
  ])('is parsed or rejected as expected: %s', async (_what, text, problem) => {
    expect(await problemOf(text)).toBe(problem)
  })

  test.each([
    ['a key twice', '{"a":1,"a":2}', 'repeated-key'],
    ['a key twice, escaped', '{"layers":1,"l\\u0061yers":2}', 'repeated-key'],
    ['__proto__ twice', '{"__proto__":1,"__proto__":2}', 'repeated-key'],
    ['a byte order mark', '\ufeff{}', 'not-json'],
  ])('with %s is parsed, but rejected when it must be unambiguous', async (_what, text, problem) => {
    expect(await problemOf(text)).toBeUndefined()
    expect(await problemOf(text, true)).toBe(problem)
  })
})
