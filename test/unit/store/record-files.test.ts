import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { setTimeout } from 'node:timers/promises'
import { describe, expect, onTestFinished, test } from 'vitest'
import { silentLogger } from '../../../src/lib/logger.ts'
import { parseIdentity } from '../../../src/oci/registry.ts'
import { makeStoreFolders, createStoreLayout, type StoreLayout } from '../../../src/store/layout.ts'
import {
  FileRefStore,
  parseRepositoryRecord,
  toReferrersKey,
  serializeRepositoryRecord,
} from '../../../src/store/record-files.ts'
import { addManifest, digestFor, emptyRecord } from '../../support/store/records.ts'
import { temporaryFolder } from '../../support/store/store.ts'

async function newLayout(): Promise<StoreLayout> {
  const layout = createStoreLayout(await temporaryFolder())
  await makeStoreFolders(layout)
  return layout
}

async function openRefs(layout: StoreLayout, writeDelay = 10): Promise<FileRefStore> {
  const refs = await FileRefStore.open({ layout, logger: silentLogger, writeDelay })
  onTestFinished(() => refs.close())
  return refs
}

function fill(refs: FileRefStore, host: string, name: string): void {
  const record = refs.ensure(host, name)
  addManifest(record, `${host}/${name} index`, { tags: ['v1', '__proto__'], manifests: ['child'], usedAt: 5.5 })
  record.blobs.set(digestFor('loose'), { size: 3, identity: parseIdentity('somebody'), usedAt: 7 })
  for (const query of ['', 'artifactType=a%2Fb', '__proto__']) {
    const list = {
      subject: digestFor('subject'),
      identity: parseIdentity('somebody'),
      query,
      digest: digestFor(`list ${query}`),
      size: 2,
      next: query === '' ? 'token=1' : undefined,
      filtersApplied: query === '' ? undefined : 'artifactType',
      isWithoutApi: false,
      usedAt: 9,
    }
    record.referrers.set(toReferrersKey(list), list)
  }
  refs.touch(record)
}

describe('repository records', () => {
  test('are restored completely after a write', async () => {
    const layout = await newLayout()
    const refs = await openRefs(layout)
    const names: [string, string][] = [
      ['docker.io', 'library/app'],
      ['docker.io:443', 'library/app'],
      ['[::1]:5000', 'a'],
      ['ghcr.io', `${'x'.repeat(127)}/${'y'.repeat(127)}`],
      [`${'h'.repeat(60)}.${'h'.repeat(60)}.example:5000`, 'z'.repeat(255)],
    ]
    for (const [host, name] of names) fill(refs, host, name)
    await refs.flush()
    const again = await openRefs(layout)
    expect([...again.all()]).toHaveLength(names.length)
    for (const [host, name] of names) expect(again.get(host, name)).toEqual(refs.get(host, name))
    expect(Object.getPrototypeOf({})).not.toHaveProperty('digest')
  })

  test('are written without a further change when the disk recovers', async () => {
    const layout = await newLayout()
    const refs = await FileRefStore.open({ layout, logger: silentLogger, writeDelay: 1, retryDelay: 10 })
    onTestFinished(() => refs.close())
    const path = layout.repository('docker.io', 'library/app')
    await mkdir(path)
    fill(refs, 'docker.io', 'library/app')
    await refs.flush()
    await rm(path, { recursive: true })
    await expect.poll(() => readFile(path, 'utf8').catch(() => '')).toContain('library/app')
  })

  test('of an earlier version without lists of referrers are read', () => {
    const { referrers: _, ...earlier } = JSON.parse(serializeRepositoryRecord(emptyRecord())) as Record<string, unknown>
    expect(parseRepositoryRecord(JSON.stringify(earlier))).toEqual(emptyRecord())
  })

  test('are written soon after a change, together with changes made meanwhile', async () => {
    const layout = await newLayout()
    const refs = await openRefs(layout)
    fill(refs, 'docker.io', 'library/app')
    await setTimeout(20)
    for (let more = 0; more < 50; more++) {
      refs.ensure('docker.io', 'library/app').tags.get('v1')!.pulls += 1
      refs.touch(refs.ensure('docker.io', 'library/app'))
      if (more % 10 === 0) await setTimeout(2)
    }
    await refs.flush()
    expect((await openRefs(layout)).get('docker.io', 'library/app')!.tags.get('v1')!.pulls).toBe(50)
    expect((await readdir(layout.repositories)).length).toBe(1)
  })

  test('that are empty have no file', async () => {
    const layout = await newLayout()
    const refs = await openRefs(layout)
    fill(refs, 'docker.io', 'library/app')
    await refs.flush()
    const record = refs.ensure('docker.io', 'library/app')
    record.tags.clear()
    record.manifests.clear()
    record.blobs.clear()
    record.referrers.clear()
    refs.touch(record)
    await refs.flush()
    expect(await readdir(layout.repositories)).toEqual([])
    expect(refs.ensure('docker.io', 'library/app')).toBe(record)
  })

  test('that cannot be written are written with the next change, without an error for the caller', async () => {
    const layout = await newLayout()
    const refs = await openRefs(layout, 60_000)
    await rm(layout.repositories, { recursive: true })
    await writeFile(layout.repositories, 'in the way')
    fill(refs, 'docker.io', 'library/app')
    await refs.flush()
    await rm(layout.repositories)
    await makeStoreFolders(layout)
    fill(refs, 'ghcr.io', 'other')
    await refs.flush()
    expect([...(await openRefs(layout)).all()]).toHaveLength(2)
  })

  test('call the listener for every change', async () => {
    const refs = await openRefs(await newLayout())
    const touched: string[] = []
    const stop = refs.onTouch(({ name }) => touched.push(name))
    fill(refs, 'docker.io', 'a')
    stop()
    fill(refs, 'docker.io', 'b')
    expect(touched).toEqual(['a'])
  })
})

