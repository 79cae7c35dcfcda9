import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { appendFile, mkdir, mkdtemp, open, rm, writeFile } from 'node:fs/promises'
import { existsSync, openSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { findPackageRoot } from '../../src/lib/fs.ts'
import { commandEnv } from '../support/command-env.ts'

const program = join(findPackageRoot(), 'bin', 'run.js')

let home: string
let env: NodeJS.ProcessEnv
beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'mirror-usage-'))
  env = commandEnv(home)
})
afterAll(() => rm(home, { recursive: true }))

const mirror = (
  args: string[],
  stdio: [number | 'pipe', number | 'pipe'] = ['pipe', 'pipe'],
  more: NodeJS.ProcessEnv = {},
) =>
  spawnSync(process.execPath, [program, ...args], {
    cwd: home,
    env: { ...env, ...more },
    encoding: 'utf8',
    stdio: ['ignore', ...stdio],
  })

describe('wrong usage', () => {
  test.each([
    [['sttaus'], 'Unknown command: sttaus. Did you mean status?', 'mirror status'],
    [['cache', 'lss'], 'Unknown command: cache lss. Did you mean cache ls?', 'mirror cache ls'],
    [['status', 'now'], 'Unexpected argument: now.\n', 'mirror status --help'],
    [['up', '--fpreground'], 'Unknown flag: --fpreground. Did you mean --foreground?', 'mirror up --help'],
    [['cache', 'rm', '--dryrun', 'a'], 'Unknown flag: --dryrun. Did you mean --dry-run?', 'mirror cache rm --help'],
    [
      ['registry', 'prune', '--older=3d'],
      'Unknown flag: --older=3d. Did you mean --older-than?',
      'mirror registry prune --help',
    ],
    [['up', '--runtime', 'contaner'], 'process, container. Did you mean container?', 'mirror up --help'],
    [['init', '--template', 'composee'], 'Did you mean compose?', 'mirror init --help'],
    [['logs', '--tail', '5'], 'Unknown flag: --tail. Did you mean --lines?', 'mirror logs --help'],
    [['status', '--no-color'], 'Unknown flag: --no-color. To print without colours, set NO_COLOR=1.', 'mirror status'],
    [['--no-color', 'status'], 'To print without colours, set NO_COLOR=1.', 'NO_COLOR=1 mirror status'],
    [['completion', 'bsah'], 'Did you mean bash?', 'mirror completion --help'],
    [['restart'], 'Unknown command: restart.', 'mirror down && mirror up'],
    [['configure', 'docker', 'podman'], 'Name one client at a time, not also podman.\n', 'mirror configure CLIENT'],
    [['configure', 'dokcer'], 'There is no client "dokcer". Did you mean docker?', 'mirror configure CLIENT'],
    [['configure', '--list', '--undo'], '--undo and --list exclude each other.', 'mirror configure --help'],
    [['init', '--output', 'file'], '--output needs --template', 'mirror init --help'],
    [['up', '--cache-port', 'x'], '--cache-port takes an integer, not x.\n', 'mirror up --help'],
    [
      ['up', '--cache-port', '99999'],
      '--cache-port takes an integer of at most 65535, not 99999.\n',
      'mirror up --help',
    ],
    [['init', '--template', 'foo'], '--template takes one of compose, systemd,', 'mirror init --help'],
    [['init', '--template'], '--template takes one of compose, systemd,', 'mirror init --help'],
    [
      ['registry', 'prune', '--older-than', '14'],
      '--older-than: "14" is not a duration such as 20s, 36h or 14d.\n',
      'mirror registry prune --help',
    ],
    [
      ['configure', 'docker', '--client-version', 'abc'],
      '--client-version: "abc" is not a version such as 28.3.\n',
      'mirror configure --help',
    ],
    [['cache', 'rm'], 'Missing argument: NAME', 'mirror cache rm --help'],
  ])('is answered with a suggestion and exit code 2: %j', (args, message, next) => {
    const { status, stdout, stderr } = mirror(args)
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' })
    expect(stderr).toMatch(/^mirror: /)
    expect(stderr).toContain(message)
    expect(stderr).toMatch(/\n\nNext:\n/)
    expect(stderr).toContain(`\n  ${next}`)
    expect(stderr).not.toMatch(/^\s+at /m)
  })

  test('is only a warning for container flags of a process, and names the command that starts a container', () => {
    const { status, stderr } = mirror(['up', '--runtime', 'process', '--memory', '1GiB', '--image=a', '--dry-run'])
    expect(status).toBe(0)
    expect(stderr).toContain('--image and --memory have no effect on a mirror that runs as a process.')
    expect(stderr).toContain('mirror up --runtime container --memory 1GiB --image=a --dry-run')
  })

  test('is answered under npx with a next step that begins with npx', () => {
    const byNpx = { npm_command: 'exec', npm_lifecycle_event: 'npx', npm_config_local_prefix: findPackageRoot() }
    expect(mirror(['sttaus'], undefined, byNpx).stderr).toContain('\n  npx mirror status\n')
    expect(mirror(['status'], undefined, byNpx).stderr).toContain('npx mirror up')
    expect(mirror(['--help'], undefined, byNpx).stdout).toContain('$ npx mirror COMMAND')
  })
})

