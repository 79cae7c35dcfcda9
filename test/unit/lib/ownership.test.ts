import { spawnSync } from 'node:child_process'
import { chmod, chown, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { findForeign, isRootControlled, readOwnedFile, readPublicFile } from '../../../src/lib/ownership.ts'

const nobody = 65_534
const isRoot = process.getuid?.() === 0

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-owned-'))
})
afterEach(() => rm(folder, { recursive: true }))

describe.runIf(isRoot)('a path that only root can change', () => {
  test('has only folders that belong to root and are protected or sticky, and may not exist yet', async () => {
    expect(isRootControlled(folder)).toBe(true)
    expect(isRootControlled(join(folder, 'not', 'there'))).toBe(true)
    await chmod(folder, 0o777)
    expect(isRootControlled(join(folder, 'not', 'there'))).toBe(false)
    await chmod(folder, 0o1777)
    await writeFile(join(folder, 'file'), '')
    expect(isRootControlled(join(folder, 'file'))).toBe(true)
    await chmod(folder, 0o775)
    expect(isRootControlled(folder)).toBe(false)
  })

  test('is not a missing one in a sticky folder, where other users may create it first', async () => {
    await chmod(folder, 0o1777)
    expect(isRootControlled(folder)).toBe(true)
    for (const missing of [['file'], ['not', 'there']]) {
      expect(isRootControlled(join(folder, ...missing))).toBe(false)
      expect(findForeign(join(folder, ...missing))).toEqual({ path: folder, owner: undefined })
    }
    await symlink(join(folder, 'absent'), join(folder, 'link'))
    expect(isRootControlled(join(folder, 'link'))).toBe(false)
    await mkdir(join(folder, 'made'))
    expect(isRootControlled(join(folder, 'made', 'by', 'root'))).toBe(true)
  })

  test('is not one below a folder of another user, or through a link of another user, or to a target of another user', async () => {
    const theirs = join(folder, 'theirs')
    await mkdir(join(theirs, 'below'), { recursive: true })
    await chown(theirs, nobody, nobody)
    expect(isRootControlled(join(theirs, 'below'))).toBe(false)
    await symlink(theirs, join(folder, 'link'))
    expect(isRootControlled(join(folder, 'link', 'x'))).toBe(false)
    await symlink('/etc', join(folder, 'to-etc'))
    expect(isRootControlled(join(folder, 'to-etc', 'x'))).toBe(true)
    await symlink('round', join(folder, 'round'))
    expect(isRootControlled(join(folder, 'round', 'x'))).toBe(false)
  })
})

describe.runIf(isRoot)("another user's file, read by root", () => {
  test('is read when that user owns it, also through a link', async () => {
    const file = join(folder, 'file')
    await writeFile(file, 'text', { mode: 0o600 })
    expect(await readOwnedFile(file, nobody)).toBeUndefined()
    await chown(file, nobody, nobody)
    expect(await readOwnedFile(file, nobody)).toBe('text')
    await symlink(file, join(folder, 'link'))
    expect(await readOwnedFile(join(folder, 'link'), nobody)).toBe('text')
    expect(await readOwnedFile(join(folder, 'none'), nobody)).toBeUndefined()
  })

  test('is not read when it belongs to others, and a pipe does not block', async () => {
    await symlink('/etc/shadow', join(folder, 'shadow'))
    expect(await readOwnedFile(join(folder, 'shadow'), nobody)).toBeUndefined()
    expect(await readPublicFile(join(folder, 'shadow'))).toBeUndefined()
    expect(await readPublicFile('/etc/passwd')).toContain('root')
    spawnSync('mkfifo', [join(folder, 'pipe')])
    await chown(join(folder, 'pipe'), nobody, nobody)
    expect(await readOwnedFile(join(folder, 'pipe'), nobody)).toBeUndefined()
    expect(await readOwnedFile(folder, 0)).toBeUndefined()
  })
})
