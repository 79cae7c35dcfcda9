import { chmod, lstat, mkdir, mkdtemp, readFile, readdir, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { applyPlan } from '../../../src/clients/apply.ts'
import { openClientRecords, type ClientRecord } from '../../../src/clients/records.ts'
import type { FilePort } from '../../../src/clients/types.ts'
import { localFiles } from '../../../src/clients/files/local.ts'
import { applyUndo, planUndo } from '../../../src/clients/undo.ts'

let folder: string
let target: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-apply-'))
  target = join(folder, 'etc', 'daemon.json')
})
afterEach(() => rm(folder, { recursive: true }))

const configured = () => openClientRecords(join(folder, 'state'))
const entry = {
  client: 'docker',
  place: 'system',
  title: 'the whole system',
  details: {},
  root: undefined,
  since: '2026-01-01T00:00:00.000Z',
  cache: 'http://127.0.0.1:5055',
  registry: undefined,
  fallback: true,
} as const

async function apply(
  path: string,
  before: string | undefined,
  after: string | undefined,
  more: { earlier?: ClientRecord; withoutMirror?: () => string | undefined } = {},
): Promise<ClientRecord> {
  return applyPlan({
    changes: [{ path, before, after }],
    files: localFiles,
    records: configured(),
    backupFolder: join(folder, 'state', 'backups', more.earlier ? 'two' : 'one'),
    entry,
    previous: more.earlier,
    getTextWithoutMirror: more.withoutMirror ?? (() => before),
  })
}

const noStrip = () => Promise.reject(new Error('nothing was changed since'))

async function undo(record: ClientRecord, strip: Parameters<typeof planUndo>[2] = noStrip) {
  const plan = await planUndo(record, localFiles, strip)
  await applyUndo(record, plan, localFiles, () => configured().remove(record))
  return plan
}

