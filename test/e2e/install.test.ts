import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { spawnSync } from 'node:child_process'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, inject, onTestFinished, test } from 'vitest'
import { packageRoot } from '../../src/lib/package-root.ts'
import { packPackage } from '../support/installed-package.ts'
import { runInTerminal } from '../support/terminal.ts'
import { run } from './support/run.ts'

const { missing, prefix } = inject('e2e')
const minutes = 60_000

async function temporaryFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), prefix))
  onTestFinished(() => rm(folder, { recursive: true, force: true }))
  return folder
}

const npm = (args: string[], env: NodeJS.ProcessEnv = {}, cwd = packageRoot()) =>
  run('npm', [...args, '--no-audit', '--no-fund'], { cwd, env: { ...process.env, ...env }, timeoutMs: 5 * minutes })

/** The program of the package `node`, of some version. */
async function getNode(version: string): Promise<string> {
  const folder = await temporaryFolder()
  await npm(['install', '--prefix', folder, '--no-save', `node@${version}`], {}, folder)
  // It lies in a package of its own for each platform.
  const files = await readdir(folder, { recursive: true })
  return join(
    folder,
    files.find((file) => /\/node-[^/]+\/bin\/node$/.test(file))!,
  )
}

describe.skipIf(missing !== undefined)('the ways to get the command', () => {
  test('npm i -g installs the tarball, and mirror shows its help in a terminal', async () => {
    const folder = await temporaryFolder()
    await npm(['install', '--global', '--prefix', folder, await packPackage(folder)])
    const env = { PATH: `${join(folder, 'bin')}:${process.env['PATH']}`, HOME: folder, MIRROR_HOME: folder }
    for (const args of [[], ['up', '--help'], ['cache'], ['--version']]) {
      const { exit, text } = await runInTerminal(['mirror', ...args], { columns: 80, env, cwd: folder })
      expect(exit, text).toBe(0)
    }
    const demo = await runInTerminal(['mirror', 'demo'], { columns: 80, env, cwd: folder })
    expect(demo.exit, demo.text).toBe(0)
    expect(demo.text).toMatch(/\n +mirror up\n/)
  })

  test('npm link makes the clone a command, and npm uninstall -g takes it away', async () => {
    const folder = await temporaryFolder()
    const env = { npm_config_prefix: folder }
    await npm(['link', '--ignore-scripts'], env)
    const program = join(folder, 'bin', 'mirror')
    expect(await run(program, ['--version'])).toMatch(/^dev-mirror\//)
    await npm(['uninstall', '--global', 'dev-mirror'], env)
    expect(spawnSync(program).error).toMatchObject({ code: 'ENOENT' })
  })

  test('npx mirror works in the clone, and names itself so', async () => {
    const folder = await temporaryFolder()
    const options = {
      cwd: join(packageRoot(), 'docs'),
      env: { ...process.env, MIRROR_HOME: folder },
      encoding: 'utf8' as const,
    }
    const { status, stderr } = spawnSync('npx', ['mirror', 'status'], options)
    expect(status).toBe(3)
    expect(stderr).toContain('npx mirror up')
  })
})

describe.skipIf(missing !== undefined)('a Node that is too old', () => {
  test.each(['14', '16', '18', '20.10', '22.2'])('%s is told which one is needed', async (version) => {
    const node = await getNode(version)
    for (const args of [['bin/run.js', 'status'], ['bin/run.js', '--help'], ['scripts/build.js']]) {
      const { status, stdout, stderr } = spawnSync(node, args, { cwd: packageRoot(), encoding: 'utf8' })
      expect({ status, stdout }, stderr).toEqual({ status: 1, stdout: '' })
      expect(stderr).toMatch(new RegExp(`^mirror: Node 20\\.19 or newer is needed.*; this is Node ${version}\\.`))
      expect(stderr).not.toMatch(/^\s+at /m)
    }
  })

  test.each(['20.19', '22.3'])('%s is not: it runs the demo', async (version) => {
    const node = await getNode(version)
    const { status, stderr } = spawnSync(node, ['bin/run.js', 'demo'], { cwd: packageRoot(), encoding: 'utf8' })
    expect(status, stderr).toBe(0)
  })
})
