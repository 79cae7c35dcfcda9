import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { answerShell, complete, type CompletionSources, splitLine } from '../../../src/cli/complete.ts'
import { getCompletionScript, shells } from '../../../src/cli/completion-scripts.ts'
import { clientNames } from '../../../src/clients/types.ts'
import { checks as doctorChecks } from '../../../src/doctor/checks.ts'
import { findPackageRoot } from '../../../src/lib/fs.ts'

const read = async (file: string) => JSON.parse(await readFile(join(findPackageRoot(), file), 'utf8'))
const { commands, checks } = await read('oclif.manifest.json')
const { oclif } = await read('package.json')

const zeros = `sha256:${'0'.repeat(64)}`
const cached = ['docker.io/library/alpine:3.20', 'docker.io/library/alpine:3.21', 'docker.io/me/app:1', 'ghcr.io/a/b:1']
const sources: CompletionSources = {
  commands,
  checks,
  topics: oclif.topics,
  names: {
    cached: async () => cached,
    pushed: async () => ['app:1', 'app:2', 'team/tool:old-1', `app@${zeros}`],
    registries: () => ['localhost:5001', '127.0.0.1:5001'],
    upstreams: async () => ['docker.io', 'ghcr.io', 'registry.corp.example:5000'],
  },
}
const values = async (line: string) => {
  const words = line.split(' ')
  const { candidates, files } = await complete(words.slice(0, -1), words.at(-1)!, sources)
  return [...candidates.map(({ value }) => value), ...(files ? ['<files>'] : [])]
}

function expectedChecks(start: string): string[] {
  return doctorChecks.flatMap(({ id }) => (id.startsWith(start) ? [id] : []))
}

describe('the completion', () => {
  test.each<[string, string[]]>([
    ['sta', ['status']],
    ['cac', ['cache']],
    ['cache ', ['check', 'ls', 'prune', 'rm', 'verify']],
    ['registry p', ['prune']],
    ['help con', ['configure']],
    ['help cache r', ['rm']],
    ['help registry ', ['gc', 'ls', 'prune', 'rm']],
    ['help cache rm ', []],
    ['help status ', []],
    ['doctor --only upstreams.t', ['upstreams.tls', 'upstreams.token', 'upstreams.time']],
    ['doctor --only mirr', ['mirror', ...expectedChecks('mirror.')]],
    ['doctor --only=upstreams.pr', ['--only=upstreams.proxy']],
    ['doctor --only mirror,upstreams.pr', ['mirror,upstreams.proxy']],
    ['doctor --only clients.kind', ['clients.kind', ...expectedChecks('clients.kind.')]],
    ['trace --client pod', ['podman']],
    ['trace --platform linux/arm', ['linux/arm64', 'linux/arm/v7', 'linux/arm/v6']],
    ['trace gh', ['ghcr.io/a/b:1']],
    [
      'trace lo',
      ['localhost:5001/app:1', 'localhost:5001/app:2', 'localhost:5001/team/tool:old-1', `localhost:5001/app@${zeros}`],
    ],
    ['trace localhost:5001/te', ['localhost:5001/team/tool:old-1']],
    ['trace 127.0.0.1:5001/app:', ['127.0.0.1:5001/app:1', '127.0.0.1:5001/app:2']],
    ['trace localhost:5001/app@', [`localhost:5001/app@${zeros}`]],
    ['--v', ['--version']],
    ['-', ['--help', '--version']],
    ['cache rm alpine:3.20 alpine:', ['alpine:3.21']],
    ['doctor docker do', []],
    ['configure ', [...clientNames]],
    ['configure pod', ['podman']],
    ['configure docker ', []],
    ['configure --sc', ['--scope']],
    ['configure --scope ', ['user', 'system']],
    ['configure --scope=s', ['--scope=system']],
    ['configure --scope user po', ['podman']],
    ['configure --file ', ['<files>']],
    ['configure --file=', ['<files>']],
    ['configure --file ./kind.yaml kin', ['kind']],
    ['configure --json --js', []],
    ['configure -y --y', []],
    ['init --template k', ['k8s']],
    ['init --upstream registry.', ['registry.corp.example:5000']],
    ['up --credentials docker.io --credentials g', ['ghcr.io']],
    ['up --cred', ['--credentials']],
    ['up --credentials docker.io --cred', ['--credentials']],
    ['up --cache-port ', []],
    ['cache rm alpine', ['alpine:3.20', 'alpine:3.21']],
    ['cache rm docker.io/library/alpine:3.21', ['docker.io/library/alpine:3.21']],
    ['cache rm me/', ['me/app:1']],
    ['cache rm alpine:3.20 gh', ['ghcr.io/a/b:1']],
    ['registry rm app:', ['app:1', 'app:2']],
    ['registry prune te', ['team/tool']],
    ['registry prune app app', []],
    ['completion z', ['zsh']],
    ['cache rm -- --', []],
    ['nothing ', []],
    ['cache nothing ', []],
    ['status --he', ['--help']],
  ])('of "%s" is %j', async (line, expected) => {
    expect(await values(line)).toEqual(expected)
  })

  test('of nothing lists every command and topic with its summary', async () => {
    const { candidates } = await complete([], '', sources)
    const names = candidates.map(({ value }) => value)
    for (const id of Object.keys(commands)) expect(names).toContain(id.split(':')[0])
    expect(candidates.every(({ description }) => description !== undefined && description !== '')).toBe(true)
  })

  test('offers no name with characters that a shell would change', async () => {
    const odd = [
      'ghcr.io/a/$(reboot):1',
      'ghcr.io/a/b c:1',
      'ghcr.io/a/`x`:1',
      'ghcr.io/a/\u001b[31m:1',
      'ghcr.io/a/ok:1',
      "ghcr.io/a/'",
    ]
    const names = { ...sources.names, cached: async () => odd }
    const { candidates } = await complete(['cache', 'rm'], 'ghcr', { ...sources, names })
    expect(candidates.map(({ value }) => value)).toEqual(['ghcr.io/a/ok:1'])
  })
})

