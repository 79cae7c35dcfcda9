import { join } from 'node:path'
import type { Command } from '@oclif/core/command'
import { describe, expect, test } from 'vitest'
import { getProgramName, nameCommands } from '../../../src/cli/base-command.ts'
import { renderHelp } from '../../../src/cli/help.ts'
import { readRootPlugin } from '../../../src/cli/main.ts'
import { renderFacts } from '../../../src/cli/render/table.ts'
import { createColors, wrapText, wrapWords } from '../../../src/cli/terminal.ts'
import { findPackageRoot } from '../../../src/lib/fs.ts'

const plugin = readRootPlugin(findPackageRoot())
const program = {
  name: 'mirror',
  description: 'A mirror',
  version: 'dev-mirror/1.0.0',
  commands: plugin.commands,
  topics: plugin.topics,
}
const help = (of: string | undefined, width: number) => renderHelp(program, of, { width, colors: createColors(false) })
const everything = [undefined, ...plugin.topics.map(({ name }) => name), ...plugin.commandIDs]

describe('help', () => {
  test.each(everything)('of %s fits into every terminal, with its words whole', (of) => {
    const words = (text: string) => new Set(text.split(/\s+/).filter((word) => word !== '\\'))
    for (const width of [40, 60, 80, 100, 200]) {
      const text = help(of, width)
      for (const line of text.split('\n')) expect(line.length, line).toBeLessThanOrEqual(width)
      expect(words(text)).toEqual(words(help(of, 100)))
    }
  })

  test('puts a description further to the right than its flag where the terminal is narrow', () => {
    expect(help('init', 60)).toContain('\n      --cache-port N\n          port of the cache')
    expect(help('init', 60)).toContain('\n  -o, --output FILE\n          file to write')
  })

  test('breaks the commands of examples so that they still work', () => {
    const lines = help('init', 60).split('\n')
    const at = lines.findIndex((line) => line.includes('--max-size 50GiB'))
    expect(lines.slice(at, at + 2)).toEqual([
      '  $ mirror init --yes --max-size 50GiB \\',
      '      --upstream registry.corp.example',
    ])
  })

  test('shows the value, default, exclusions, needs and variable of a flag', () => {
    expect(help('up', 100)).toMatch(/--autostart .*\n? .*\[not with --foreground\]\n/)
    expect(help('up', 100)).toContain('[env: MIRROR_DATA]')
    expect(help('up', 100)).toContain('--runtime process|container ')
    expect(help('init', 100)).toContain('--template compose|systemd|launchd|caddy|k8s\n')
    expect(help('configure', 100)).toContain('--image-store classic|containerd\n')
    expect(help('init', 100)).toContain('[only with --template]')
    expect(help('registry:prune', 100)).toContain('(default 14d)')
  })

  test('names the program as the user calls it', () => {
    const text = renderHelp({ ...program, name: 'npx mirror' }, 'up', { width: 80, colors: createColors(false) })
    expect(text).toContain('$ npx mirror up [FLAGS]')
    expect(text).toContain('$ npx mirror up --autostart')
  })
})

describe('the short lines of help', () => {
  const summaries = [
    ...plugin.commands.map(({ id, summary }): [string, string] => [id, summary ?? '']),
    ...plugin.topics.map(({ name, description }): [string, string] => [name, description ?? '']),
  ]
  const flags = plugin.commands.flatMap(({ id, flags: own }) =>
    Object.values(own).map((flag): [string, Command.Flag.Cached] => [`${id} --${flag.name}`, flag]),
  )

  test.each(summaries)('of %s begins with a verb and has at most 60 characters', (_, summary) => {
    expect(summary).toMatch(/^[A-Z][a-z-]+ .*[^.]$/)
    expect(summary.length, summary).toBeLessThanOrEqual(60)
  })

  test.each(flags)('of %s has at most 60 characters, and the default of a value', (_, flag) => {
    const { description = '' } = flag
    expect(description).toMatch(/^(?:[a-z]|CA |Docker).*[^.]$/)
    expect(description.length, description).toBeLessThanOrEqual(60)
    if (flag.type === 'option' && flag.default === undefined) expect(description).toMatch(/\(default:? \S.*\)$/)
  })
})

