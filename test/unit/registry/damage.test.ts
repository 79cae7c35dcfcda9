import { readdir, readFile, rm, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { silentLogger } from '../../../src/lib/logger.ts'
import { systemClock } from '../../../src/lib/time.ts'
import type { Operation } from '../../../src/metadata/metadata.ts'
import { computeDigest, type Digest } from '../../../src/oci/reference.ts'
import { anonymousIdentity } from '../../../src/oci/registry.ts'
import { collectGarbage } from '../../../src/registry/garbage.ts'
import { openPushedStore, type PushedStore } from '../../../src/registry/repositories.ts'
import { createStoreLayout } from '../../../src/store/layout.ts'
import { removeExpiredQuarantine } from '../../../src/store/open-store.ts'
import { damageLog, listLog } from '../../support/metadata-log.ts'
import { bytesOf, openText, putText, temporaryFolder } from '../../support/store/store.ts'

const everything = { grace: 0, untagged: true, dryRun: false }
const folderOf = (root: string) => createStoreLayout(root).metadata
const tagsOf = (store: PushedStore, name = 'app') => [...(store.repositories.get(name)?.tags.keys() ?? [])].toSorted()

/** Runs the body with the store at the root, and closes it. */
async function using<T>(root: string, body: (store: PushedStore) => Promise<T>): Promise<T> {
  const store = await openPushedStore({ root, minFree: 0, logger: silentLogger, clock: systemClock })
  try {
    return await body(store)
  } finally {
    await store.close()
  }
}

function tag(name: string): Operation {
  const digest = computeDigest(bytesOf('m'))
  return { op: 'tag', tag: name, digest, identity: anonymousIdentity, updatedAt: 1, pulls: 0, lastPulled: 0 }
}

/** Damages the commit of a blob; returns the blob's digest. */
async function loseBlob(root: string): Promise<Digest> {
  const digest = await using(root, async (store) => {
    const stored = await putText(store, 'b')
    await store.repositories.commit('app', [tag('v1')])
    await store.repositories.commit('app', [
      { op: 'blob', digest: stored, size: 1, identity: anonymousIdentity, usedAt: 0 },
    ])
    await store.repositories.commit('other', [tag('v1')])
    return stored
  })
  await damageLog(folderOf(root), (text) => text.replace('["blob"', '["blop"'))
  return digest
}

test.each(['the folder', 'the files'])(
  'the loss of the metadata is reported, and no content is removed: %s',
  async (what) => {
    const root = await temporaryFolder()
    const digest = await using(root, async (store) => {
      const stored = await putText(store, 'b')
      const blob = { op: 'blob', digest: stored, size: 1, identity: anonymousIdentity, usedAt: 0 } as const
      await store.repositories.commit('app', [blob])
      return stored
    })
    if (what === 'the folder') await rm(folderOf(root), { recursive: true })
    else for (const path of await listLog(folderOf(root))) await rm(path)
    for (let starts = 0; starts < 3; starts++)
      await using(root, async (store) => {
        expect(store.repositories.damaged).toMatchObject([{ name: undefined, isServed: true }])
        expect(await collectGarbage(store, everything)).toMatchObject({ blobs: 0 })
        expect(await openText(store, digest)).toBe('b')
      })
  },
)

test('content whose first commit a crash has prevented is no damage', async () => {
  const root = await temporaryFolder()
  await using(root, (store) => putText(store, 'b'))
  await using(root, async (store) => {
    expect(store.repositories.damaged).toEqual([])
    expect(await collectGarbage(store, everything)).toMatchObject({ blobs: 1 })
  })
})

describe('a damaged line of a pushed repository', () => {
  test('is reported until it has been in quarantine for a week from now, and its content stays', async () => {
    const root = await temporaryFolder()
    const digest = await loseBlob(root)
    for (const path of await listLog(folderOf(root))) await utimes(path, 1, 1)
    for (let starts = 0; starts < 3; starts++)
      await using(root, async (store) => {
        expect([tagsOf(store), tagsOf(store, 'other')]).toEqual([['v1'], ['v1']])
        const aside = await readdir(store.layout.quarantine)
        expect(aside).toEqual([expect.stringMatching(/^\d{16}\.log-/)])
        const path = join(store.layout.quarantine, aside[0]!)
        expect(store.repositories.damaged).toEqual([
          {
            name: 'app',
            path,
            original: join(folderOf(root), aside[0]!.slice(0, aside[0]!.lastIndexOf('-'))),
            reason: '1 damaged line was skipped: push the missing images again',
            isServed: true,
          },
        ])
        expect(await readFile(path, 'utf8')).toContain('["blop"')
        expect(await collectGarbage(store, everything)).toMatchObject({ blobs: 0 })
        expect(await openText(store, digest)).toBe('b')
        expect(store.repositories.isHeld(digest)).toBe(true)
      })
  })

  test('does not protect unused content any more when its copy was removed', async () => {
    const root = await temporaryFolder()
    await loseBlob(root)
    await using(root, async (store) => {
      expect(await collectGarbage(store, everything)).toMatchObject({ blobs: 0 })
      await removeExpiredQuarantine(store.layout, Date.now() + 8 * 24 * 3_600_000)
      expect(await collectGarbage(store, everything)).toMatchObject({ blobs: 1 })
      expect(store.repositories.damaged).toEqual([])
    })
  })

  test.skipIf(process.platform !== 'linux')('that could not be copied protects its content', async () => {
    // Fills the path, so that only the path in quarantine exceeds the limit of Linux.
    let root = await temporaryFolder()
    for (let remaining = 4012 - root.length; remaining > 0; remaining = 4012 - root.length)
      root = join(root, 'x'.repeat(remaining > 400 ? 200 : remaining > 202 ? remaining - 202 : remaining - 1))
    expect(root.length).toBe(4012)
    const digest = await loseBlob(root)
    for (let starts = 0; starts < 2; starts++)
      await using(root, async (store) => {
        expect(tagsOf(store)).toEqual(['v1'])
        expect(await readdir(store.layout.quarantine)).toEqual([])
        expect(store.repositories.damaged).toMatchObject([{ name: 'app', isServed: true }])
        expect(await collectGarbage(store, everything)).toMatchObject({ blobs: 0 })
        expect(await openText(store, digest)).toBe('b')
      })
  })

  test('is reported without a name where it does not tell one', async () => {
    const root = await temporaryFolder()
    await loseBlob(root)
    await damageLog(folderOf(root), (text) => text.replace(/\d \/app (?=\[\["blop)/, 'ÿÿ'))
    await using(root, async ({ repositories }) =>
      expect(repositories.damaged).toMatchObject([{ name: undefined, isServed: true }]),
    )
  })
})

test.each([
  ['a damaged record of an earlier version', 'abc.jsonl-damaged-0', 1],
  ['a copy of a record of an earlier version', 'abc.jsonl-0', 0],
])('%s in quarantine protects all content while it is there', async (_, file, reports) => {
  const root = await temporaryFolder()
  await using(root, async (store) => {
    const digest = await putText(store, 'b')
    const path = join(store.layout.quarantine, file)
    await writeFile(path, 'nonsense')
    expect(await collectGarbage(store, everything)).toMatchObject({ blobs: 0 })
    expect(await openText(store, digest)).toBe('b')
    expect(store.repositories.damaged).toHaveLength(reports)
    for (const report of store.repositories.damaged)
      expect(report).toMatchObject({
        path,
        original: store.layout.originOf(file),
        isServed: false,
        reason: expect.stringContaining('push the missing images again, then remove the file'),
      })
    await rm(path)
    expect(await collectGarbage(store, everything)).toMatchObject({ blobs: 1 })
  })
})

test('a damaged blob in quarantine protects nothing', async () => {
  await using(await temporaryFolder(), async (store) => {
    const digest = await putText(store, 'b')
    await writeFile(store.layout.quarantined(digest), 'nonsense')
    expect(await collectGarbage(store, everything)).toMatchObject({ blobs: 1 })
  })
})
