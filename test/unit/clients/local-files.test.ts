import { execFileSync } from 'node:child_process'
import { mkdir, mkdtemp, readFile, readdir, readlink, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { createRootedFiles, localFiles } from '../../../src/clients/files/local.ts'

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-files-'))
})
afterEach(() => rm(folder, { recursive: true }))

describe('a temporary file of a killed run', () => {
  const path = () => join(folder, 'daemon.json')
  const hex = '0123456789abcdef'
  /** nobody is an id that no process has. */
  const nobody = 2 ** 31 - 2

  test('is removed, and no other file', async () => {
    const leftover = `.daemon.json.mirror-${nobody}-${hex}`
    const kept = [
      // Names a running process.
      `.daemon.json.mirror-${process.pid}-${hex}`,
      `daemon.json.mirror-${nobody}-${hex}`,
      `.daemon.json.${hex}`,
      `.daemon.json.mirror-${nobody}-${hex}.bak`,
      'daemon.json',
    ]
    for (const name of [leftover, ...kept]) await writeFile(join(folder, name), 'half')
    await localFiles.tidy!(path())
    expect((await readdir(folder)).toSorted()).toEqual(kept.toSorted())
  })

  test('is not listed', async () => {
    for (const name of ['a.crt', `.a.crt.mirror-${nobody}-${hex}`]) await writeFile(join(folder, name), 'half')
    expect(await localFiles.list(folder)).toEqual([join(folder, 'a.crt')])
  })

  test('is found at the target of a link, and a missing folder is ignored', async () => {
    const leftover = join(folder, 'real', `.real.json.mirror-${nobody}-${hex}`)
    await mkdir(join(folder, 'real'))
    await writeFile(leftover, 'half')
    await symlink('real/real.json', path())
    await localFiles.tidy!(path())
    expect(await readdir(join(folder, 'real'))).toEqual([])
    await localFiles.tidy!(join(folder, 'nowhere', 'a.json'))
  })
})

describe('a path that is not a regular file', () => {
  test.runIf(process.platform !== 'win32')('is not waited for when it is a pipe', async () => {
    const path = join(folder, 'daemon.json')
    execFileSync('mkfifo', [path])
    await expect(localFiles.read(path)).rejects.toThrow('no regular file')
  })

  test('is not read if it is a folder', async () => {
    const path = join(folder, 'daemon.json')
    await mkdir(path)
    await expect(localFiles.read(path)).rejects.toThrow('no regular file')
  })
})

describe.runIf(process.platform !== 'win32')('a link', () => {
  test('stays beside the root that was given, and what it points to is replaced', async () => {
    await mkdir(join(folder, 'root'))
    await writeFile(join(folder, 'real.yaml'), 'theirs')
    const path = join(folder, 'kind.yaml')
    await symlink('real.yaml', path)
    await createRootedFiles(join(folder, 'root')).write(path, Buffer.from('ours'), undefined)
    expect(await readlink(path)).toBe('real.yaml')
    expect(await readFile(join(folder, 'real.yaml'), 'utf8')).toBe('ours')
  })

  test('in a folder that is a link itself leads from where that folder is', async () => {
    await mkdir(join(folder, 'deep', 'etc'), { recursive: true })
    await symlink('deep/etc', join(folder, 'etc'))
    await symlink('../daemon.json', join(folder, 'deep', 'etc', 'daemon.json'))
    const path = join(folder, 'etc', 'daemon.json')
    await localFiles.write(path, Buffer.from('ours'), undefined)
    expect(await readFile(path, 'utf8')).toBe('ours')
    expect(await readdir(folder)).not.toContain('daemon.json')
    expect(await readFile(join(folder, 'deep', 'daemon.json'), 'utf8')).toBe('ours')
  })
})
