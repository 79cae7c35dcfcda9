import { execFile } from 'node:child_process'
import { mkdtemp, readFile, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { promisify } from 'node:util'
import { describe, expect, onTestFinished, test } from 'vitest'
import * as library from '../../src/index.ts'
import { findPackageRoot } from '../../src/lib/fs.ts'
import { startMirrorProcess } from '../support/mirror-process.ts'

const dist = join(findPackageRoot(), 'dist')
const run = promisify(execFile)
/** Libraries that docs/architecture.md allows to be loaded only when they are used. */
const doors = [
  'dockerode',
  'execa',
  'inquirer',
  'yaml',
  'undici',
  'socks',
  'bcryptjs',
  'koffi',
  'prom-client',
  'pino',
  'diff',
]

async function temporaryFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'mirror-start-'))
  onTestFinished(() => rm(folder, { recursive: true }))
  return folder
}

/** Lists all files that a start of the program loads, from Node's coverage report. */
async function filesLoadedBy(...args: string[]): Promise<string[]> {
  const [home, coverage] = [await temporaryFolder(), await temporaryFolder()]
  const env = { ...process.env, MIRROR_HOME: home, NODE_V8_COVERAGE: coverage }
  // Accept exit code 3: it is that of `status` when no mirror runs.
  await run(process.execPath, [join(findPackageRoot(), 'bin', 'run.js'), ...args], { env }).catch((error: unknown) => {
    if ((error as { code?: unknown }).code !== 3) throw error
  })
  const reports = await Promise.all(
    (await readdir(coverage)).map(async (name) => {
      const { result } = JSON.parse(await readFile(join(coverage, name), 'utf8')) as { result: { url: string }[] }
      return result.map(({ url }) => url)
    }),
  )
  return reports.flat().filter((url) => url.startsWith('file:'))
}

describe('a start of the program', () => {
  test('in a removed folder fails with one line, unless the command needs no folder', async () => {
    const start = async (argument: string) => {
      const script = 'mkdir gone && cd gone && rmdir ../gone && exec "$0" "$@"'
      const program = [process.execPath, join(findPackageRoot(), 'bin', 'run.js'), argument]
      const cwd = await temporaryFolder()
      return run('sh', ['-c', script, ...program], { cwd }).catch((error: unknown) => error as { stderr: string })
    }
    expect(await start('--version')).toMatchObject({ stdout: expect.stringMatching(/^dev-mirror\//), stderr: '' })
    expect(await start('status')).toMatchObject({
      code: 1,
      // Match loosely, because Node's text differs between versions.
      stderr: expect.stringMatching(/^mirror: ENOENT: .*no such file or directory.*uv_cwd\n$/) as string,
    })
  })

  test.each([['--help'], ['status']])(
    'as `mirror %s` loads fewer than 16 files and no library that is loaded on use',
    async (argument) => {
      const files = await filesLoadedBy(argument)
      expect(files).toContainEqual(expect.stringMatching(/\/dist\/cli\/main\.js$/))
      // Find the packages by the bundler's comments, which name the file of each part.
      const texts = await Promise.all(files.map((url) => readFile(fileURLToPath(url), 'utf8')))
      const packages = texts.flatMap((text) => [...text.matchAll(/^ *\/\/ node_modules\/((?:@[^/\n]+\/)?[^/\n]+)\//gm)])
      const names = new Set(packages.map(([, name]) => name!))
      expect(names).toContain('@oclif/core')
      expect([...names].filter((name) => doors.includes(name))).toEqual([])
      expect(files.filter((file) => file.includes('/node_modules/'))).toEqual([])
      // Ignore bin/compile-cache.js, which only Node 22.1 and later load.
      const own = files.filter((file) => !file.endsWith('/bin/compile-cache.js'))
      expect(own.length).toBeLessThan(16)
    },
  )

  test.skipIf(process.platform === 'win32')('with 64 file descriptors succeeds five times in a row', async () => {
    for (let time = 0; time < 5; time++) {
      const mirror = await startMirrorProcess({
        upstreams: {},
        registry: true,
        wrapper: ['sh', '-c', 'ulimit -n 64; exec "$@"', 'sh'],
      })
      expect((await mirror.get('/v2/')).status).toBe(200)
      expect(await mirror.status()).toMatchObject({ running: true })
    }
  })
})

describe('the bundle', () => {
  test('imports no module of Node with `import`, which would read its lazy exports', async () => {
    const files = (await readdir(dist, { recursive: true })).filter((file) => file.endsWith('.js'))
    for (const file of files)
      expect(await readFile(join(dist, file), 'utf8'), file).not.toMatch(/^import [^"']*["']node:/m)
  })

  test('exports the same names as src/index.ts', async () => {
    const url = pathToFileURL(join(dist, 'index.js')).href
    const script = `console.log(JSON.stringify(Object.keys(await import(${JSON.stringify(url)}))))`
    const { stdout } = await run(process.execPath, ['--input-type=module', '--eval', script])
    expect((JSON.parse(stdout) as string[]).toSorted()).toEqual(Object.keys(library).toSorted())
  })
})
