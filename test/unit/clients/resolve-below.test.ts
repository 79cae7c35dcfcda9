import { mkdir, mkdtemp, realpath, rm, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { isBelow, resolveBelow } from '../../../src/clients/files/local.ts'

let root: string
beforeEach(async () => {
  root = await realpath(await mkdtemp(join(tmpdir(), 'mirror-below-')))
  await mkdir(join(root, 'etc'))
})
afterEach(() => rm(root, { recursive: true }))

describe.runIf(process.platform !== 'win32')('a path below a root', () => {
  test.each([
    ['/srv/docker', 'srv/docker/daemon.json'],
    ['docker-real', 'etc/docker-real/daemon.json'],
    ['../srv', 'srv/daemon.json'],
    ['../../../../srv', 'srv/daemon.json'],
    ['/', 'daemon.json'],
    ['/etc/./other', 'etc/other/daemon.json'],
  ])('with a link to %s leads to %s', async (to, file) => {
    await symlink(to, join(root, 'etc/docker'))
    expect(await resolveBelow(root, join(root, 'etc/docker/daemon.json'))).toBe(join(root, file))
  })

  test('follows links to links and refuses a loop', async () => {
    await symlink('/etc/b', join(root, 'etc/a'))
    await symlink('c/../d', join(root, 'etc/b'))
    expect(await resolveBelow(root, join(root, 'etc/a'))).toBe(join(root, 'etc/d'))
    await symlink('/etc/round', join(root, 'etc/round'))
    await expect(resolveBelow(root, join(root, 'etc/round'))).rejects.toMatchObject({ code: 'ELOOP' })
  })

  test('is not taken for a path beside the root', () => {
    expect(['', 'etc/a', '..etc/a'].map((path) => isBelow(root, join(root, path)))).toEqual([true, true, true])
    expect(['..', '../etc', '/etc'].map((path) => isBelow(root, resolve(root, path)))).toEqual([false, false, false])
  })

  test('is not changed without links', async () => {
    expect(await resolveBelow(root, join(root, 'etc', 'a'))).toBe(join(root, 'etc', 'a'))
  })
})
