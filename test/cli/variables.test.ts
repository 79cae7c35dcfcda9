import { spawnSync } from 'node:child_process'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { listSettingVariables } from '../../src/config/load.ts'
import { findPackageRoot } from '../../src/lib/fs.ts'

const manifest = JSON.parse(await readFile(join(findPackageRoot(), 'oclif.manifest.json'), 'utf8')) as {
  commands: Record<string, { flags: Record<string, { env?: string }> }>
}
const flags = Object.entries(manifest.commands).flatMap(([command, { flags: own }]) =>
  Object.entries(own).map(([name, { env }]) => ({ flag: `${command} --${name}`, name, env })),
)

/** Variables for keys of mirror.yaml, for flags of `mirror up` that the server reads, and for the program itself. */
const settings = new Set([
  ...listSettingVariables(),
  'MIRROR_HOME',
  'MIRROR_CONFIG',
  'MIRROR_DATA',
  'MIRROR_IMAGE',
  'MIRROR_MEMORY',
])

/** Variables, under current and earlier names, of flags that pick an action or a way of printing; they have no effect. */
const withoutEffect = new Set(
  [...flags.map(({ name }) => `MIRROR_${name.replaceAll('-', '_').toUpperCase()}`), 'MIRROR_URL'].filter(
    (name) => !settings.has(name),
  ),
)

describe('the variable', () => {
  test.each(flags.filter(({ env }) => env !== undefined))('of $flag, $env, stands for a setting', ({ env }) => {
    expect(settings).toContain(env)
  })
})

describe('variables named after flags that are no settings', () => {
  let home: string
  let root: string
  beforeAll(async () => {
    home = await mkdtemp(join(tmpdir(), 'mirror-variables-'))
    root = join(home, 'root')
    await mkdir(join(root, 'etc', 'docker'), { recursive: true })
    await writeFile(join(root, 'etc', 'docker', 'daemon.json'), '{\n  "debug": true\n}\n')
    await mkdir(join(home, 'state'))
    await writeFile(
      join(home, 'state', 'mirror.log'),
      `${JSON.stringify({ level: 'info', msg: 'a line' })}\n`.repeat(3),
    )
    expect(mirror(['configure', 'docker', ...at(), '--yes'])).toMatchObject({ status: 0 })
  })
  afterAll(() => rm(home, { recursive: true }))

  const at = () => ['--root', root, '--mirror', 'http://127.0.0.1:5055']
  const daemonJson = () => readFile(join(root, 'etc', 'docker', 'daemon.json'), 'utf8')

  function mirror(args: readonly string[], more: NodeJS.ProcessEnv = {}) {
    const { status, stdout, stderr } = spawnSync(
      process.execPath,
      [join(findPackageRoot(), 'bin', 'run.js'), ...args],
      {
        cwd: home,
        env: {
          PATH: process.env['PATH'],
          HOME: home,
          MIRROR_HOME: home,
          MIRROR_NETWORKS: '',
          DOCKER_HOST: `unix://${home}/none.sock`,
          ...more,
        },
        encoding: 'utf8',
        timeout: 30_000,
      },
    )
    return { status, stdout, stderr }
  }

  const variables = Object.fromEntries([...withoutEffect].map((name) => [name, 'true']))

  /** The arguments for each command. `serve` has only settings, and the output of `demo` differs between runs. */
  const runs: Record<string, () => readonly string[]> = {
    'cache:check': () => ['cache', 'check', 'nginx'],
    'cache:ls': () => ['cache', 'ls'],
    'cache:prune': () => ['cache', 'prune'],
    'cache:rm': () => ['cache', 'rm', 'nginx'],
    'cache:verify': () => ['cache', 'verify'],
    completion: () => ['completion'],
    configure: () => ['configure', 'docker', ...at()],
    'credentials:refresh': () => ['credentials', 'refresh'],
    dashboard: () => ['dashboard', '--no-open'],
    doctor: () => ['doctor', '--only', 'mirror.runs'],
    down: () => ['down'],
    init: () => ['init', '--dry-run'],
    logs: () => ['logs'],
    'registry:gc': () => ['registry', 'gc'],
    'registry:ls': () => ['registry', 'ls'],
    'registry:prune': () => ['registry', 'prune'],
    'registry:rm': () => ['registry', 'rm', 'app'],
    status: () => ['status'],
    trace: () => ['trace', 'nginx'],
    up: () => ['up', '--dry-run'],
  }

  test('are tested with every command that has flags', () => {
    expect(withoutEffect).toContain('MIRROR_UNDO')
    expect([...Object.keys(runs), 'demo', 'serve'].toSorted()).toEqual(Object.keys(manifest.commands).toSorted())
  })

  test.each(Object.entries(runs))('do not change the effect and the output of `mirror %s`', async (_, args) => {
    const configured = await daemonJson()
    const usual = mirror(args())
    expect(mirror(args(), variables)).toEqual(usual)
    expect(await daemonJson()).toBe(configured)
    expect(configured).toContain('5055')
  })

  test('do not answer a question of `mirror configure`', () => {
    const { status, stderr } = mirror(['configure', 'docker', ...at(), '--undo'], variables)
    expect(status).toBe(2)
    expect(stderr).toContain('Not a terminal: pass --yes to apply')
  })
})
