import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import {
  chmod,
  chown,
  cp,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  statfs,
  truncate,
  utimes,
  writeFile,
} from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join, relative } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { systemClock } from '../../src/lib/time.ts'
import { computeDigest } from '../../src/oci/reference.ts'
import { createStoreLayout } from '../../src/store/layout.ts'
import { commandEnv } from '../support/command-env.ts'
import { expectAll, expected } from '../support/store-v1/compare.ts'
import { homeWithStores, program, run, runJson, startOffline, stop, storeNames } from '../support/store-v1/fixture.ts'

const isRoot = process.getuid?.() === 0
const nobody = 65_534
/** A built release that keeps one file for each repository; not on every machine. */
const release = process.env['MIRROR_TEST_RELEASE']
/** Commands that only read. */
const readers = [
  'cache ls',
  'cache verify --dry-run',
  'cache verify',
  'cache prune --dry-run',
  'registry ls',
  'registry gc --dry-run',
]

const rootOf = (home: string, name: string) => join(home, 'data', name)
const versionsOf = async (home: string, name: string) => (await readdir(rootOf(home, name))).toSorted()

/** Describes each entry below a folder: its name, mode, size and time, and its bytes. */
async function snapshot(folder: string): Promise<Record<string, unknown>> {
  const found: Record<string, unknown> = {}
  const names = existsSync(folder) ? ['.', ...(await readdir(folder, { recursive: true }))] : []
  for (const name of names.toSorted()) {
    const path = join(folder, name)
    const { mode, size, mtimeMs, ino } = await lstat(path)
    const bytes = (await lstat(path)).isFile() ? computeDigest(await readFile(path)) : 'folder'
    found[name] = [mode, size, mtimeMs, ino, bytes].join(' ')
  }
  return found
}

/** Expects the recorded output of each command that only reads, and that none of them changes the stores. */
async function expectReaders(home: string, options: { uid?: number } = {}): Promise<void> {
  const before = await snapshot(join(home, 'data'))
  for (const command of readers) {
    const { status, stdout, stderr } = await run(home, command, options)
    expect([command, status, stderr]).toEqual([command, 0, ''])
    expect([command, JSON.parse(stdout)]).toEqual([command, expected.commands[command]])
    expect([command, await snapshot(join(home, 'data'))]).toEqual([command, before])
  }
}

async function expectMigrated(home: string): Promise<void> {
  for (const name of storeNames) {
    expect([name, await versionsOf(home, name)]).toEqual([name, ['v2']])
    const entries = await readdir(join(rootOf(home, name), 'v2'))
    expect(entries).toContain('metadata')
    expect(entries).not.toContain('repositories')
    expect(await readdir(join(rootOf(home, name), 'v2', 'metadata'))).not.toContain('0.new')
  }
}

/** Creates the home of a stopped mirror whose stores were migrated. */
async function migratedHome(): Promise<string> {
  const home = await homeWithStores()
  await stop(await startOffline(home))
  return home
}

async function filesBelow(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true })
  return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name))
}

/** Lets a user read these files, and nobody write them, until the test ends. */
async function makeReadOnly(home: string, uid: number | undefined): Promise<void> {
  const entries = await readdir(home, { recursive: true, withFileTypes: true })
  const paths = entries.map((entry) => ({
    path: join(entry.parentPath, entry.name),
    mode: entry.isFile() ? 0o400 : 0o500,
  }))
  const all = [{ path: home, mode: 0o500 }, ...paths]
  onTestFinished(async () => {
    for (const { path } of all) await chmod(path, 0o700)
  })
  for (const { path, mode } of all.toReversed()) {
    if (uid !== undefined) await chown(path, uid, uid)
    await chmod(path, mode)
  }
}

/** Reports whether the program can run without the rights of root: a checkout of root may be closed to others. */
function canRunAsOrdinaryUser(): boolean {
  if (process.platform === 'win32' || !isRoot) return process.platform !== 'win32'
  const reads = `fs.accessSync(${JSON.stringify(program)})`
  return spawnSync(process.execPath, ['-e', reads], { cwd: '/', uid: nobody, gid: nobody }).status === 0
}

// Skip the tests as long as the store has the format of the previous release.
const isNewFormat = basename(createStoreLayout('store').home) === 'v2'