describe('wrapped text', () => {
  test('keeps a word that is longer than a line, a number with its unit, and what is joined', () => {
    expect(wrapText('a loooooooooong word', 8)).toEqual(['a', 'loooooooooong', 'word'])
    expect(wrapText('up to 30 s', 8)).toEqual(['up to', '30 s'])
    expect(wrapText('see [a\u00a0b]', 7)).toEqual(['see', '[a b]'])
    expect(wrapText('all of 2.9 MiB', 12)).toEqual(['all of', '2.9 MiB'])
  })

  test('is cut between words where a phrase is longer than a line', () => {
    const words = [{ text: '12:03:04' }, { text: 'reason=the registry refused the connection' }]
    expect(wrapWords(words, 24, 2)).toBe('12:03:04\n  reason=the registry\n  refused the connection')
    expect(wrapWords([{ text: 'a'.repeat(30) }], 20, 2)).toBe(`${'a'.repeat(20)}\n  ${'a'.repeat(10)}`)
  })

  test('of a fact keeps every letter, and a number with its unit', () => {
    const render = (value: string) => renderFacts([['disk', value]], createColors(false), 24)
    expect(render('2 tags, 1 blob, 2.9 MiB')).toBe('  disk      2 tags, 1\n            blob,\n            2.9 MiB')
    const path = '/a/path/that/no/line/has/room/for'
    expect(render(path)).toMatch(/^ {2}disk {6}\/a/)
    expect(render(path).replaceAll(/\s/g, '')).toBe(`disk${path}`)
  })

  test('of a fact is one line where there is no terminal', () => {
    expect(renderFacts([['disk', '0 B of 2 GiB']], createColors(false), undefined)).toBe('  disk      0 B of 2 GiB')
  })
})

describe('the name of the program', () => {
  const byNpx = { npm_command: 'exec', npm_lifecycle_event: 'npx' }
  const name = 'dev-mirror'

  test.each([
    ['installed or linked', {}, '/usr/lib/node_modules/dev-mirror', 'mirror'],
    ['by npx in a clone', { ...byNpx, npm_config_local_prefix: '/clone' }, '/clone', 'npx mirror'],
    [
      'by npx where it is a dependency',
      { ...byNpx, npm_config_local_prefix: '/app' },
      '/app/node_modules/dev-mirror',
      'npx mirror',
    ],
    [
      'fetched by npx',
      { ...byNpx, npm_config_local_prefix: '/app' },
      '/home/me/.npm/_npx/1/node_modules/dev-mirror',
      'npx dev-mirror',
    ],
    [
      'by a program that npx runs',
      { ...byNpx, npm_config_local_prefix: '/app' },
      '/usr/lib/node_modules/dev-mirror',
      'mirror',
    ],
    ['by a script of a clone', { npm_command: 'run-script', npm_config_local_prefix: '/clone' }, '/clone', 'mirror'],
  ])('is as the user can type it: %s', (_, env, root, expected) => {
    expect(getProgramName({ env, argv: ['/usr/bin/node', join(root, 'bin', 'run.js')] }, { root, name }).name).toBe(
      expected,
    )
  })

  test.each([
    ['/usr/bin/mirror', {}, 'sudo'],
    ['/usr/local/bin/mirror', {}, 'sudo'],
    ['/src/clone/bin/run.js', {}, 'sudo'],
    ['/home/me/.nvm/versions/node/v24.0.0/bin/mirror', {}, 'sudo env "PATH=$PATH"'],
    ['/clone/node_modules/.bin/mirror', byNpx, 'sudo env "PATH=$PATH"'],
  ])('%s is called so that sudo finds it', (program, env, expected) => {
    expect(getProgramName({ env, argv: ['/usr/bin/node', program] }, { root: '/clone', name }).sudo).toBe(expected)
  })

  test('stands in each command of a text, and nowhere else', () => {
    const text = (mirror: string, sudo: string) =>
      [
        'mirror: the mirror is down. The mirror cache is empty.',
        `  ${mirror} up`,
        `  ${sudo} ${mirror} configure docker --mirror URL   (or: ${mirror} down)`,
        '/opt/mirror status',
      ].join('\n')
    const plain = text('mirror', 'sudo')
    for (const [called, sudo] of [
      ['mirror', 'sudo'],
      ['npx mirror', 'sudo env "PATH=$PATH"'],
      ['mirror', 'sudo env "PATH=$PATH"'],
    ] as const)
      expect(nameCommands(plain, { name: called, sudo })).toBe(text(called, sudo))
  })
})
