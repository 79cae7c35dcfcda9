import { mkdtemp, readFile, readdir, rm, stat, writeFile } from 'node:fs/promises'
import { spawnSync } from 'node:child_process'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, inject, onTestFinished, test } from 'vitest'
import { findPackageRoot } from '../../src/lib/fs.ts'
import { computeDigest } from '../../src/oci/reference.ts'
import { get } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { packPackage } from '../support/installed-package.ts'
import { runInTerminal } from '../support/terminal.ts'
import { startUpstream } from '../support/upstream.ts'
import { run } from './support/run.ts'

const { missing, prefix } = inject('e2e')
const minutes = 60_000

async function temporaryFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), prefix))
  onTestFinished(() => rm(folder, { recursive: true, force: true }))
  return folder
}

const npm = (args: string[], env: NodeJS.ProcessEnv = {}, cwd = findPackageRoot()) =>
  run('npm', [...args, '--no-audit', '--no-fund'], { cwd, env: { ...process.env, ...env }, timeoutMs: 5 * minutes })

/** Sums up the sizes of all files in a folder. */
async function bytesBelow(folder: string): Promise<number> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true })
  const files = entries.filter((entry) => entry.isFile())
  const sizes = await Promise.all(files.map(async ({ parentPath, name }) => (await stat(join(parentPath, name))).size))
  return sizes.reduce((sum, size) => sum + size, 0)
}

/** Installs a version of the package `node`, and returns the path of its program. */
async function getNode(version: string): Promise<string> {
  const folder = await temporaryFolder()
  await npm(['install', '--prefix', folder, '--no-save', `node@${version}`], {}, folder)
  // Searches for the program, because it is in a separate package for each platform.
  const files = await readdir(folder, { recursive: true })
  return join(
    folder,
    files.find((file) => /\/node-[^/]+\/bin\/node$/.test(file))!,
  )
}

describe.skipIf(missing !== undefined)('the installation of the command', () => {
  test('npm i -g from an empty cache installs at most three packages below 25 MB, and runs no script', async () => {
    const folder = await temporaryFolder()
    const tarball = await packPackage(folder)
    const env = { npm_config_cache: join(folder, 'cache'), npm_config_prefix: folder }
    const install = ['install', '--global', tarball, '--no-audit', '--no-fund']
    const { status, stdout, stderr } = spawnSync('npm', install, {
      cwd: folder,
      env: { ...process.env, ...env },
      encoding: 'utf8',
    })
    expect(status, stderr).toBe(0)
    expect(`${stdout}${stderr}`).not.toMatch(/install[- ]scripts?|allow-scripts|deprecated/i)
    const modules = join(folder, 'lib', 'node_modules')
    const files = await readdir(modules, { recursive: true, withFileTypes: true })
    const manifests = files.filter(({ name, parentPath }) => name === 'package.json' && !parentPath.endsWith('/bin'))
    expect(manifests.length).toBeLessThanOrEqual(3)
    for (const { parentPath } of manifests) {
      const { scripts = {} } = JSON.parse(await readFile(join(parentPath, 'package.json'), 'utf8')) as {
        scripts?: Record<string, string>
      }
      for (const name of ['preinstall', 'install', 'postinstall']) expect(scripts).not.toHaveProperty(name)
    }
    expect(await bytesBelow(modules)).toBeLessThan(25e6)
    expect(await bytesBelow(join(folder, 'cache'))).toBeLessThan(25e6)
  })

  test('the program that npm i -g installs from the tarball starts, serves a pull and stops', async () => {
    const folder = await temporaryFolder()
    await npm(['install', '--global', '--prefix', folder, await packPackage(folder)])
    const program = join(folder, 'bin', 'mirror')
    const image = makeImage({ layers: [100_000] })
    const upstream = await startUpstream({ images: { 'library/app': { v1: image } } })
    const config = {
      cache: { listen: ['127.0.0.1:0'] },
      registry: { listen: ['127.0.0.1:0'] },
      admin: { listen: ['127.0.0.1:0'] },
      upstreams: { 'docker.io': { url: upstream.url, credentials: 'anonymous' } },
    }
    await writeFile(join(folder, 'mirror.yaml'), JSON.stringify(config))
    const env = { ...process.env, MIRROR_HOME: folder, HOME: folder }
    onTestFinished(() => void spawnSync(program, ['down', '--yes'], { env }))
    await run(program, ['up'], { env })
    const { endpoints } = JSON.parse(await run(program, ['status', '--json'], { env })) as {
      endpoints: { cache: string[] }
    }
    const { status, body } = await get(endpoints.cache[0]!, `/v2/library/app/blobs/${image.layers[0]}`)
    expect({ status, digest: computeDigest(body) }).toEqual({ status: 200, digest: image.layers[0] })
    expect(await run(program, ['down'], { env })).toContain('Stopped')
  })

  test('the program that npm i -g installs from the tarball shows its help and the demo in a terminal', async () => {
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

  test('npm link makes the clone a command, and npm uninstall -g removes the command', async () => {
    const folder = await temporaryFolder()
    const env = { npm_config_prefix: folder }
    await npm(['link', '--ignore-scripts'], env)
    const program = join(folder, 'bin', 'mirror')
    expect(await run(program, ['--version'])).toMatch(/^dev-mirror\//)
    await npm(['uninstall', '--global', 'dev-mirror'], env)
    expect(spawnSync(program).error).toMatchObject({ code: 'ENOENT' })
  })

  test('npx mirror works in the clone, and its messages name npx mirror', async () => {
    const folder = await temporaryFolder()
    const options = {
      cwd: join(findPackageRoot(), 'docs'),
      env: { ...process.env, MIRROR_HOME: folder },
      encoding: 'utf8' as const,
    }
    const { status, stderr } = spawnSync('npx', ['mirror', 'status'], options)
    expect(status).toBe(3)
    expect(stderr).toContain('npx mirror up')
  })
})

describe.skipIf(missing !== undefined)('the version of Node', () => {
  test.each(['14', '16', '18', '20.10', '22.2'])('Node %s is refused with the reason', async (version) => {
    const node = await getNode(version)
    for (const args of [['bin/run.js', 'status'], ['bin/run.js', '--help'], ['scripts/build.js']]) {
      const { status, stdout, stderr } = spawnSync(node, args, { cwd: findPackageRoot(), encoding: 'utf8' })
      expect({ status, stdout }, stderr).toEqual({ status: 1, stdout: '' })
      expect(stderr).toMatch(new RegExp(`^mirror: Node 20\\.19 or newer is needed.*; this is Node ${version}\\.`))
      expect(stderr).not.toMatch(/^\s+at /m)
    }
  })

  test.each(['20.19', '22.3'])('Node %s runs the demo', async (version) => {
    const node = await getNode(version)
    const { status, stderr } = spawnSync(node, ['bin/run.js', 'demo'], { cwd: findPackageRoot(), encoding: 'utf8' })
    expect(status, stderr).toBe(0)
  })
})