describe('applying a plan and undoing it', () => {
  test('creates a new file in new folders, and removes all of them', async () => {
    const record = await apply(target, undefined, '{}\n')
    expect(await readFile(target, 'utf8')).toBe('{}\n')
    expect((await stat(target)).mode & 0o777).toBe(0o644)
    expect(record.folders).toEqual([join(folder, 'etc')])
    expect(await configured().list()).toEqual([{ ...record, lockedByRoot: false }])
    await undo(record)
    expect(await readdir(folder)).toEqual(['state'])
    expect(await configured().list()).toEqual([])
  })

  test('keeps the mode of a file and the symbolic link to it', async () => {
    const real = join(folder, 'real.json')
    const before = '\ufeff{\r\n\t"a": 1}'
    await writeFile(real, before)
    await chmod(real, 0o600)
    await mkdir(join(folder, 'etc'))
    await symlink('../real.json', target)
    const record = await apply(target, before, '{"b": 2}')
    expect(await readFile(real, 'utf8')).toBe('{"b": 2}')
    expect((await stat(real)).mode & 0o777).toBe(0o600)
    expect((await lstat(target)).isSymbolicLink()).toBe(true)
    await undo(record)
    expect(await readFile(real, 'utf8')).toBe(before)
    expect((await stat(real)).mode & 0o777).toBe(0o600)
    expect((await lstat(target)).isSymbolicLink()).toBe(true)
  })

  test('keeps a symbolic link whose target does not exist yet', async () => {
    await mkdir(join(folder, 'etc'))
    await symlink('../real.json', target)
    const record = await apply(target, undefined, '{}')
    expect(await readFile(join(folder, 'real.json'), 'utf8')).toBe('{}')
    await undo(record)
    expect((await lstat(target)).isSymbolicLink()).toBe(true)
    await expect(stat(target)).rejects.toMatchObject({ code: 'ENOENT' })
  })

  test('gives the backup the mode of the original file', async () => {
    await mkdir(join(folder, 'etc'))
    await writeFile(target, 'secret')
    await chmod(target, 0o640)
    const { files } = await apply(target, 'secret', 'ours')
    const backup = files[0]!.before!.backup
    expect(await readFile(backup, 'utf8')).toBe('secret')
    expect((await stat(backup)).mode & 0o777).toBe(0o640)
    expect((await stat(join(folder, 'state', 'backups', 'one'))).mode & 0o777).toBe(0o700)
  })

  test('writes the backup of a file in a node as this user, who can read it, and records the owner', async () => {
    const read = async () => ({ bytes: Buffer.from('theirs'), mode: 0o440, uid: 54_321, gid: 54_321 })
    const { files } = await applyPlan({
      changes: [{ path: '/node/etc/config.toml', before: 'theirs', after: 'ours' }],
      files: { ...localFiles, read, write: async () => [] },
      records: configured(),
      backupFolder: join(folder, 'state', 'backups', 'one'),
      entry,
      previous: undefined,
      getTextWithoutMirror: () => 'theirs',
    })
    const before = files[0]!.before!
    expect(before).toMatchObject({ mode: 0o440, uid: 54_321, gid: 54_321 })
    const { uid, mode } = await stat(before.backup)
    expect({ uid, mode: mode & 0o777 }).toEqual({ uid: process.getuid!(), mode: 0o640 })
  })

  test.each([0, 1])('records no file that a failed run has not written, after %i written ones', async (written) => {
    const paths = ['a.toml', 'b.toml'].map((name) => join(folder, 'etc', name))
    const write: FilePort['write'] = (path, ...rest) => {
      if (path === paths[written]) throw new Error('the disk is full')
      return localFiles.write(path, ...rest)
    }
    const request = {
      changes: paths.map((path) => ({ path, before: undefined, after: 'ours' })),
      files: { ...localFiles, write },
      records: configured(),
      backupFolder: join(folder, 'state', 'backups', 'one'),
      entry,
      previous: undefined,
      getTextWithoutMirror: () => undefined,
    }
    await expect(applyPlan(request)).rejects.toThrow('the disk is full')
    const recorded = (await configured().list()).map(({ files }) => files.map(({ path }) => path))
    expect(recorded).toEqual(written === 0 ? [] : [[paths[0]]])
  })

  test('keeps the record of an earlier run after a failed one', async () => {
    const first = await apply(target, undefined, 'ours one')
    const failing = applyPlan({
      changes: [{ path: target, before: 'ours one', after: 'ours two' }],
      files: { ...localFiles, write: () => Promise.reject(new Error('the disk is full')) },
      records: configured(),
      backupFolder: join(folder, 'state', 'backups', 'two'),
      entry: { ...entry, since: '2026-02-01T00:00:00.000Z' },
      previous: first,
      getTextWithoutMirror: () => undefined,
    })
    await expect(failing).rejects.toThrow('the disk is full')
    expect(await configured().list()).toEqual([{ ...first, lockedByRoot: false }])
  })

  test('does not write a file that has changed since the plan was made', async () => {
    await mkdir(join(folder, 'etc'))
    await writeFile(target, 'newer')
    await expect(apply(target, 'older', 'ours')).rejects.toThrow('changed by another program')
    expect(await readFile(target, 'utf8')).toBe('newer')
    expect(await configured().list()).toEqual([])
  })

  test('restores the content before the first of two runs', async () => {
    await mkdir(join(folder, 'etc'))
    await writeFile(target, 'user')
    const first = await apply(target, 'user', 'ours one')
    const second = await apply(target, 'ours one', 'ours two', { earlier: first })
    await undo(second)
    expect(await readFile(target, 'utf8')).toBe('user')
  })

  test("restores a user's change between two runs, without mirror's keys", async () => {
    await mkdir(join(folder, 'etc'))
    await writeFile(target, 'user')
    const first = await apply(target, 'user', 'user ours')
    await writeFile(target, 'user ours more')
    const second = await apply(target, 'user ours more', 'user newer more', {
      earlier: first,
      withoutMirror: () => 'user more',
    })
    await undo(second)
    expect(await readFile(target, 'utf8')).toBe('user more')
  })

  test("removes only mirror's keys from a file that was changed since, and notes it", async () => {
    const record = await apply(target, undefined, 'ours')
    await writeFile(target, 'ours and theirs')
    const plan = await undo(record, () =>
      Promise.resolve([{ path: target, before: 'ours and theirs', after: 'theirs' }]),
    )
    expect(await readFile(target, 'utf8')).toBe('theirs')
    expect(plan.notes.join()).toContain('only mirror')
  })

  test('has nothing to undo after an abort before the first write', async () => {
    const record = await apply(target, undefined, 'ours')
    await rm(target)
    const plan = await undo(record)
    expect(plan.changes).toEqual([])
    expect(await configured().list()).toEqual([])
  })

  test('writes a CA before the files that name it, and removes it after them', async () => {
    const changedBetween: string[] = []
    const noting: FilePort = {
      ...localFiles,
      async write(path, ...rest) {
        changedBetween.push(`write ${basename(path)}`)
        return localFiles.write(path, ...rest)
      },
      async remove(path) {
        changedBetween.push(`remove ${basename(path)}`)
        return localFiles.remove(path)
      },
    }
    const [hosts, ca] = [join(folder, 'etc', 'hosts.toml'), join(folder, 'etc', 'mirror-ca.crt')]
    const record = await applyPlan({
      changes: [
        { path: hosts, before: undefined, after: 'ca = "mirror-ca.crt"' },
        { path: ca, before: undefined, after: 'PEM' },
      ],
      files: noting,
      records: configured(),
      backupFolder: join(folder, 'state', 'backups', 'one'),
      entry,
      previous: undefined,
      getTextWithoutMirror: () => undefined,
    })
    expect(changedBetween.splice(0)).toEqual(['write mirror-ca.crt', 'write hosts.toml'])
    const { changes } = await planUndo(record, noting, noStrip)
    await applyUndo(record, { changes: changes.toReversed(), notes: [] }, noting, () => configured().remove(record))
    expect(changedBetween).toEqual(['remove hosts.toml', 'remove mirror-ca.crt'])
  })

  test('fails for a damaged record instead of ignoring it', async () => {
    await apply(target, undefined, 'ours')
    const [name] = await readdir(join(folder, 'state', 'configured'))
    for (const text of ['{"client": ', '{"client": "docker"}']) {
      await writeFile(join(folder, 'state', 'configured', name!), text)
      await expect(configured().list()).rejects.toThrow(`${name} is damaged`)
    }
  })
})

describe('the records', () => {
  const record = (id: string, since = 1): ClientRecord => ({
    ...entry,
    place: id,
    since: `2026-01-0${since}T00:00:00.000Z`,
    files: [],
    folders: [],
  })

  test('of concurrent runs do not overwrite each other', async () => {
    const ids = Array.from({ length: 20 }, (_, at) => `cluster ${at}`)
    await Promise.all(ids.map((id) => configured().put(record(id))))
    expect((await configured().list()).map(({ place: id }) => id).toSorted()).toEqual(ids.toSorted())
    await Promise.all(ids.map((id) => configured().remove(record(id))))
    expect(await configured().list()).toEqual([])
  })

  test('are listed oldest first, and once for each target', async () => {
    for (const at of [2, 1, 3]) await configured().put(record(`${at}`, at))
    await configured().put(record('1', 4))
    expect((await configured().list()).map(({ place: id }) => id)).toEqual(['2', '3', '1'])
  })
})