function whole(): string {
  const record = emptyRecord()
  addManifest(record, 'index', { tags: ['v1'], blobs: ['layer'] })
  record.blobs.set(digestFor('loose'), { size: 3, identity: parseIdentity('somebody'), usedAt: 7 })
  return serializeRepositoryRecord(record)
}

describe('records that grow by responses of an upstream', () => {
  const most = { perRecord: 20_000, total: 50_000 }

  test('are kept within their limits by dropping the least recently used parts', async () => {
    const layout = await newLayout()
    const refs = await FileRefStore.open({ layout, logger: silentLogger, writeDelay: 10, maxBytes: most })
    onTestFinished(() => refs.close())
    for (let at = 0; at < 500; at++) {
      const record = refs.ensure('docker.io', `library/app${at % 5}`)
      addManifest(record, `manifest ${at}`, { tags: [`v${at}`], manifests: [`child ${at}`], usedAt: at })
      record.blobs.set(digestFor(`loose ${at}`), { size: 3, identity: parseIdentity('somebody'), usedAt: at })
      refs.touch(record)
      if (at % 50 === 0) await refs.flush()
    }
    await refs.flush()
    const sizes = (await readdir(layout.repositories)).map(
      async (name) => (await readFile(layout.entry(layout.repositories, name))).length,
    )
    for (const size of await Promise.all(sizes)) expect(size).toBeLessThan(1.3 * most.perRecord)
    const last = refs.get('docker.io', 'library/app4')!
    expect(last.tags.has('v499')).toBe(true)
    expect(last.manifests.has(digestFor('manifest 499'))).toBe(true)
    expect(last.tags.has('v4')).toBe(false)
    const again = await openRefs(layout)
    expect(again.get('docker.io', 'library/app4')).toEqual(last)
  })

  test('are reduced to their limits when they are loaded', async () => {
    const layout = await newLayout()
    const refs = await openRefs(layout)
    const record = refs.ensure('docker.io', 'library/app')
    for (let at = 0; at < 500; at++) addManifest(record, `manifest ${at}`, { tags: [`v${at}`], usedAt: at })
    refs.touch(record)
    await refs.flush()
    const again = await FileRefStore.open({ layout, logger: silentLogger, writeDelay: 10, maxBytes: most })
    await again.close()
    const kept = again.get('docker.io', 'library/app')!
    expect(kept.tags.has('v499')).toBe(true)
    expect(kept.manifests.size).toBeLessThan(100)
    expect((await readFile(layout.repository('docker.io', 'library/app'))).length).toBeLessThan(1.3 * most.perRecord)
  })
})