test('a busy port is answered by `serve` with the variable that moves it', async () => {
  const blocker = createServer().listen(0, '127.0.0.1')
  await once(blocker, 'listening')
  try {
    const { port } = blocker.address() as AddressInfo
    const { status, stderr } = mirror(['serve'], undefined, { MIRROR_CACHE_LISTEN: `127.0.0.1:${port}` })
    expect(status, stderr).toBe(1)
    expect(stderr).toMatch(/\n {2}MIRROR_CACHE_PORT=\d+ mirror serve/)
    expect(stderr).not.toContain('mirror up --cache-port')
  } finally {
    blocker.close()
  }
})

describe('the use of colour', () => {
  const red = '\x1b[31mmirror:\x1b[39m'

  test.each([
    ['without a terminal', {}, false],
    ['with FORCE_COLOR=1', { FORCE_COLOR: '1' }, true],
    ['with FORCE_COLOR=0', { FORCE_COLOR: '0' }, false],
    ['with NO_COLOR=1 and FORCE_COLOR=1', { NO_COLOR: '1', FORCE_COLOR: '1' }, false],
  ])('is correct %s: %j', (_, more, inColor) => {
    expect(mirror(['sttaus'], undefined, more).stderr.startsWith(red)).toBe(inColor)
    expect(mirror(['--help'], undefined, more).stdout.includes('\x1b[1mUSAGE\x1b[22m')).toBe(inColor)
  })
})

/** Commands that need no mirror and print on stdout. */
const printing = [
  ['--help'],
  ['up', '--help'],
  ['cache'],
  ['--version'],
  ['status', '--json'],
  ['cache', 'ls', '--json'],
  ['registry', 'ls', '--json'],
  ['configure', '--list', '--json'],
  ['init', '--template', 'systemd'],
  ['init', '--dry-run'],
  ['logs', '--lines', '2000'],
]

describe('output that no reader takes', () => {
  beforeAll(async () => {
    await mkdir(join(home, 'state'), { recursive: true })
    const line = `${JSON.stringify({ level: 'info', time: '2026-01-01T00:00:00Z', msg: 'x'.repeat(200) })}\n`
    await writeFile(join(home, 'state', 'mirror.log'), line.repeat(2000))
  })

  const down = (args: string[]) => (args[0] === 'status' ? 3 : 0)

  test.skipIf(!existsSync('/dev/full')).each(printing.map((args) => [args]))(
    'of %j fails on a full disk with the reason and without a stack',
    (args) => {
      const { status, stderr } = mirror(args, [openSync('/dev/full', 'w'), 'pipe'])
      expect(status).toBe(down(args) || 1)
      expect(stderr).toContain('cannot write to stdout: ENOSPC')
      expect(stderr.match(/ENOSPC/g)).toHaveLength(1)
      expect(stderr).not.toMatch(/^\s+at /m)
    },
  )

  test.skipIf(!existsSync('/dev/full')).each([...printing, ['sttaus'], ['status']].map((args) => [args]))(
    'on stderr does not change the result of %j when it cannot be written',
    async (args) => {
      const usual = mirror(args)
      const { status, stdout } = mirror(args, ['pipe', openSync('/dev/full', 'w')])
      expect({ status, stdout }).toEqual({ status: usual.status, stdout: usual.stdout })
      expect(await withClosed('stderr', args)).toMatchObject({ exit: usual.status, stdout: usual.stdout })
    },
  )

  test.each(printing.map((args) => [args]))('of %j ends without an error when its reader leaves', async (args) => {
    expect(await withClosed('stdout', args)).toEqual({ exit: down(args), stdout: '', stderr: mirror(args).stderr })
  })

  test.each([
    ['logs', ['logs', '--follow']],
    ['status', ['status', '--watch', '--json']],
  ])('of %s that follows changes ends when its reader leaves', async (_, args) => {
    const child = spawn(process.execPath, [program, ...args], { cwd: home, env, stdio: ['ignore', 'pipe', 'pipe'] })
    const ended = once(child, 'exit')
    await once(child.stdout, 'data')
    child.stdout.destroy()
    // Write more lines until the command notices that its reader has left.
    const log = await open(join(home, 'state', 'mirror.log'), 'a')
    const more = setInterval(() => void appendFile(log, '{"msg":"more"}\n'), 50)
    expect(await ended).toEqual([0, null])
    clearInterval(more)
    await log.close()
  })

  /** Runs the command with stdout or stderr as a closed pipe. */
  async function withClosed(which: 'stdout' | 'stderr', args: string[]) {
    const child = spawn(process.execPath, [program, ...args], { cwd: home, env, stdio: ['ignore', 'pipe', 'pipe'] })
    child[which].destroy()
    const texts = { stdout: '', stderr: '' }
    for (const name of ['stdout', 'stderr'] as const)
      if (name !== which) child[name].setEncoding('utf8').on('data', (text: string) => (texts[name] += text))
    const [exit] = (await once(child, 'close')) as [number | null]
    return { exit, ...texts }
  }
})