describe.skipIf(!isNewFormat)('the first start with a store of the previous release', () => {
  test('replaces it by a store of the new format with the same content', async () => {
    const home = await homeWithStores()
    const mirror = await startOffline(home)
    await expectMigrated(home)
    await expectAll(mirror)
    await stop(mirror)
    await expectMigrated(home)
  })

  test('keeps every blob in the file that it has', async () => {
    const home = await homeWithStores()
    const inodes = async (version: string) =>
      (
        await Promise.all(
          storeNames.map(async (name) => {
            const files = await filesBelow(join(rootOf(home, name), version, 'blobs'))
            return Promise.all(files.map(async (path) => `${basename(path)} ${(await lstat(path)).ino}`))
          }),
        )
      )
        .flat()
        .toSorted()
    const before = await inodes('v1')
    expect(before.length).toBeGreaterThan(0)
    await stop(await startOffline(home))
    expect(await inodes('v2')).toEqual(before)
  })

  test('leaves a store that earlier releases refuse: its only folder has a version that is greater than theirs', async () => {
    const home = await migratedHome()
    for (const name of storeNames) {
      const versions = (await versionsOf(home, name)).map((folder) => Number(/^v(\d+)$/.exec(folder)?.[1]))
      expect(versions).toEqual([2])
    }
  })

  test.skipIf(release === undefined)(
    'leaves a store that the previous release itself refuses, and does not change',
    async () => {
      const home = await migratedHome()
      const before = await snapshot(join(home, 'data'))
      for (const name of storeNames) {
        const { status, stderr } = await run(home, `${name} ls`, { path: join(release!, 'bin', 'run.js') })
        expect([status, stderr]).toEqual([2, expect.stringContaining('(format v2)')])
      }
      expect(await snapshot(join(home, 'data'))).toEqual(before)
    },
  )
})

describe.skipIf(!isNewFormat)('commands that only read the store of a stopped mirror', () => {
  test('change nothing in a store of the previous release', async () => {
    await expectReaders(await homeWithStores())
  })

  test('change nothing in a store of the new format', async () => {
    await expectReaders(await migratedHome())
  })

  test('change nothing in a store that a killed server has left', async () => {
    const home = await homeWithStores()
    const mirror = await startOffline(home)
    mirror.kill('SIGKILL')
    await mirror.ended
    await expectReaders(home)
  })

  test.skipIf(!canRunAsOrdinaryUser()).each([
    ['the previous release', homeWithStores],
    ['the new format', migratedHome],
  ])('read a store of %s that the user may not change', async (_, create) => {
    const home = await create()
    const uid = isRoot ? nobody : undefined
    await makeReadOnly(home, uid)
    await expectReaders(home, uid === undefined ? {} : { uid })
  })

  test('find nothing where there is no store, and create none', async () => {
    const home = await homeWithStores([])
    const removed = { images: [], blobs: 0, bytes: 0, unknown: [] }
    const nothing = {
      'cache ls': [],
      'registry ls': [],
      'cache prune --dry-run': removed,
      'registry gc --dry-run': removed,
    }
    const verified = { checked: 0, checkedBytes: 0, damaged: [] }
    for (const command of readers)
      expect([command, await runJson(home, command)]).toEqual([
        command,
        nothing[command as keyof typeof nothing] ?? verified,
      ])
    expect(existsSync(join(home, 'data'))).toBe(false)
  })

  test('find nothing in a folder without a store, and leave it empty', async () => {
    const home = await homeWithStores([])
    for (const name of storeNames) await mkdir(rootOf(home, name), { recursive: true })
    const before = await snapshot(join(home, 'data'))
    expect([await runJson(home, 'cache ls'), await runJson(home, 'registry ls')]).toEqual([[], []])
    expect(await snapshot(join(home, 'data'))).toEqual(before)
  })
})