describe('the answer to a shell', () => {
  const breaks = '--breaks= \t\n"\'@><=;|&(:'
  const bash = (line: string) => answerShell('bash', [`--line=${line}`, breaks], sources)

  test.each([
    ['mirror registry rm te', 'team/tool:old-1\n'],
    ['mirror registry rm app:', '1\n2\n'],
    ['mirror cache rm docker.io/library/alpine:3.20', '3.20\n'],
    ['mirror configure --scope=', 'user\nsystem\n'],
    ['mirror registry rm "app:', 'app:1\napp:2\n'],
    ["mirror registry rm 'team/tool:o", 'team/tool:old-1\n'],
    ['mirror registry rm team/tool:old\\-', 'old-1\n'],
    ['MIRROR_HOME=/tmp/a mirror  sta', 'status\n'],
    ['mirror configure --file "a b.yaml" kub', ''],
    ['mirror configure --file "a b.yaml" kin', 'kind\n'],
    ['mirror configure --file ', ':files\n'],
    ['mirror cache rm $(touch /tmp/x) gh', 'ghcr.io/a/b:1\n'],
  ])('bash gets for %j only what readline replaces: %j', async (line, expected) => {
    expect(await bash(line)).toBe(expected)
  })

  test('the other shells get the whole word and its description', async () => {
    expect(await answerShell('zsh', ['--current=app:', '--', 'registry', 'rm'], sources)).toBe('app:1\napp:2\n')
    expect(await answerShell('fish', ['--current=stat', '--'], sources)).toMatch(/^status\t.+\n$/)
    expect(await answerShell('powershell', ["--current='gh", '--', 'cache', 'rm'], sources)).toBe('ghcr.io/a/b:1\n')
    expect(await answerShell('zsh', ['--current=', '--', 'configure', '--ca'], sources)).toBe(':files\n')
  })

  test('has words without expansion', () => {
    expect(splitLine(`mirror a\\ b 'c d'"e \\" f" $HOME`)).toEqual({
      words: ['mirror', 'a b', 'c de " f'],
      current: '$HOME',
      isQuoted: false,
    })
    expect(splitLine('mirror "" ')).toMatchObject({ words: ['mirror', ''], current: '' })
    expect(splitLine(`mirror 'a b`)).toMatchObject({ current: 'a b', isQuoted: true })
    expect(splitLine('mirror a\\')).toMatchObject({ current: 'a\\' })
  })
})

test('the help of completion names the shells', () => {
  const { description } = commands.completion.args.shell
  expect(description).toBe('bash, zsh, fish or powershell (default: explain the installation)')
})

describe('the completion script', () => {
  test.each(shells)('for %s passes the line to the hidden command, and has no rest of its template', (shell) => {
    const script = getCompletionScript(shell)
    expect(script).toContain(`mirror __complete ${shell} `)
    expect(script).not.toContain('\\$')
    expect(script.endsWith('\n')).toBe(true)
  })

  test('for PowerShell makes a result of each line, and quotes the current word', () => {
    const script = getCompletionScript('powershell')
    expect(script).toContain('Register-ArgumentCompleter -Native -CommandName mirror')
    expect(script).toContain('"--current=$wordToComplete" -- @previous')
    expect(script.match(/[{(]/g)).toHaveLength(script.match(/[})]/g)!.length)
  })
})