test('too many small records are scanned occasionally, not with each new record', async () => {
  const layout = await newLayout()
  const refs = await openRefs(layout)
  for (let at = 0; at < 1000; at++) {
    const record = refs.ensure('docker.io', `library/app${at}`)
    record.blobs.set(digestFor(`loose ${at}`), { size: 3, identity: parseIdentity('somebody'), usedAt: at })
    refs.touch(record)
  }
  await refs.flush()
  let looks = 0
  const logger = { ...silentLogger, info: () => void (looks += 1) }
  const most = { perRecord: 20_000, total: 50_000 }
  const again = await FileRefStore.open({ layout, logger, writeDelay: 10, maxBytes: most })
  onTestFinished(() => again.close())
  expect(looks).toBeGreaterThan(1)
  expect(looks).toBeLessThan(100)
  const held = [...again.all()].filter(({ blobs }) => blobs.size > 0)
  expect(held.length).toBeLessThan(300)
})

test('a foreign layer that an earlier version has recorded is no link, because it would grant the layer', () => {
  const text = whole()
  const links = (json: string) =>
    [...parseRepositoryRecord(json)!.manifests.values()].flatMap((each) => [...each.links])
  const [link] = links(text).filter(({ kind }) => kind === 'blob')
  const foreign = 'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip'
  const old = JSON.stringify(link).replace(link!.mediaType, foreign)
  expect(text).toContain(JSON.stringify(link))
  expect(links(text.replace(JSON.stringify(link), old))).toHaveLength(links(text).length - 1)
})

describe('a damaged repository file', () => {
  test('counts as absent wherever it is truncated', () => {
    const text = whole()
    expect(parseRepositoryRecord(text)).toBeDefined()
    for (let length = 0; length < text.length; length++)
      expect(parseRepositoryRecord(text.slice(0, length))).toBeUndefined()
  })

  test.each([
    ['null', 'null'],
    ['another format', whole().replace('"format":1', '"format":2')],
    ['an impossible host', whole().replace('docker.io', '../../etc')],
    ['an impossible name', whole().replace('library/app', '../app')],
    ['an impossible tag', whole().replace('"tag":"v1"', '"tag":"../v1"')],
    ['a digest in capitals', whole().replace(digestFor('layer'), digestFor('layer').toUpperCase())],
    ['an endless number', whole().replace('"usedAt":7', '"usedAt":1e400')],
    ['a negative number', whole().replace('"usedAt":7', '"usedAt":-7')],
    ['text for a number', whole().replace('"usedAt":7', '"usedAt":"7"')],
    ['an unknown kind of link', whole().replace('"kind":"blob"', '"kind":"snake"')],
    ['no list', whole().replace(/"tags":\[.*?\]/, '"tags":{"length":1}')],
    ['depth', `${'['.repeat(100_000)}${']'.repeat(100_000)}`],
  ])('counts as absent with %s', (_, text) => {
    expect(parseRepositoryRecord(text)).toBeUndefined()
  })

  test('is removed at start, and other files are loaded', async () => {
    const layout = await newLayout()
    const refs = await openRefs(layout)
    fill(refs, 'docker.io', 'good')
    fill(refs, 'docker.io', 'half')
    fill(refs, 'docker.io', 'moved')
    await refs.flush()
    const half = layout.repository('docker.io', 'half')
    await writeFile(half, (await readFile(half)).subarray(0, 100))
    const moved = layout.repository('docker.io', 'elsewhere')
    await writeFile(moved, await readFile(layout.repository('docker.io', 'moved')))
    await rm(layout.repository('docker.io', 'moved'))
    await writeFile(layout.entry(layout.repositories, 'folder.json'), '')
    const again = await openRefs(layout)
    expect([...again.all()].map(({ name }) => name)).toEqual(['good'])
    expect(await readdir(layout.repositories)).toHaveLength(1)
  })
})
