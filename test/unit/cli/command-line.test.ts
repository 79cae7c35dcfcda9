import { describe, expect, test } from 'vitest'
import { parseCommandLine } from '../../../src/cli/help.ts'
import { MirrorError } from '../../../src/lib/errors.ts'

const names = {
  commands: ['cache:ls', 'cache:rm', 'configure', 'down', 'registry:gc', 'registry:ls', 'status', 'up'],
  topics: ['cache', 'registry'],
}
const read = (line: string) => parseCommandLine(line === '' ? [] : line.split(' '), names)

function refusalOf(line: string): { message: string; hints: string[] } {
  try {
    read(line)
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
    expect(error.exit).toBe(2)
    return { message: error.message, hints: error.hints }
  }
  throw new Error(`${line} is no error`)
}

describe('the command line', () => {
  test.each([
    ['up', 'up', []],
    ['up --json', 'up', ['--json']],
    ['configure docker', 'configure', ['docker']],
    ['status extra', 'status', ['extra']],
    ['cache ls --json', 'cache:ls', ['--json']],
    ['cache:ls --json', 'cache:ls', ['--json']],
    ['cache rm a b', 'cache:rm', ['a', 'b']],
    ['cache rm -- --help', 'cache:rm', ['--', '--help']],
  ])('%s runs a command', (line, id, args) => expect(read(line)).toEqual({ kind: 'command', id, args }))

  test.each([
    ['', undefined],
    ['--help', undefined],
    ['-h', undefined],
    ['help', undefined],
    ['help help', undefined],
    ['help up', 'up'],
    ['help cache', 'cache'],
    ['help cache ls', 'cache:ls'],
    ['up --help', 'up'],
    ['up -h', 'up'],
    ['--help up', 'up'],
    ['up --cache-port 1 --help', 'up'],
    ['configure docker --help', 'configure'],
    ['cache', 'cache'],
    ['cache --help', 'cache'],
    ['cache ls --help', 'cache:ls'],
  ])('%s asks for help', (line, of) => expect(read(line)).toEqual({ kind: 'help', of }))

  test.each(['--version', '-v', 'version'])('%s asks for the version', (line) =>
    expect(read(line)).toEqual({ kind: 'version' }),
  )

  test.each([
    ['sttaus', 'status'],
    ['STATUS', 'status'],
    ['pu', 'up'],
    ['conf', 'configure'],
    ['cahe', 'cache'],
    ['cahe lss', 'cache ls'],
    ['cache lss', 'cache ls'],
    ['cache:lss', 'cache ls'],
    ['help sttaus', 'status'],
    ['sttaus --help', 'status'],
    ['verion', 'version'],
    ['start', 'up'],
    ['stop', 'down'],
    ['gc', 'registry gc'],
    ['ls', 'cache ls or registry ls'],
    ['list', 'cache ls or registry ls'],
    ['cache list', 'cache ls'],
  ])('%s is no command, and it names the nearest: %s', (line, meant) => {
    const { message, hints } = refusalOf(line)
    expect(message).toContain(`Did you mean ${meant}?`)
    expect(hints).toEqual(
      expect.arrayContaining([...meant.split(' or ').map((command) => `mirror ${command}`), 'mirror --help']),
    )
  })

  test.each(['xyzzy', 'cache xyzzy'])('an unknown command that resembles none gets no suggestion: %s', (word) => {
    const { message, hints } = refusalOf(word)
    expect(message).toBe(`Unknown command: ${word}.`)
    expect(hints).toContain('mirror --help')
  })

  test('a topic with a flag but without a command names its commands', () => {
    expect(refusalOf('cache --json').message).toBe('mirror cache needs a command: ls, rm.')
  })

  test('a flag before the command is refused with the right order', () => {
    expect(refusalOf('--json status').hints).toEqual(['mirror status --json'])
    expect(refusalOf('--hlep').message).toBe('Unknown flag: --hlep. Did you mean --help?')
    expect(refusalOf('-V').message).toBe('Unknown flag: -V. Did you mean -v?')
    expect(refusalOf('-x').message).toBe('Unknown flag: -x.')
  })
})
