import { execFileSync } from 'node:child_process'
import { lstat, mkdtemp, readFile, readlink, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { toTarFile, createTar, createSingleFileTar, streamTar, type TarEntry } from '../../../src/lib/tar.ts'

const file = (path: string, content: string | Uint8Array, mode = 0o644): TarEntry => ({
  path,
  mode,
  content: toTarFile(content),
})

/** Unpacks with the system's tar, as an independent check of the format. */
async function unpack(entries: TarEntry[]): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'mirror-tar-'))
  onTestFinished(() => rm(folder, { recursive: true }))
  await writeFile(join(folder, 'archive.tar'), await createTar(entries))
  execFileSync('tar', ['-xf', 'archive.tar'], { cwd: folder })
  return folder
}

test('an archive holds the given files, folders and links', async () => {
  const bytes = Buffer.alloc(1025, 7)
  const folder = await unpack([
    { path: 'folder', mode: 0o700, content: { kind: 'folder' } },
    file('folder/empty', ''),
    file('folder/bytes', bytes, 0o600),
    { path: 'link', mode: 0o777, content: { kind: 'link', target: 'folder/bytes' } },
  ])
  expect((await lstat(join(folder, 'folder'))).mode & 0o777).toBe(0o700)
  expect((await lstat(join(folder, 'folder/bytes'))).mode & 0o777).toBe(0o600)
  expect(await readFile(join(folder, 'link'))).toEqual(bytes)
  expect(await readlink(join(folder, 'link'))).toBe('folder/bytes')
  expect(await readFile(join(folder, 'folder/empty'), 'utf8')).toBe('')
})

test.each([
  ['of 100 bytes', 'n'.repeat(100)],
  ['that is split', `${'d'.repeat(120)}/${'n'.repeat(90)}`],
  ['that is too long for the header', `${'d'.repeat(200)}/${'n'.repeat(150)}`],
  ['that is not ASCII', `ä${'é'.repeat(60)}/ß`],
])('an archive keeps a name %s', async (_, path) => {
  const folder = await unpack([file(path, 'here'), file('after', 'too')])
  expect(await readFile(join(folder, path), 'utf8')).toBe('here')
  expect(await readFile(join(folder, 'after'), 'utf8')).toBe('too')
})

test.each([
  ['that fit the header', 0o7777777, 0o7777777],
  ['of which one does not fit the header', 1000, 0o10000000],
  ['of a directory service', 1_234_401_103, 1_234_400_513],
])('an archive keeps owners %s', async (_, uid, gid) => {
  const owned = { ...file('a', 'b'), uid, gid }
  const listed = execFileSync('tar', ['--numeric-owner', '-tv'], { input: await createTar([owned]), encoding: 'utf8' })
  expect(listed.split(/\s+/)[1]).toBe(`${uid}/${gid}`)
})

test('tarFile creates the same bytes synchronously', async () => {
  expect(createSingleFileTar('a', Buffer.from('b'))).toEqual(await createTar([file('a', 'b')]))
})

test('equal entries yield equal archive bytes, at any time', async () => {
  const archive = await createTar([file('a', 'b')])
  expect(await createTar([file('a', 'b')])).toEqual(archive)
  expect(archive.toString('latin1', 136, 148), 'mtime').toBe('00000000000\0')
})

test('a file of another size than announced throws an error instead of damaging the archive', async () => {
  const entry: TarEntry = {
    path: 'a',
    mode: 0o644,
    content: { kind: 'file', size: 3, read: () => [Buffer.from('four')] },
  }
  await expect(createTar([entry])).rejects.toThrow('a has 4 bytes, not the 3')
})

test('an archive is written in pieces no larger than the chunks read', async () => {
  const chunk = Buffer.alloc(1000)
  const content = { kind: 'file' as const, size: 3000, read: () => [chunk, chunk, chunk] }
  for await (const piece of streamTar([{ path: 'a', mode: 0o644, content }]))
    expect(piece.length).toBeLessThanOrEqual(1024)
})
