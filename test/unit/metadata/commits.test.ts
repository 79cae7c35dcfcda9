import { open, readdir, readFile, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { describe, expect, test, vi } from 'vitest'
import type { Operation } from '../../../src/metadata/metadata.ts'
import { systemClock } from '../../../src/lib/time.ts'
import type { MetadataStore } from '../../../src/metadata/metadata-store.ts'
import { computeDigest } from '../../../src/oci/reference.ts'
import { anonymousIdentity } from '../../../src/oci/registry.ts'
import { breakLog, countSyncs, listLog, openMetadata, withMetadata } from '../../support/metadata-log.ts'
import { bytesOf, temporaryFolder } from '../../support/store/store.ts'

const app = { host: '', name: 'app' }
const digestOf = (text: string) => computeDigest(bytesOf(text))
const uses = { updatedAt: 1, pulls: 0, lastPulled: 0 }

function blob(text: string): Operation {
  return { op: 'blob', digest: digestOf(text), size: 1, identity: anonymousIdentity, usedAt: 0 }
}
const dropBlob = (text: string): Operation => ({ op: 'drop-blob', digest: digestOf(text) })
function tag(name: string): Operation {
  return { op: 'tag', tag: name, digest: digestOf('m'), identity: anonymousIdentity, ...uses }
}
const untag = (name: string): Operation => ({ op: 'untag', tag: name })
const manifest = {
  op: 'manifest',
  digest: digestOf('m'),
  mediaType: 'application/x',
  size: 3,
  identity: anonymousIdentity,
  ...uses,
  usedAt: 6,
  subject: digestOf('s'),
  artifactType: 'application/z',
} as const satisfies Operation

const folderOf = (root: string) => join(root, 'metadata')
const durably = (store: MetadataStore, operations: readonly Operation[]) => store.commit(app, operations, 'durable')
const tagsOf = (store: MetadataStore) => [...(store.get('', 'app')?.tags.keys() ?? [])].toSorted()
function contentOf(store: MetadataStore) {
  const { tags, manifests, blobs } = store.get('', 'app')!
  return structuredClone({ tags: new Map(tags), manifests: new Map(manifests), blobs: new Map(blobs) })
}
const logBytes = async (root: string) => {
  const sizes = await Promise.all((await listLog(folderOf(root))).map(async (path) => (await stat(path)).size))
  return sizes.reduce((sum, size) => sum + size, 0)
}

describe('a durable commit', () => {
  test('keeps every kind of change across a restart', async () => {
    const root = await temporaryFolder()
    const before = await withMetadata(root, async (store) => {
      await durably(store, [blob('b'), blob('gone'), manifest, tag('v1'), tag('__proto__'), tag('gone')])
      await durably(store, [untag('gone'), dropBlob('gone')])
      return contentOf(store)
    })
    expect([...before.tags.keys()]).toEqual(['v1', '__proto__'])
    await withMetadata(root, async (store) => expect(contentOf(store)).toEqual(before))
  })

  test('is visible when it is on the disk, and not before', async () => {
    const root = await temporaryFolder()
    const store = await openMetadata(root)
    const committed = durably(store, [tag('v1'), blob('b')])
    expect(store.get('', 'app')).toBeUndefined()
    expect(store.isHeld(digestOf('b'))).toBe(false)
    await committed
    expect(tagsOf(store)).toEqual(['v1'])
    expect(await readFile((await listLog(folderOf(root)))[0]!, 'utf8')).toContain('"v1"')
  })

  test('shares its sync with those that come during the sync before', async () => {
    const root = await temporaryFolder()
    const names = Array.from({ length: 200 }, (_, at) => `t${at}`).toSorted()
    await withMetadata(root, async (store) => {
      await durably(store, [tag('first')])
      const syncs = await countSyncs(root)
      await Promise.all(names.map((name) => durably(store, [tag(name)])))
      expect(syncs.count).toBe(2)
    })
    await withMetadata(root, async (store) => expect(tagsOf(store)).toEqual(['first', ...names]))
  })

  test('that cannot be written is rejected, shows none of its changes, and later ones succeed', async () => {
    const root = await temporaryFolder()
    await withMetadata(root, async (store) => {
      await durably(store, [tag('v1')])
      const mend = await breakLog(folderOf(root))
      await expect(durably(store, [tag('v2')])).rejects.toMatchObject({ syscall: expect.any(String) })
      expect(tagsOf(store)).toEqual(['v1'])
      await mend()
      await durably(store, [tag('v3')])
    })
    await withMetadata(root, async (store) => expect(tagsOf(store)).toEqual(['v1', 'v3']))
  })

  test('is written with all others after the log was deleted from outside', async () => {
    const root = await temporaryFolder()
    await withMetadata(root, async (store) => {
      await durably(store, [tag('v1')])
      await rm(folderOf(root), { recursive: true })
      await durably(store, [tag('v2')])
    })
    await withMetadata(root, async (store) => expect(tagsOf(store)).toEqual(['v1', 'v2']))
  })

  test('that removes the last entry removes the repository', async () => {
    const root = await temporaryFolder()
    await withMetadata(root, async (store) => {
      await durably(store, [tag('v1')])
      await durably(store, [untag('v1')])
      expect([...store.all()]).toEqual([])
    })
    await withMetadata(root, async (store) => expect([...store.all()]).toEqual([]))
  })
})

describe('a commit without a sync', () => {
  test('is visible at once, and on the disk after a stop, also when the disk refused it first', async () => {
    const root = await temporaryFolder()
    await withMetadata(root, async (store) => {
      await durably(store, [tag('v1'), blob('b')])
      const mend = await breakLog(folderOf(root))
      const syncs = await countSyncs(root)
      await store.commit(app, [tag('v2')], 'soon')
      store.recordUse(app, { op: 'use-blob', digest: digestOf('b'), usedAt: 9 })
      await store.flush()
      expect(syncs.count).toBe(0)
      expect(tagsOf(store)).toEqual(['v1', 'v2'])
      await mend()
    })
    await withMetadata(root, async (store) => {
      expect(tagsOf(store)).toEqual(['v1', 'v2'])
      expect(store.get('', 'app')!.blobs.get(digestOf('b'))!.usedAt).toBe(9)
    })
  })
})

test('uses of one repository become one line, with the latest values', async () => {
  const root = await temporaryFolder()
  const store = await openMetadata(root)
  await durably(store, [tag('v1'), tag('v2'), blob('b')])
  const readLines = async () => (await readFile((await listLog(folderOf(root))).at(-1)!, 'utf8')).split('\n')
  const before = await readLines()
  for (let pulls = 1; pulls <= 20; pulls++)
    for (const name of ['v1', 'v2']) store.recordUse(app, { op: 'use-tag', tag: name, pulls, lastPulled: pulls })
  store.recordUse(app, { op: 'use-blob', digest: digestOf('b'), usedAt: 9 })
  await store.flush()
  const after = await readLines()
  expect(after.length).toBe(before.length + 1)
  expect(after.at(-2)).toContain(
    JSON.stringify([
      ['use-tag', 'v1', 20, 20],
      ['use-tag', 'v2', 20, 20],
      ['use-blob', digestOf('b'), 9],
    ]),
  )
})

describe('the log', () => {
  test('is replaced by a checkpoint when it has many bytes for few entries', async () => {
    const root = await temporaryFolder()
    const names = Array.from({ length: 3000 }, (_, at) => `${'t'.repeat(100)}${at}`)
    await withMetadata(root, async (store) => {
      for (let round = 0; round < 2; round++) {
        await durably(store, names.map(tag))
        await durably(store, names.map(untag))
      }
      await durably(store, [tag('v1')])
    })
    expect(await logBytes(root)).toBeLessThan(1024 * 1024)
    await withMetadata(root, async (store) => expect(tagsOf(store)).toEqual(['v1']))
  })

  test('is replaced by a checkpoint when it has many lines for few entries', async () => {
    const root = await temporaryFolder()
    await withMetadata(root, async (store) => {
      for (let round = 0; round < 10; round++)
        await Promise.all(Array.from({ length: 1200 }, () => durably(store, [tag('latest')])))
      await durably(store, [tag('v1')])
    })
    expect(await logBytes(root)).toBeLessThan(1024 * 1024)
    await withMetadata(root, async (store) => expect(tagsOf(store)).toEqual(['latest', 'v1']))
  })
})

test('removals are visible before they are on the disk, and until then the content is held', async () => {
  const store = await openMetadata(await temporaryFolder())
  await durably(store, [blob('b'), manifest])
  const removed = durably(store, [dropBlob('b'), { op: 'drop-manifest', digest: manifest.digest }])
  expect(store.get('', 'app')).toBeUndefined()
  for (const digest of [digestOf('b'), manifest.digest]) expect(store.isHeld(digest)).toBe(true)
  await removed
  for (const digest of [digestOf('b'), manifest.digest]) expect(store.isHeld(digest)).toBe(false)
})

test('content is held until the last repository and kind of entry has lost it', async () => {
  const store = await openMetadata(await temporaryFolder())
  const other = { host: '', name: 'other' }
  const digest = digestOf('b')
  await durably(store, [blob('b'), { ...manifest, digest }])
  await store.commit(other, [blob('b')], 'durable')
  await durably(store, [dropBlob('b')])
  expect(store.isHeld(digest)).toBe(true)
  await store.commit(other, [dropBlob('b')], 'durable')
  expect(store.isHeld(digest)).toBe(true)
  await durably(store, [{ op: 'drop-manifest', digest }])
  expect(store.isHeld(digest)).toBe(false)
})

describe('a removal that the disk refuses', () => {
  const everything = [blob('a'), blob('b'), manifest, tag('v1'), tag('v2')]
  const removals: Operation[] = [
    untag('v1'),
    { op: 'drop-manifest', digest: manifest.digest },
    dropBlob('a'),
    dropBlob('none'),
  ]
  const failure = { syscall: expect.any(String) }

  test('removes nothing, neither now nor when the whole state is written again', async () => {
    const root = await temporaryFolder()
    const before = await withMetadata(root, async (store) => {
      await durably(store, everything)
      const whole = contentOf(store)
      const mend = await breakLog(folderOf(root))
      await expect(durably(store, removals)).rejects.toMatchObject(failure)
      expect(contentOf(store)).toEqual(whole)
      // Starts several removals that wait for each other.
      const failing = [removals, [untag('v1')], [untag('v2'), tag('v3')], removals]
      for (const result of await Promise.allSettled(failing.map((operations) => durably(store, operations))))
        expect(result.status).toBe('rejected')
      expect(contentOf(store)).toEqual(whole)
      for (const digest of [digestOf('a'), manifest.digest]) expect(store.isHeld(digest)).toBe(true)
      await mend()
      await durably(store, [tag('v4')])
      expect(tagsOf(store)).toEqual(['v1', 'v2', 'v4'])
      return contentOf(store)
    })
    await withMetadata(root, async (store) => {
      expect(contentOf(store)).toEqual(before)
      for (const digest of [digestOf('a'), digestOf('b'), manifest.digest]) expect(store.isHeld(digest)).toBe(true)
      await durably(store, [dropBlob('a')])
      expect(store.isHeld(digestOf('a'))).toBe(false)
    })
  })

  test('leaves no holder behind: the next removal of the same content succeeds', async () => {
    const root = await temporaryFolder()
    const store = await openMetadata(root)
    await durably(store, everything)
    const mend = await breakLog(folderOf(root))
    for (const result of await Promise.allSettled([durably(store, removals), durably(store, removals)]))
      expect(result.status).toBe('rejected')
    await mend()
    await durably(store, removals)
    for (const digest of [digestOf('a'), manifest.digest]) expect(store.isHeld(digest)).toBe(false)
    expect(store.isHeld(digestOf('b'))).toBe(true)
  })

  test('does not undo another removal of the same content that succeeds', async () => {
    const root = await temporaryFolder()
    await withMetadata(root, async (store) => {
      await durably(store, everything)
      const mend = await breakLog(folderOf(root))
      await expect(durably(store, [untag('v1'), untag('v2')])).rejects.toMatchObject(failure)
      await mend()
      await durably(store, [untag('v1')])
      expect(tagsOf(store)).toEqual(['v2'])
    })
    await withMetadata(root, async (store) => expect(tagsOf(store)).toEqual(['v2']))
  })

  test('is not in a state that is written again while the removal is queued', async () => {
    const root = await temporaryFolder()
    await withMetadata(root, async (store) => {
      await durably(store, everything)
      await rm(folderOf(root), { recursive: true })
      const writing = durably(store, [tag('v3')])
      const removing = durably(store, removals)
      await writing
      const [checkpoint] = await readdir(folderOf(root))
      const text = await readFile(join(folderOf(root), checkpoint!), 'utf8')
      for (const held of ['"v1"', digestOf('a'), manifest.digest]) expect(text).toContain(held)
      await removing
      expect(tagsOf(store)).toEqual(['v2', 'v3'])
    })
    await withMetadata(root, async (store) => {
      expect(tagsOf(store)).toEqual(['v2', 'v3'])
      expect(store.get('', 'app')!.blobs.size).toBe(1)
    })
  })
})

test('a checkpoint that the disk refuses is tried again without a further commit', async () => {
  const root = await temporaryFolder()
  const clock = { ...systemClock, sleep: () => systemClock.sleep(20) }
  const store = await openMetadata(root, { clock })
  await durably(store, [tag('v1')])
  const mend = await breakLog(folderOf(root))
  store.requestCheckpoint()
  await setTimeout(100)
  await mend()
  await expect
    .poll(async () => (await listLog(folderOf(root)).catch(() => [])).map((path) => path.endsWith('.checkpoint')))
    .toContain(true)
})

test('a disk that takes nothing refuses a commit, and does not hang', async () => {
  const root = await temporaryFolder()
  const store = await openMetadata(root)
  await durably(store, [tag('v1')])
  const file = await open(root)
  const prototype = Object.getPrototypeOf(file) as typeof file
  await file.close()
  const write = vi.spyOn(prototype, 'write').mockImplementation(async () => ({ bytesWritten: 0, buffer: '' }))
  await expect(durably(store, [tag('v2')])).rejects.toMatchObject({ code: 'EIO' })
  write.mockRestore()
  await durably(store, [tag('v3')])
  expect(tagsOf(store)).toEqual(['v1', 'v3'])
})
