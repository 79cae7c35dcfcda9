import { chmod, mkdir, mkdtemp, readdir, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { openClientRecords, type ClientRecord } from '../../../src/clients/records.ts'

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-records-'))
})
afterEach(() => rm(folder, { recursive: true }))

const record = (more: Partial<ClientRecord> = {}): ClientRecord => ({
  client: 'docker',
  place: 'system',
  title: 'system (/etc/docker)',
  details: { scope: 'system' },
  root: undefined,
  since: '2026-01-01T00:00:00.000Z',
  cache: 'http://127.0.0.1:5055',
  registry: undefined,
  fallback: true,
  files: [],
  folders: [],
  ...more,
})

const own = () => join(folder, 'own')
const system = () => join(folder, 'system')
const asRoot = () => openClientRecords({ own: own(), system: system(), isRoot: true })
const asUser = () => openClientRecords({ own: own(), system: system(), isRoot: false })
const modeOf = async (...path: string[]) => (await stat(join(folder, ...path))).mode & 0o777

describe('records of configured clients', () => {
  test('of the whole machine are readable for every user, and only root changes them', async () => {
    const before = process.umask(0o077)
    try {
      await asRoot().put(record())
    } finally {
      process.umask(before)
    }
    expect(await modeOf('system')).toBe(0o755)
    expect(await modeOf('system', 'configured')).toBe(0o755)
    const [name] = await readdir(join(system(), 'configured'))
    expect(await modeOf('system', 'configured', name!)).toBe(0o644)
    expect(await asUser().list()).toEqual([{ ...record(), lockedByRoot: true }])
    expect(await asRoot().list()).toEqual([{ ...record(), lockedByRoot: false }])
    await asUser().remove(record())
    expect(await asUser().list()).toHaveLength(1)
    await asRoot().remove(record())
    expect(await asUser().list()).toEqual([])
  })

  test("of one user and of --root stay in that user's folder", async () => {
    await asRoot().put(record({ client: 'podman', details: { scope: 'user' } }))
    await asRoot().put(record({ root: '/tree' }))
    await asUser().put(record({ client: 'k3s' }))
    expect(await readdir(join(own(), 'configured'))).toHaveLength(3)
    expect((await asUser().list()).map(({ lockedByRoot }) => lockedByRoot)).toEqual([false, false, false])
  })

  test("of the whole machine in root's own folder move to the system folder", async () => {
    await openClientRecords(own()).put(record())
    await openClientRecords(own()).put(record({ client: 'podman', details: { scope: 'user' } }))
    await asUser().migrate()
    expect(await readdir(folder)).toEqual(['own'])
    await asRoot().migrate()
    expect((await asUser().list()).map(({ client, lockedByRoot }) => [client, lockedByRoot])).toEqual([
      ['podman', false],
      ['docker', true],
    ])
  })

  test('of root without its own folder are all in the system folder', async () => {
    const records = openClientRecords({ own: undefined, system: system(), isRoot: true })
    const podman = record({ client: 'podman', details: { scope: 'user' } })
    await records.put(podman)
    expect(records.getBackupFolder(podman)).toBe(join(system(), 'backups'))
    expect(await records.list()).toMatchObject([{ client: 'podman' }])
  })

  test.runIf(process.getuid?.() !== 0)('that are unreadable are an error with their path', async () => {
    await mkdir(join(own(), 'configured'), { recursive: true })
    await chmod(join(own(), 'configured'), 0o000)
    await expect(asUser().list()).rejects.toThrow(`No permission to read ${join(own(), 'configured')}`)
    await chmod(join(own(), 'configured'), 0o700)
  })
})
