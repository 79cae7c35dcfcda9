import { readFileSync } from 'node:fs'
import { appendFile, mkdir, readdir, readFile, rename, rm, truncate, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { systemClock } from '../../../src/lib/time.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { computeDigest, type Digest } from '../../../src/oci/reference.ts'
import { collectGarbage } from '../../../src/registry/garbage.ts'
import { removeExpiredQuarantine } from '../../../src/store/open-store.ts'
import { openPushedStore, type PushedStore } from '../../../src/registry/repositories.ts'
import type { PushedChange } from '../../../src/registry/repository.ts'
import { bytesOf, openText, putText, temporaryFolder } from '../../support/store/store.ts'

const open = (root: string) => openPushedStore({ root, minFree: 0, logger: silentLogger, clock: systemClock })

/** Runs the body with the store at the root, and closes it. */
async function using<T>(root: string, body: (store: PushedStore) => Promise<T>): Promise<T> {
  const store = await open(root)
  try {
    return await body(store)
  } finally {
    await store.close()
  }
}

const blob = (text: string): PushedChange => ({
  op: 'blob',
  digest: computeDigest(bytesOf(text)),
  size: 1,
  heldSince: 0,
})
const dropBlob = (text: string): PushedChange => ({ op: 'drop-blob', digest: computeDigest(bytesOf(text)) })
const tag = (name: string): PushedChange => ({ op: 'tag', tag: name, digest: computeDigest(bytesOf('m')), pushedAt: 1 })
const tagsOf = (store: PushedStore, name = 'app') => [...(store.repositories.get(name)?.tags.keys() ?? [])].toSorted()

async function journalOf(root: string): Promise<string> {
  const folder = join(root, 'v1', 'repositories')
  return join(
    folder,
    (await readdir(folder)).find((name) => name.endsWith('.jsonl'))!,
  )
}

describe('the journal of a pushed repository', () => {
  test('keeps every kind of change across a restart', async () => {
    const root = await temporaryFolder()
    const digest = computeDigest(bytesOf('m'))
    const manifest: PushedChange = {
      op: 'manifest',
      digest,
      mediaType: 'application/x',
      size: 3,
      subject: computeDigest(bytesOf('s')),
      artifactType: 'application/z',
      pushedAt: 5,
      heldSince: 6,
    }
    const before = await using(root, async ({ repositories }) => {
      await repositories.commit('app', [blob('b'), blob('gone'), manifest, tag('v1'), tag('__proto__'), tag('gone')])
      await repositories.commit('app', [
        { op: 'untag', tag: 'gone' },
        { ...blob('gone'), op: 'drop-blob' } as PushedChange,
      ])
      return structuredClone(repositories.get('app'))
    })
    await using(root, async ({ repositories }) => expect(repositories.get('app')).toEqual(before))
  })

  test.each([1, 10, 40])('whose last line lacks %i bytes loses only that line, and takes commits', async (torn) => {
    const root = await temporaryFolder()
    await using(root, async ({ repositories }) => {
      await repositories.commit('app', [tag('v1')])
      await repositories.commit('app', [tag('v2'), tag('v3')])
    })
    const path = await journalOf(root)
    await truncate(path, (await readFile(path)).length - torn)
    await using(root, async (store) => {
      expect(tagsOf(store)).toEqual(['v1'])
      await store.repositories.commit('app', [tag('v4')])
    })
    await using(root, async (store) => expect(tagsOf(store)).toEqual(['v1', 'v4']))
  })

  test('with garbage at its end or in its middle keeps the other lines', async () => {
    const root = await temporaryFolder()
    await using(root, async ({ repositories }) => repositories.commit('app', [tag('v1')]))
    await appendFile(await journalOf(root), '\0\0\0\n[{"op":"tag"}]\n')
    await using(root, async (store) => {
      await store.repositories.commit('app', [tag('v2')])
      expect(tagsOf(store)).toEqual(['v1', 'v2'])
    })
    await using(root, async (store) => expect(tagsOf(store)).toEqual(['v1', 'v2']))
  })

  test('with a damaged first line is quarantined, and the other repositories work', async () => {
    const root = await temporaryFolder()
    await using(root, async ({ repositories }) => {
      await repositories.commit('app', [tag('v1')])
      await repositories.commit('other', [tag('v1')])
    })
    await writeFile(await journalOf(root), 'nonsense')
    await using(root, async (store) => {
      expect([...store.repositories.all()].length).toBe(1)
      expect((await readdir(store.layout.quarantine)).length).toBe(1)
    })
  })

  test.each([
    ['first line', 0],
    ['middle line', 1],
  ])('whose %s is damaged stays in quarantine for a week from now, and its content stays', async (_, line) => {
    const root = await temporaryFolder()
    const digest = await using(root, async (store) => {
      await store.repositories.commit('app', [blob('b'), tag('v1')])
      await store.repositories.commit('app', [tag('v2')])
      return putText(store, 'b')
    })
    const path = await journalOf(root)
    const damaged = (await readFile(path, 'utf8')).split('\n').with(line, 'nonsense').join('\n')
    await writeFile(path, damaged)
    await utimes(path, 1, 1)
    for (let starts = 0; starts < 3; starts++)
      await using(root, async (store) => {
        const aside = await readdir(store.layout.quarantine)
        expect(aside.length).toBe(1)
        expect(await readFile(join(store.layout.quarantine, aside[0]!), 'utf8')).toBe(damaged)
        expect(await collectGarbage(store, { grace: 0, untagged: true, dryRun: false })).toMatchObject({ blobs: 0 })
        expect(await openText(store, digest)).toBe('b')
      })
  })

  /** Damages the journal line of a blob in a store; returns the blob's digest. */
  async function loseLine(root: string): Promise<Digest> {
    const digest = await using(root, async (store) => {
      await store.repositories.commit('app', [tag('v1')])
      await store.repositories.commit('app', [blob('b')])
      return putText(store, 'b')
    })
    const path = await journalOf(root)
    await writeFile(path, (await readFile(path, 'utf8')).split('\n').with(2, 'nonsense').join('\n'))
    return digest
  }
  const everything = { grace: 0, untagged: true, dryRun: false }

  test('whose copy in quarantine was removed does not protect unused content any more', async () => {
    const root = await temporaryFolder()
    await loseLine(root)
    await using(root, async (store) => {
      expect(await collectGarbage(store, everything)).toMatchObject({ blobs: 0 })
      await removeExpiredQuarantine(store.layout, Date.now() + 8 * 24 * 3_600_000)
      expect(await collectGarbage(store, everything)).toMatchObject({ blobs: 1 })
    })
  })

  test.skipIf(process.platform !== 'linux')(
    'with a damaged line that could not be copied protects the content of that line',
    async () => {
      // Fills the path, so that only the path in quarantine exceeds the limit of Linux.
      let root = await temporaryFolder()
      for (let remaining = 3984 - root.length; remaining > 0; remaining = 3984 - root.length)
        root = join(root, 'x'.repeat(remaining > 400 ? 200 : remaining > 202 ? remaining - 202 : remaining - 1))
      expect(root.length).toBe(3984)
      const digest = await loseLine(root)
      await using(root, async (store) => {
        expect(tagsOf(store)).toEqual(['v1'])
        expect(await readdir(store.layout.quarantine)).toEqual([])
        expect(await collectGarbage(store, everything)).toMatchObject({ blobs: 0 })
        expect(await openText(store, digest)).toBe('b')
      })
    },
  )

  test.each([10, 262_100, 300_000, 1_000_000])(
    'of format 1, with %i characters of annotations per line, is read and rewritten without them',
    async (length) => {
      const root = await temporaryFolder()
      await using(root, async ({ repositories }) => repositories.commit('app', [tag('v0')]))
      const path = await journalOf(root)
      const annotations = { 'é"\\[{': `\\"]}\u2028ü${'x\\'.repeat(length / 2)}` }
      const links = Array.from({ length: length / 100 }, (_, at) => ({
        kind: 'blob',
        mediaType: 'application/y',
        digest: computeDigest(bytesOf(`b${at}`)),
        size: at,
      }))
      const manifest = {
        op: 'manifest',
        digest: computeDigest(bytesOf('m')),
        mediaType: 'application/x',
        size: 3,
        links,
        subject: computeDigest(bytesOf('s')),
        artifactType: 'application/z',
        annotations,
        pushedAt: 5,
        heldSince: 6,
      }
      const lines = [
        { format: 1, name: 'app' },
        [manifest, tag('v1'), tag('__proto__')],
        [tag('v2')],
        [
          { ...manifest, pushedAt: 7, artifactType: 'long'.repeat(length) },
          { ...tag('v1'), pushedAt: 8 },
        ],
        [tag('v3')],
      ]
      await writeFile(path, lines.map((line) => `${JSON.stringify(line)}\n`).join(''))
      await appendFile(path, JSON.stringify([manifest, tag('v4')]).slice(0, -1))
      for (let starts = 0; starts < 2; starts++)
        await using(root, async ({ repositories }) => {
          const { tags, manifests } = repositories.get('app')!
          expect([...tags].map(([name, { pushedAt }]) => `${name} ${pushedAt}`)).toEqual([
            'v1 8',
            '__proto__ 1',
            'v2 1',
            'v3 1',
          ])
          const { artifactType: _, ...held } = manifests.get(manifest.digest)!
          const { mediaType, size, subject, heldSince } = manifest
          expect(held).toEqual({ mediaType, size, subject, heldSince, pushedAt: 7 })
          expect(repositories.damaged).toEqual([])
        })
      expect((await readFile(path)).length).toBeLessThan(2000)
    },
  )

  test('is rewritten when it has many bytes for few entries', async () => {
    const root = await temporaryFolder()
    const names = Array.from({ length: 3000 }, (_, at) => `${'t'.repeat(100)}${at}`)
    await using(root, async ({ repositories }) => {
      // Writes few lines with many bytes.
      for (let round = 0; round < 2; round++) {
        await repositories.commit('app', names.map(tag))
        await repositories.commit(
          'app',
          names.map((name) => ({ op: 'untag', tag: name })),
        )
      }
      await repositories.commit('app', [tag('v1')])
    })
    expect((await readFile(await journalOf(root))).length).toBeLessThan(1024 * 1024)
    await using(root, async (store) => expect(tagsOf(store)).toEqual(['v1']))
  })

  test('takes all concurrent commits', async () => {
    const root = await temporaryFolder()
    const names = Array.from({ length: 200 }, (_, at) => `t${at}`).toSorted()
    await using(root, async ({ repositories }) => {
      await Promise.all(names.map((name) => repositories.commit('app', [tag(name)])))
    })
    await using(root, async (store) => expect(tagsOf(store)).toEqual(names))
  })

  test('is rewritten when it has many lines for few entries', async () => {
    const root = await temporaryFolder()
    await using(root, async ({ repositories }) => {
      const pushes = Array.from({ length: 1200 }, () => repositories.commit('app', [tag('latest')]))
      await Promise.all(pushes)
      await repositories.commit('app', [tag('v1')])
    })
    expect((await readFile(await journalOf(root), 'utf8')).split('\n').length).toBeLessThan(10)
    await using(root, async (store) => expect(tagsOf(store)).toEqual(['latest', 'v1']))
  })

  test('that cannot be written rejects the commit, shows none of its changes, and recovers', async () => {
    const root = await temporaryFolder()
    await using(root, async (store) => {
      await store.repositories.commit('app', [tag('v1')])
      const path = await journalOf(root)
      await rm(path)
      await mkdir(path)
      await expect(store.repositories.commit('app', [tag('v2')])).rejects.toMatchObject({ code: 'EISDIR' })
      expect(tagsOf(store)).toEqual(['v1'])
      await rm(path, { recursive: true })
      await store.repositories.commit('app', [tag('v3')])
    })
    await using(root, async (store) => expect(tagsOf(store)).toEqual(['v1', 'v3']))
  })

  test('of an empty repository is removed by a restart', async () => {
    const root = await temporaryFolder()
    await using(root, async ({ repositories }) => {
      await repositories.commit('app', [tag('v1')])
      await repositories.commit('app', [{ op: 'untag', tag: 'v1' }])
      expect([...repositories.all()]).toEqual([])
    })
    await using(root, async (store) => expect(await readdir(store.layout.repositories)).toEqual([]))
  })
})

test('removals are visible before they are on disk, and until then the bytes stay', async () => {
  const root = await temporaryFolder()
  await using(root, async ({ repositories }) => {
    await repositories.commit('app', [blob('b')])
    const removed = repositories.commit('app', [dropBlob('b')])
    expect(repositories.get('app')?.blobs.size).toBe(0)
    expect(repositories.isHeld(computeDigest(bytesOf('b')))).toBe(true)
    await removed
    expect(repositories.isHeld(computeDigest(bytesOf('b')))).toBe(false)
  })
})

describe('a removal that the disk refuses', () => {
  const contentOf = (store: PushedStore) => structuredClone(store.repositories.get('app'))
  const untag = (name: string): PushedChange => ({ op: 'untag', tag: name })
  const manifest: PushedChange = {
    op: 'manifest',
    digest: computeDigest(bytesOf('m')),
    mediaType: 'application/x',
    size: 3,
    pushedAt: 5,
    heldSince: 6,
  }
  const everything = [blob('a'), blob('b'), manifest, tag('v1'), tag('v2')]
  const removals: PushedChange[] = [
    untag('v1'),
    { op: 'drop-manifest', digest: manifest.digest },
    dropBlob('a'),
    dropBlob('none'),
  ]

  /** Replaces the journal by a folder, so that writes fail; the result restores the journal. */
  async function breakJournal(root: string): Promise<() => Promise<void>> {
    const path = await journalOf(root)
    await rename(path, `${path}.kept`)
    await mkdir(path)
    return async () => {
      await rm(path, { recursive: true })
      await rename(`${path}.kept`, path)
    }
  }

  test('removes nothing, neither now nor when the journal is rewritten', async () => {
    const root = await temporaryFolder()
    const before = await using(root, async (store) => {
      const { repositories } = store
      await repositories.commit('app', everything)
      const whole = contentOf(store)
      const heal = await breakJournal(root)
      await expect(repositories.commit('app', removals)).rejects.toMatchObject({ code: 'EISDIR' })
      expect(contentOf(store)).toEqual(whole)
      // Starts several removals that wait for each other.
      const failing = [removals, [untag('v1')], [untag('v2'), tag('v3')], removals]
      for (const result of await Promise.allSettled(failing.map((changes) => repositories.commit('app', changes))))
        expect(result.status).toBe('rejected')
      expect(contentOf(store)).toEqual(whole)
      await heal()
      await repositories.commit('app', [tag('v4')])
      expect(tagsOf(store)).toEqual(['v1', 'v2', 'v4'])
      return contentOf(store)
    })
    await using(root, async (store) => expect(contentOf(store)).toEqual(before))
  })

  test('does not undo another removal of the same content that succeeds', async () => {
    const root = await temporaryFolder()
    await using(root, async (store) => {
      const { repositories } = store
      await repositories.commit('app', everything)
      const heal = await breakJournal(root)
      const failed = expect(repositories.commit('app', [untag('v1'), untag('v2')])).rejects.toMatchObject({
        code: 'EISDIR',
      })
      await failed
      await heal()
      await repositories.commit('app', [untag('v1')])
      expect(tagsOf(store)).toEqual(['v2'])
    })
    await using(root, async (store) => expect(tagsOf(store)).toEqual(['v2']))
  })

  test('is not in a journal that is rewritten while the removal is queued', async () => {
    const root = await temporaryFolder()
    await using(root, async (store) => {
      const { repositories } = store
      await repositories.commit('app', everything)
      const path = await journalOf(root)
      const heal = await breakJournal(root)
      await expect(repositories.commit('app', [tag('v3')])).rejects.toMatchObject({ code: 'EISDIR' })
      await heal()
      const writing = repositories.commit('app', [tag('v4')])
      const removing = repositories.commit('app', removals)
      await writing
      // Reads the journal when the write of the removal has only started.
      const text = readFileSync(path, 'utf8')
      for (const held of ['"v1"', computeDigest(bytesOf('a')), manifest.digest]) expect(text).toContain(held)
      await removing
      expect(tagsOf(store)).toEqual(['v2', 'v4'])
    })
    await using(root, async (store) => {
      expect(tagsOf(store)).toEqual(['v2', 'v4'])
      expect(store.repositories.get('app')!.blobs.size).toBe(1)
    })
  })
})
