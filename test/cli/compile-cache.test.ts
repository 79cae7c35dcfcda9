import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { chmod, chown, mkdir, mkdtemp, readdir, rm, stat, symlink, utimes } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { homedir, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { findPackageRoot } from '../../src/lib/fs.ts'

const require = createRequire(import.meta.url)
const program = join(findPackageRoot(), 'bin', 'run.js')
const { compileCacheFolder, isClosed } = require('../../bin/compile-cache.js') as {
  compileCacheFolder: (how: object) => string | undefined
  isClosed: (path: string, uid: number) => boolean
}
const { version } = require('../../package.json') as { version: string }
const keepsCode = 'enableCompileCache' in process.getBuiltinModule('node:module')
const nobody = 65_534
const uid = process.geteuid?.() ?? -1
const isRoot = uid === 0
/** True when a test can create a folder below the home folder that only this user can change. */
const isHomeSafe = process.platform !== 'win32' && isClosed(homedir(), uid)

let folder: string
beforeEach(async () => {
  // Avoid the temporary folder: every user can write it, so nothing below it is safe enough.
  folder = await mkdtemp(join(homedir(), '.mirror-test-'))
  onTestFinished(() => rm(folder, { recursive: true, force: true }))
})

/** Returns a home folder that does not exist, as if from the user database. */
const home = () => join(folder, 'none', 'of', 'these')

function find(env: object): string | undefined {
  return compileCacheFolder({ platform: 'linux', env, uid, version: '1.0.0', home })
}

/** Runs `mirror --version` and returns its output. */
function start(env: Record<string, string>, args: string[] = []): string {
  const { stdout, stderr, status } = spawnSync(process.execPath, [...args, program, '--version'], {
    env: { PATH: process.env['PATH'], HOME: folder, ...env },
    encoding: 'utf8',
  })
  expect(status, stderr).toBe(0)
  return stdout + stderr
}

describe.runIf(isHomeSafe)('the folder for compiled code', () => {
  test('is created below the cache folder of the user, with mode 0700', async () => {
    const cache = join(folder, 'cache')
    const found = find({ XDG_CACHE_HOME: cache })
    expect(found).toBe(join(cache, 'mirror', 'compile-cache', '1.0.0'))
    for (const made of [found!, dirname(found!), cache]) expect((await stat(made)).mode & 0o777).toBe(0o700)
    expect(find({ XDG_CACHE_HOME: cache })).toBe(found)
    expect(find({ HOME: folder })).toBe(join(folder, '.cache', 'mirror', 'compile-cache', '1.0.0'))
    expect(compileCacheFolder({ platform: 'darwin', env: { HOME: folder }, uid, version: '1', home })).toBeUndefined()
    await mkdir(join(folder, 'Library'))
    expect(compileCacheFolder({ platform: 'darwin', env: { HOME: folder }, uid, version: '1', home })).toBe(
      join(folder, 'Library', 'Caches', 'mirror', 'compile-cache', '1'),
    )
  })

  test('is not used when other users can read or write it, or when it is a symbolic link', async () => {
    const cache = join(folder, 'cache')
    const found = find({ XDG_CACHE_HOME: cache })!
    for (const mode of [0o755, 0o770, 0o777]) {
      await chmod(found, mode)
      expect(find({ XDG_CACHE_HOME: cache }), mode.toString(8)).toBeUndefined()
    }
    await rm(found, { recursive: true })
    await mkdir(join(folder, 'other'), { mode: 0o700 })
    await symlink(join(folder, 'other'), found)
    expect(find({ XDG_CACHE_HOME: cache })).toBeUndefined()
  })

  test('is not created below a folder that other users can write, sticky or not', async () => {
    for (const mode of [0o777, 0o1777, 0o775]) {
      const open = join(folder, mode.toString(8))
      await mkdir(open)
      await chmod(open, mode)
      expect(find({ XDG_CACHE_HOME: join(open, 'cache') }), mode.toString(8)).toBeUndefined()
      expect(await readdir(open)).toEqual([])
    }
  })

  test('is left out without an error when it cannot be created', () => {
    const env = { HOME: join(folder, 'not', 'there'), XDG_CACHE_HOME: '/proc/mirror/cache' }
    expect(find(env)).toBeUndefined()
    expect(existsSync(join(folder, 'not'))).toBe(false)
  })

  test('is kept only for the newest versions of the program', async () => {
    const of = (one: string) =>
      compileCacheFolder({ platform: 'linux', env: { HOME: folder }, uid, version: one, home })!
    for (const [age, one] of ['5', '4', '3', '2', '1'].entries()) {
      const made = of(one)
      await utimes(made, age, age)
    }
    await rm(of('6'), { recursive: true })
    of('6')
    const left = (await readdir(join(folder, '.cache', 'mirror', 'compile-cache'))).toSorted()
    expect(left).toEqual(['1', '2', '3', '6'])
  })

  test.runIf(isRoot)(
    'is neither a folder of another user, nor below one, nor behind a link of another user',
    async () => {
      const foreignFolder = join(folder, 'theirs')
      await mkdir(foreignFolder, { mode: 0o700 })
      await chown(foreignFolder, nobody, nobody)
      expect(find({ XDG_CACHE_HOME: join(foreignFolder, 'cache') })).toBeUndefined()
      expect(await readdir(foreignFolder)).toEqual([])
      const planted = find({ XDG_CACHE_HOME: join(folder, 'cache') })!
      await chown(planted, nobody, nobody)
      expect(find({ XDG_CACHE_HOME: join(folder, 'cache') })).toBeUndefined()
      await symlink(folder, join(folder, 'link'))
      expect(isClosed(join(folder, 'link', 'x'), 0)).toBe(true)
      spawnSync('chown', ['-h', `${nobody}`, join(folder, 'link')])
      expect(isClosed(join(folder, 'link', 'x'), 0)).toBe(false)
    },
  )
})

describe.runIf(keepsCode && isHomeSafe)('a start on a Node that keeps compiled code', () => {
  test('keeps the code in the cache folder of the user, and leaves the shared temporary folder alone', async () => {
    const shared = join(folder, 'shared')
    await mkdir(shared)
    await chmod(shared, 0o1777)
    start({ TMPDIR: shared })
    expect(await readdir(shared)).toEqual([])
    expect(await readdir(join(folder, '.cache', 'mirror', 'compile-cache', version))).toHaveLength(1)
  })

  test('does not use files of other users in the shared temporary folder', async () => {
    const shared = await mkdtemp(join(tmpdir(), 'mirror-shared-'))
    onTestFinished(() => rm(shared, { recursive: true }))
    await chmod(shared, 0o1777)
    const planted = join(shared, 'node-compile-cache')
    await mkdir(planted)
    await chmod(planted, 0o777)
    start({ TMPDIR: shared })
    expect(await readdir(planted)).toEqual([])
  })

  test('keeps no code when other users can write its folder', async () => {
    start({})
    const own = join(folder, '.cache', 'mirror', 'compile-cache', version)
    await rm(own, { recursive: true })
    await mkdir(own)
    await chmod(own, 0o777)
    start({})
    expect(await readdir(own)).toEqual([])
  })

  test('keeps nothing with NODE_DISABLE_COMPILE_CACHE, and uses the folder of NODE_COMPILE_CACHE', async () => {
    start({ NODE_DISABLE_COMPILE_CACHE: '1' })
    expect(await readdir(folder)).toEqual([])
    const named = join(folder, 'named')
    start({ NODE_COMPILE_CACHE: named })
    expect((await readdir(folder)).toSorted()).toEqual(['named'])
  })

  test.runIf(isRoot)('runs, as root, no code of the program from a folder of another user', async () => {
    const foreignFolder = join(folder, 'theirs')
    await mkdir(foreignFolder)
    await chown(foreignFolder, nobody, nobody)
    start({ NODE_COMPILE_CACHE: foreignFolder, HOME: folder })
    // Allow the code of the start: Node has read the folder before the program can refuse it.
    const kept = (await readdir(foreignFolder, { recursive: true })).filter((name) => name.includes('/'))
    expect(kept.length).toBeLessThanOrEqual(3)
    expect(await readdir(join(folder, '.cache', 'mirror', 'compile-cache', version))).toHaveLength(1)
  })
})
