import { createHash } from 'node:crypto'
import { existsSync, readlinkSync } from 'node:fs'
import { mkdir, open, readdir, readFile, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { createStoreLayout, type StoreLayout } from '../../../src/store/layout.ts'
import { listLog, openMetadata } from '../../support/metadata-log.ts'
import { temporaryFolder } from '../../support/store/store.ts'

const tag = { op: 'tag', tag: 'v1', digest: `sha256:${'0'.repeat(64)}`, pushedAt: 1 }
const nameOf = (name: string) => `${createHash('sha256').update(name).digest('hex')}.jsonl`

/** Creates a store with the journals of release 0.1 with these lines after their first one. */
async function createStore(journals: Record<string, readonly string[]>): Promise<StoreLayout> {
  const layout = createStoreLayout(await temporaryFolder())
  for (const folder of [layout.repositories, layout.quarantine]) await mkdir(folder, { recursive: true })
  for (const [name, lines] of Object.entries(journals)) {
    const text = [JSON.stringify({ format: 2, name }), ...lines].map((line) => `${line}\n`).join('')
    await writeFile(join(layout.repositories, nameOf(name)), text)
  }
  return layout
}

const openStore = (layout: StoreLayout) => openMetadata(layout.home, layout.metadataFiles)

test.skipIf(process.platform !== 'linux')(
  'the removal of the files of release 0.1 is durable before the first commit, and so is what it keeps of them',
  async () => {
    const layout = await createStore({ app: [JSON.stringify([tag]), '[{"op":'], bad: [] })
    const bad = join(layout.repositories, nameOf('bad'))
    await writeFile(bad, 'rubbish')
    const file = await open(layout.home)
    const prototype = Object.getPrototypeOf(file) as typeof file
    await file.close()
    const { sync } = prototype
    onTestFinished(() => void (prototype.sync = sync))
    const synced: string[] = []
    prototype.sync = function () {
      const state = [layout.repositories, bad].map((path) => (existsSync(path) ? 'there' : 'gone')).join(' ')
      synced.push(`${readlinkSync(`/proc/self/fd/${this.fd}`)} ${state}`)
      return sync.call(this)
    }
    await openStore(layout)
    const at = (text: string) => synced.indexOf(text)
    const checkpoint = at(`${layout.metadata} there there`)
    const moved = at(`${layout.quarantine} there gone`)
    const removed = at(`${layout.home} gone gone`)
    expect(checkpoint).toBeGreaterThan(-1)
    expect(moved).toBeGreaterThan(checkpoint)
    expect(removed).toBeGreaterThan(moved)
    expect(at(`${layout.quarantine} gone gone`)).toBeGreaterThan(moved)
    const [, segment] = await listLog(layout.metadata)
    expect((await readFile(segment!, 'utf8')).split('\n')).toHaveLength(2)
  },
)

test.each(['checkpoint', 'segment', 'folder'])('a migrated store that loses its %s says so', async (what) => {
  const layout = await createStore({ app: [JSON.stringify([tag])] })
  await (await openStore(layout)).close()
  const [checkpoint, segment] = await listLog(layout.metadata)
  await rm({ checkpoint, segment, folder: layout.metadata }[what]!, { recursive: true })
  const store = await openMetadata(layout.home, { ...layout.metadataFiles, isNew: async () => false })
  expect(store.damage).toHaveLength(1)
})

test('an unreadable journal of release 0.1 begins its week in quarantine with the migration', async () => {
  const layout = await createStore({ app: [JSON.stringify([tag])] })
  const bad = join(layout.repositories, nameOf('bad'))
  await writeFile(bad, 'rubbish')
  await utimes(bad, 1, 1)
  const store = await openStore(layout)
  expect(store.get('', 'app')!.tags.size).toBe(1)
  const [kept, ...more] = await readdir(layout.quarantine)
  expect(more).toEqual([])
  expect(kept).toMatch(new RegExp(`^unreadable-${nameOf('bad')}-`))
  const path = join(layout.quarantine, kept!)
  expect(await readFile(path, 'utf8')).toBe('rubbish')
  expect(Date.now() - (await stat(path)).mtimeMs).toBeLessThan(3_600_000)
})

test('damaged lines of release 0.1 that cannot be kept fail the migration, and their journal stays', async () => {
  const layout = await createStore({ app: [JSON.stringify([tag]), 'damaged', JSON.stringify([{ ...tag, tag: 'v2' }])] })
  const journal = join(layout.repositories, nameOf('app'))
  const before = await readFile(journal)
  const setAside = (path: string) => (path.includes('lines-') ? join(journal, 'none') : layout.setAside(path))
  await expect(openMetadata(layout.home, { ...layout.metadataFiles, setAside })).rejects.toThrow('EEXIST')
  expect(await readFile(journal)).toEqual(before)
  const store = await openStore(layout)
  expect([...store.get('', 'app')!.tags.keys()]).toEqual(['v1', 'v2'])
  expect(existsSync(layout.repositories)).toBe(false)
  expect(await readdir(layout.quarantine)).toEqual([expect.stringMatching(`^lines-${nameOf('app')}-`)])
})

test('a record of the cache that release 0.1 could not have read either is not loaded into memory', async () => {
  const layout = await createStore({})
  const record = { format: 1, host: 'docker.io', name: 'library/app', tags: [], manifests: [], blobs: [] }
  const path = join(layout.repositories, nameOf('docker.io/library/app').replace('.jsonl', '.json'))
  const tags = [{ ...tag, tag: 'v1', identity: 'anonymous', checkedAt: 1, pulls: 0, lastPulled: 0 }]
  await writeFile(path, JSON.stringify({ ...record, tags, x: 'x'.repeat(25 * 1024 * 1024) }))
  const store = await openStore(layout)
  expect([...store.all()]).toEqual([])
  expect(await readdir(layout.quarantine)).toEqual([])
})
