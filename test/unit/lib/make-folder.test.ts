import { mkdtemp, open, readdir, rm, rmdir, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { makeFolder } from '../../../src/lib/fs.ts'

let home: string
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'mirror-folder-'))
})
afterEach(() => rm(home, { recursive: true, force: true }))

test('makeFolder creates missing folders with mode 0700 and returns the uppermost one', async () => {
  expect(await makeFolder(join(home, 'a', 'b', 'c'))).toBe(join(home, 'a'))
  expect((await stat(join(home, 'a', 'b', 'c'))).mode & 0o777).toBe(0o700)
  expect(await makeFolder(join(home, 'a', 'b', 'd'))).toBe(join(home, 'a', 'b', 'd'))
  expect(await makeFolder(join(home, 'a', 'b'))).toBe(undefined)
  expect(await makeFolder('/')).toBe(undefined)
})

test('concurrent makeFolder calls accept folders that the others have created', async () => {
  await Promise.all(Array.from({ length: 20 }, (_, index) => makeFolder(join(home, 'x', 'y', String(index % 3)))))
  expect((await readdir(join(home, 'x', 'y'))).toSorted()).toEqual(['0', '1', '2'])
})

test('makeFolder fails when a file is in the way', async () => {
  await writeFile(join(home, 'file'), '')
  await expect(makeFolder(join(home, 'file'))).rejects.toThrow('EEXIST')
  await expect(makeFolder(join(home, 'file', 'below'))).rejects.toThrow('ENOTDIR')
})

test.runIf(process.platform === 'linux')(
  'makeFolder fails below a removed folder instead of looping for ever',
  async () => {
    const folder = join(home, 'gone')
    await makeFolder(folder)
    const handle = await open(folder, 'r')
    try {
      await rmdir(folder)
      await expect(makeFolder(`/proc/self/fd/${handle.fd}/home/state`)).rejects.toThrow('ENOENT')
    } finally {
      await handle.close()
    }
  },
)
