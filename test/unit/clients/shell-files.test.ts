import { chmod, lstat, mkdtemp, mkdir, readFile, readdir, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { createShellFiles } from '../../../src/clients/files/remote.ts'
import { runCommand } from '../../../src/lib/process.ts'

// Uses a shell of this machine in place of one in a virtual machine.
const files = createShellFiles('the machine', (script) =>
  runCommand('sh', ['-s'], { input: script, timeoutMs: 10_000 }),
)

async function folder(): Promise<string> {
  const made = await mkdtemp(join(tmpdir(), 'mirror shell-'))
  onTestFinished(() => rm(made, { recursive: true, force: true }))
  return made
}

describe.skipIf(process.platform !== 'linux')('files that only a shell reaches', () => {
  test('are read with their modes and owners, with bytes of any kind', async () => {
    const path = join(await folder(), "it's a $(file).conf")
    const bytes = Buffer.from([0, 1, 2, 10, 13, 39, 255, ...Buffer.from('ü\n'.repeat(100))])
    await writeFile(path, bytes)
    await chmod(path, 0o640)
    const { uid, gid } = await stat(path)
    expect(await files.read(path)).toEqual({ bytes, mode: 0o640, uid, gid })
  })

  test('are undefined if they are missing or folders', async () => {
    const at = await folder()
    expect(await files.read(join(at, 'none'))).toBeUndefined()
    expect(await files.read(at)).toBeUndefined()
    expect(await files.list(join(at, 'none'))).toEqual([])
  })

  test('are listed in order, also through links', async () => {
    const at = await folder()
    await mkdir(join(at, 'b'))
    await writeFile(join(at, 'b', 'two\nlines'), '')
    await writeFile(join(at, 'a'), '')
    await symlink(join(at, 'b'), join(at, 'c'))
    expect(await files.list(at)).toEqual([join(at, 'a'), join(at, 'b', 'two\nlines'), join(at, 'c', 'two\nlines')])
  })

  test('are written whole, with the missing folders', async () => {
    const at = await folder()
    const path = join(at, 'one', 'two', 'file.conf')
    expect(await files.write(path, Buffer.from('\u0000text\r\n'), undefined)).toEqual([
      join(at, 'one'),
      join(at, 'one', 'two'),
    ])
    expect(await readFile(path, 'utf8')).toBe('\u0000text\r\n')
    expect((await stat(path)).mode & 0o777).toBe(0o644)
    const { uid, gid } = await stat(path)
    expect(await files.write(path, Buffer.from(''), { mode: 0o600, uid, gid })).toEqual([])
    expect((await stat(path)).mode & 0o777).toBe(0o600)
    expect(await readdir(join(at, 'one', 'two'))).toEqual(['file.conf'])
  })

  test('are replaced at the target of a link, and the link stays', async () => {
    const at = await folder()
    await writeFile(join(at, 'real'), 'old')
    await symlink('real', join(at, 'link'))
    await files.write(join(at, 'link'), Buffer.from('new'), undefined)
    expect(await readFile(join(at, 'real'), 'utf8')).toBe('new')
    expect((await lstat(join(at, 'link'))).isSymbolicLink()).toBe(true)
  })

  test('are removed, folders only if they are empty', async () => {
    const at = await folder()
    await mkdir(join(at, 'full'))
    await writeFile(join(at, 'full', 'file'), '')
    await files.removeFolder(join(at, 'full'))
    await files.remove(join(at, 'full', 'file'))
    await files.remove(join(at, 'full', 'file'))
    expect(await readdir(at)).toEqual(['full'])
    await files.removeFolder(join(at, 'full'))
    await files.removeFolder(join(at, 'full'))
    expect(await readdir(at)).toEqual([])
  })

  test('fail with the error output of the shell', async () => {
    const at = await folder()
    await writeFile(join(at, 'file'), '')
    await expect(files.write(join(at, 'file', 'below'), Buffer.from(''), undefined)).rejects.toThrow(
      /^Cannot access files in the machine: .*file/,
    )
    await expect(createShellFiles('the machine', async () => undefined).read('/etc/x')).rejects.toThrow(
      'Cannot access files in the machine.',
    )
  })
})