describe.skipIf(!isNewFormat)('`cache verify` of a stopped mirror', () => {
  test('moves a damaged blob to the quarantine, and changes nothing else', async () => {
    const home = await migratedHome()
    const root = join(rootOf(home, 'cache'), 'v2')
    const [damaged] = (await filesBelow(join(root, 'blobs'))).toSorted()
    await writeFile(damaged!, (await readFile(damaged!)).fill(0))
    const name = relative(root, damaged!)
    // Folders change with their files, and a writer marks the store as open.
    const describeFiles = async () => {
      const found = Object.entries(await snapshot(join(home, 'data')))
      return new Map(
        found.filter(([path, text]) => !String(text).endsWith(' folder') && !/v2\/(clean|running\.json)$/.test(path)),
      )
    }
    const before = await describeFiles()
    const { status, stdout } = await run(home, 'cache verify')
    expect([status, JSON.parse(stdout)]).toMatchObject([
      5,
      { damaged: [name.replace(/^blobs\//, '').replace('/', ':')] },
    ])
    const after = await describeFiles()
    const moved = [...after.keys()].filter((path) => !before.has(path))
    expect(moved).toEqual([
      expect.stringContaining(`cache/v2/quarantine/${name.replace(/^blobs\//, '').replace('/', '-')}-`),
    ])
    expect(await readFile(join(home, 'data', moved[0]!))).toEqual(
      Buffer.alloc((await lstat(join(home, 'data', moved[0]!))).size),
    )
    after.delete(moved[0]!)
    before.delete(join('cache', 'v2', name))
    expect(after).toEqual(before)
    expect((await readdir(root)).toSorted()).toContain('clean')
  })
})

/** Names the folder of the store as the migration does, first of all. */
const nameFolder = (root: string) => rename(join(root, 'v1'), join(root, 'v2'))
/** Changes the files of a checkpoint that the migration has not finished. */
const leavePartly =
  (change: (path: string) => Promise<void>) =>
  async (root: string, migrated: string): Promise<void> => {
    await nameFolder(root)
    await cp(join(migrated, 'v2', 'metadata'), join(root, 'v2', 'metadata'), { recursive: true })
    const [checkpoint, ...others] = (await filesBelow(join(root, 'v2', 'metadata'))).toSorted()
    expect([checkpoint, others.length]).toEqual([expect.stringMatching(/\.checkpoint$/), 1])
    await rename(checkpoint!, `${checkpoint}.new`)
    await change(`${checkpoint}.new`)
  }
/** Copies the checkpoint, as it is before the first commit. */
const finishCheckpoint = leaveComplete(() => Promise.resolve())

function leaveComplete(change: (path: string) => Promise<void>) {
  return async (root: string, migrated: string): Promise<void> => {
    await nameFolder(root)
    await cp(join(migrated, 'v2', 'metadata'), join(root, 'v2', 'metadata'), { recursive: true })
    for (const path of await filesBelow(join(root, 'v2', 'metadata'))) await change(path)
  }
}

/** The states in which a stop at any step leaves the stores: each changes a store, given a migrated one. */
const interruptions: [string, (root: string, migrated: string) => Promise<void>][] = [
  ['before its first step', () => Promise.resolve()],
  ['with an empty new folder', async (root) => mkdir(join(root, 'v2'))],
  ['after it has named its folder', nameFolder],
  [
    'before its first byte',
    async (root) => {
      await nameFolder(root)
      await mkdir(join(root, 'v2', 'metadata'))
    },
  ],
  ['at the start of its file', leavePartly((path) => truncate(path, 0))],
  ['in the middle of its file', leavePartly(async (path) => truncate(path, (await lstat(path)).size >> 1))],
  ['at the end of its file', leavePartly(() => Promise.resolve())],
  [
    'when the disk has kept other bytes for its file',
    leaveComplete(async (path) => writeFile(path, Buffer.alloc((await lstat(path)).size))),
  ],
  ['before it removes the old files', finishCheckpoint],
  [
    'in the middle of the removal of the old files',
    async (root, migrated) => {
      await finishCheckpoint(root, migrated)
      const removed = join(root, 'v2', 'quarantine', `repositories-${'0'.repeat(32)}`)
      await mkdir(join(root, 'v2', 'quarantine'), { recursive: true })
      await rename(join(root, 'v2', 'repositories'), removed)
      const names = await readdir(removed)
      for (const name of names.slice(1)) await rm(join(removed, name))
    },
  ],
]

describe.skipIf(!isNewFormat)('a migration that ends', () => {
  test.each(interruptions)(
    '%s is completed by the next start, and until then commands read the store',
    async (_, stopAt) => {
      const migrated = await migratedHome()
      const home = await homeWithStores()
      for (const name of storeNames) await stopAt(rootOf(home, name), rootOf(migrated, name))
      await expectReaders(home)
      for (let starts = 0; starts < 2; starts++) {
        const mirror = await startOffline(home)
        await expectMigrated(home)
        await expectAll(mirror)
        await stop(mirror)
      }
    },
  )

  test('in one of the two stores is completed in the other one', async () => {
    const migrated = await migratedHome()
    for (const done of storeNames) {
      const home = await homeWithStores()
      await rm(rootOf(home, done), { recursive: true })
      await cp(rootOf(migrated, done), rootOf(home, done), { recursive: true })
      await expectReaders(home)
      const mirror = await startOffline(home)
      await expectMigrated(home)
      await expectAll(mirror)
      await stop(mirror)
    }
  })

  test('in the middle of the removal of the old files leaves files that are gone a week later', async () => {
    const home = await migratedHome()
    const old = await homeWithStores()
    const week = 7 * 24 * 3_600
    const left = (name: string, age: string) => join(rootOf(home, name), 'v2', 'quarantine', `repositories-${age}`)
    for (const name of storeNames)
      for (const [age, seconds] of [
        ['later', week - 3600],
        ['expired', week + 3600],
      ] as const) {
        await cp(join(rootOf(old, name), 'v1', 'repositories'), left(name, age), { recursive: true })
        const time = Date.now() / 1000 - seconds
        await utimes(left(name, age), time, time)
      }
    const mirror = await startOffline(home)
    await expectAll(mirror)
    expect((await mirror.status()).registry.damaged ?? []).toEqual([])
    for (const name of storeNames)
      expect([existsSync(left(name, 'later')), existsSync(left(name, 'expired'))]).toEqual([true, false])
  })

  test('because the server is killed at any moment is completed by the next start', async () => {
    for (const delay of [40, 80, 120, 160, 200, 240, 300]) {
      const home = await homeWithStores()
      const child = spawn(process.execPath, [program, 'serve'], {
        env: commandEnv(home),
        stdio: 'ignore',
      })
      const ended = once(child, 'exit')
      await systemClock.sleep(delay)
      child.kill('SIGKILL')
      await ended
      await expectReaders(home)
      const mirror = await startOffline(home)
      await expectMigrated(home)
      await expectAll(mirror)
      await stop(mirror)
    }
  }, 180_000)
})

/** Mounts a file system of 2 MiB there until the test ends. */
function mountSmallDisk(folder: string): void {
  const { status, stderr } = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', folder])
  if (status !== 0) throw new Error(String(stderr))
  onTestFinished(() => void spawnSync('umount', ['-l', folder]))
}

/** Reports whether this process may mount file systems. */
async function canMount(): Promise<boolean> {
  if (!isRoot || process.platform !== 'linux') return false
  const folder = await mkdtemp(join(tmpdir(), 'mirror-mount-'))
  const { status } = spawnSync('mount', ['-t', 'tmpfs', 'tmpfs', folder])
  if (status === 0) spawnSync('umount', [folder])
  await rm(folder, { recursive: true })
  return status === 0
}

describe.skipIf(!isNewFormat || !(await canMount()))('a migration on a full disk', () => {
  test.each([0, 1, 2, 3])(
    'with only %d free pages refuses the start with the reason, and keeps the old files for the next one',
    async (pages) => {
      const home = await homeWithStores([])
      const old = await homeWithStores()
      await mkdir(join(home, 'data'))
      mountSmallDisk(join(home, 'data'))
      for (const name of storeNames) await cp(rootOf(old, name), rootOf(home, name), { recursive: true })
      const before = await readRecords(home)
      const filler = join(home, 'data', 'filler')
      await fillDisk(filler, pages)
      await expect(startOffline(home)).rejects.toThrow(
        /Cannot use the folder .* for the store: the disk is full \(ENOSPC\)/,
      )
      expect(await readRecords(home)).toEqual(before)
      await rm(filler)
      const mirror = await startOffline(home)
      await expectMigrated(home)
      await expectAll(mirror)
      await stop(mirror)
    },
  )
})

/** Describes the files of the previous release, which may be in the folder of the new format. */
async function readRecords(home: string): Promise<unknown> {
  const files = (await filesBelow(join(home, 'data'))).filter((path) => /\/repositories\/[^/]+$/.test(path))
  const described = files.map(async (path) => [basename(path), computeDigest(await readFile(path))])
  return (await Promise.all(described)).toSorted(([a], [b]) => (a! < b! ? -1 : 1))
}

/** Fills the disk of this file, and leaves so many pages free. */
async function fillDisk(path: string, pages: number): Promise<void> {
  const { bavail, bsize } = await statfs(join(path, '..'))
  await writeFile(path, Buffer.alloc((bavail - pages) * bsize))
}
