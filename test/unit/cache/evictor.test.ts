import { mkdir, readdir, rm, utimes, writeFile } from 'node:fs/promises'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { setTimeout } from 'node:timers/promises'
import { describe, expect, onTestFinished, test } from 'vitest'
import { systemClock } from '../../../src/lib/time.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { computeDigest, type Digest } from '../../../src/oci/reference.ts'
import type { Store } from '../../../src/store/open-store.ts'
import { Evictor, type EvictorOptions } from '../../../src/cache/evictor.ts'
import type { MetadataStore } from '../../../src/metadata/metadata-store.ts'
import {
  addManifest,
  createTestRepository,
  digestFor,
  setTag,
  type TestRepository,
  useManifest,
} from '../../support/metadata.ts'
import { bytesOf, openTestStore, openText, putText, temporaryFolder } from '../../support/store/store.ts'

const noLimits = { maxSize: 0, maxAge: 0, minFree: 0 }

function createTestEvictor(store: Store<MetadataStore>, options: Partial<EvictorOptions> = {}): Evictor {
  const evictor = new Evictor({
    store,
    limits: noLimits,
    isInUse: () => false,
    logger: silentLogger,
    clock: systemClock,
    ...options,
  })
  onTestFinished(() => evictor.close())
  return evictor
}

/** Stores images old (used at 1), middle (2) and new (3). Each has a manifest and a blob; all share a base. */
async function threeImages(): Promise<{
  store: Store<MetadataStore>
  repository: TestRepository
  own: Digest[]
  base: Digest
}> {
  const store = await openTestStore(await temporaryFolder())
  const repository = createTestRepository({}, store.metadata)
  const base = await putText(store, 'base')
  const own: Digest[] = []
  for (const [at, name] of ['old', 'middle', 'new'].entries()) {
    await putText(store, name)
    own.push(await putText(store, `${name} blob`))
    addManifest(repository, name, { tags: [name], blobs: ['base', `${name} blob`], usedAt: at + 1 })
  }
  return { store, repository, own, base }
}

const total = 'baseoldold blobmiddlemiddle blobnewnew blob'.length

describe('a removal that the disk refuses', () => {
  test.each(['rm', 'prune'])('fails with the reason and keeps all image records (%s)', async (how) => {
    const { store, repository } = await threeImages()
    const evictor = createTestEvictor(store, { limits: { ...noLimits, maxSize: 1 } })
    // Replaces the folder by a file, so that writes fail even for root.
    await rm(store.layout.temporary, { recursive: true })
    await writeFile(store.layout.temporary, '', { mode: 0o600 })
    const asked =
      how === 'rm'
        ? evictor.remove(['docker.io/library/app:old'], false)
        : evictor.evict({ dryRun: false, isManual: true })
    await expect(asked).rejects.toMatchObject({ code: 'EACCES' })
    expect([...repository.current.tags.keys()]).toEqual(['old', 'middle', 'new'])
    expect(store.blobs.usage.bytes).toBe(total)
  })

  test('fails when a single blob cannot be removed', async () => {
    const { store, own } = await threeImages()
    const path = store.layout.blob(own[0]!)
    await rm(path)
    await mkdir(path)
    await expect(createTestEvictor(store).remove(['docker.io/library/app:old'], false)).rejects.toMatchObject({
      code: 'ERR_FS_EISDIR',
    })
  })

  test('does not fail when there is nothing to remove', async () => {
    const { store } = await threeImages()
    await rm(store.layout.temporary, { recursive: true })
    await writeFile(store.layout.temporary, '', { mode: 0o600 })
    const nothing = { images: [], blobs: 0, bytes: 0, unknown: [] }
    expect(await createTestEvictor(store).evict({ dryRun: false, isManual: true })).toEqual(nothing)
  })
})

describe('an eviction', () => {
  test('removes the least recently used image, its record before its blobs, and reports it', async () => {
    const { store, repository, own, base } = await threeImages()
    const evictor = createTestEvictor(store, { limits: { ...noLimits, maxSize: total - 1 } })
    const expected = { images: ['docker.io/library/app:old'], blobs: 2, bytes: 'oldold blob'.length, unknown: [] }
    expect(await evictor.evict({ dryRun: true })).toEqual(expected)
    expect(store.blobs.usage.bytes).toBe(total)
    expect(await evictor.evict({ dryRun: false })).toEqual(expected)
    expect(store.blobs.usage.bytes).toBe(total - expected.bytes)
    expect([...repository.current.tags.keys()]).toEqual(['middle', 'new'])
    expect(await openText(store, own[0]!)).toBeUndefined()
    expect(await openText(store, base)).toBe('base')
    expect(await evictor.evict({ dryRun: false })).toEqual({ images: [], blobs: 0, bytes: 0, unknown: [] })
  })

  test('spares an image that is pulled between plan and removal', async () => {
    const { store, repository } = await threeImages()
    store.runningClock.now = () => 1000
    const evictor = createTestEvictor(store, {
      limits: { ...noLimits, maxAge: 10 },
      isInUse: (digest) => {
        // Uses the oldest image when the plan checks the newest one, after it has decided on the oldest.
        if (digest === digestFor('new')) {
          useManifest(repository, 'old', 999)
        }
        return false
      },
    })
    expect((await evictor.evict({ dryRun: false })).images).toEqual(
      ['middle', 'new'].map((tag) => `docker.io/library/app:${tag}`),
    )
    for (const name of ['old', 'old blob', 'base']) expect(await openText(store, digestFor(name))).toBe(name)
  })

  test('spares a blob that another image starts to reference between plan and removal', async () => {
    const { store } = await threeImages()
    store.runningClock.now = () => 1000
    const evictor = createTestEvictor(store, {
      limits: { ...noLimits, maxAge: 10 },
      isInUse: (digest) => {
        if (digest === digestFor('new')) {
          const other = createTestRepository({ host: 'ghcr.io', name: 'other' }, store.metadata)
          addManifest(other, 'other', { blobs: ['old blob'], usedAt: 1000 })
        }
        return false
      },
    })
    expect((await evictor.evict({ dryRun: false })).images).toHaveLength(3)
    expect(await openText(store, digestFor('old blob'))).toBe('old blob')
    expect(store.blobs.usage.blobs).toBe(1)
  })

  test('spares the content of an image that is pulled, and nothing else of its repository', async () => {
    const { store, repository } = await threeImages()
    const nobody = await putText(store, 'nobody')
    const evictor = createTestEvictor(store, {
      limits: { ...noLimits, maxSize: 1 },
      isInUse: (digest) => {
        if (digest === nobody && repository.current.tags.has('middle')) {
          useManifest(repository, 'middle', 999)
          repository.apply(setTag('new', digestFor('new')))
        }
        return false
      },
    })
    expect((await evictor.evict({ dryRun: false })).images).toEqual(['docker.io/library/app:old'])
    for (const name of ['middle', 'middle blob', 'base', 'new'])
      expect(await openText(store, digestFor(name))).toBe(name)
    for (const name of ['nobody', 'old', 'old blob']) expect(await openText(store, digestFor(name))).toBeUndefined()
  })

  test('spares an image whose repository lost all entries and got it again between plan and removal', async () => {
    const { store, repository } = await threeImages()
    store.runningClock.now = () => 1000
    const names = ['old', 'middle', 'new']
    const evictor = createTestEvictor(store, {
      limits: { ...noLimits, maxAge: 10 },
      isInUse: (digest) => {
        if (digest === digestFor('new') && repository.current.tags.size === names.length) {
          for (const tag of names)
            repository.apply({ op: 'untag', tag }, { op: 'drop-manifest', digest: digestFor(tag) })
          addManifest(repository, 'old', { tags: ['old'], blobs: ['base', 'old blob'], usedAt: 999 })
        }
        return false
      },
    })
    await evictor.evict({ dryRun: false })
    expect([...repository.current.tags.keys()]).toEqual(['old'])
    for (const name of ['old', 'old blob', 'base']) expect(await openText(store, digestFor(name))).toBe(name)
    expect(await openText(store, digestFor('middle'))).toBeUndefined()
  })

  test('spares a blob that comes into use between plan and removal', async () => {
    const { store } = await threeImages()
    const nobody = await putText(store, 'nobody')
    let asked = 0
    const evictor = createTestEvictor(store, {
      limits: { ...noLimits, maxSize: total },
      isInUse: (digest) => digest === nobody && ++asked > 1,
    })
    expect(await evictor.evict({ dryRun: false })).toMatchObject({ blobs: 0, bytes: 0 })
    expect(asked).toBe(2)
    expect(await openText(store, nobody)).toBe('nobody')
  })

  test("makes the requested room, and keeps the disk's reserve", async () => {
    const { store } = await threeImages()
    const evictor = createTestEvictor(store, { limits: { ...noLimits, minFree: 100 }, freeSpace: async () => 99 })
    expect((await evictor.evict({ dryRun: true })).images).toEqual(['docker.io/library/app:old'])
    const needBytes = 'oldold blob'.length
    expect((await evictor.evict({ dryRun: true, neededBytes: needBytes })).images).toHaveLength(2)
  })

  test('removes no more than the disk lacks for the write', async () => {
    const { store } = await threeImages()
    let free = 150
    const evictor = createTestEvictor(store, { limits: { ...noLimits, minFree: 100 }, freeSpace: async () => free })
    const imagesFor = async (needBytes: number) =>
      (await evictor.evict({ dryRun: true, neededBytes: needBytes })).images.length
    expect(await Promise.all([imagesFor(50), imagesFor(51), imagesFor(50 + total), imagesFor(51 + total)])).toEqual([
      0, 1, 2, 0,
    ])
    free = Infinity
    expect(await imagesFor(1)).toBe(1)
  })

  test('reads the free space of the disk even without a reserve', async () => {
    const { store } = await threeImages()
    const evictor = createTestEvictor(store, { freeSpace: async () => 10 })
    expect((await evictor.evict({ dryRun: true, neededBytes: 10 })).images).toEqual([])
    expect((await evictor.evict({ dryRun: true, neededBytes: 11 })).images).toEqual(['docker.io/library/app:old'])
  })

  test('removes quarantined blobs before anything else, oldest first', async () => {
    const { store } = await threeImages()
    const { layout } = store
    for (const [at, name] of ['first', 'second', 'third'].entries()) {
      const path = layout.quarantined(digestFor(name))
      await writeFile(path, '0123456789')
      await utimes(path, at + 1, at + 1)
    }
    const left = async () => {
      const names = await readdir(layout.quarantine)
      return ['first', 'second', 'third'].filter((name) =>
        names.some((entry) => entry.includes(digestFor(name).slice('sha256:'.length))),
      )
    }
    let free = 100
    const evictor = createTestEvictor(store, { limits: { ...noLimits, minFree: 100 }, freeSpace: async () => free })
    await evictor.evict({ dryRun: false })
    expect(await left()).toEqual(['first', 'second', 'third'])
    expect((await evictor.evict({ dryRun: true, neededBytes: 31 })).images).toEqual(['docker.io/library/app:old'])
    expect(await left()).toEqual(['first', 'second', 'third'])
    free = 99
    expect((await evictor.evict({ dryRun: false })).blobs).toBe(0)
    expect(await left()).toEqual(['second', 'third'])
    free = 100
    expect((await evictor.evict({ dryRun: false, neededBytes: 21 })).images).toEqual(['docker.io/library/app:old'])
    expect(await left()).toEqual([])
  })

  test('runs on a timer', async () => {
    const { store } = await threeImages()
    createTestEvictor(store, { limits: { ...noLimits, maxSize: total - 1 }, intervalMs: 5 })
    while (store.blobs.usage.bytes === total) await setTimeout(5)
    expect(await openText(store, digestFor('old'))).toBeUndefined()
  })

  test('runs soon after a stored blob exceeds the limit', async () => {
    const { store } = await threeImages()
    const evictor = createTestEvictor(store, { limits: { ...noLimits, maxSize: total } })
    evictor.schedule()
    await putText(store, 'one more')
    evictor.schedule()
    evictor.schedule()
    while (store.blobs.usage.bytes > total) await setTimeout(5)
    expect(await openText(store, digestFor('new'))).toBe('new')
  })

  test('requested many times at once removes no more than requested once', async () => {
    const { store } = await threeImages()
    const evictor = createTestEvictor(store, { limits: { ...noLimits, maxSize: total - 1 } })
    const all = await Promise.all(Array.from({ length: 5 }, () => evictor.evict({ dryRun: false })))
    expect(all.flatMap(({ images }) => images)).toEqual(['docker.io/library/app:old'])
  })

  test('does nothing after close', async () => {
    const { store } = await threeImages()
    const evictor = createTestEvictor(store, { limits: { ...noLimits, maxSize: 1 } })
    await evictor.close()
    evictor.schedule()
    await writeFile(store.layout.quarantined(digestFor('bad')), 'bad')
    await evictor.evict({ dryRun: false, neededBytes: Number.MAX_SAFE_INTEGER })
    expect(store.blobs.usage.bytes).toBe(total)
    expect(await readdir(store.layout.quarantine)).toHaveLength(1)
  })

  test('of many blobs lets other tasks run in between', async () => {
    const store = await openTestStore(await temporaryFolder())
    await store.blobs.ready
    const sizes = store.blobs.sizes as Map<Digest, number>
    for (let repository = 0; repository < 100; repository++) {
      const app = createTestRepository({ name: `app${repository}` }, store.metadata)
      for (let image = 0; image < 100; image++) {
        const names = Array.from({ length: 10 }, (_, layer) => `${repository}/${image}/${layer}`)
        addManifest(app, `${repository}/${image}`, { tags: [`v${image}`], blobs: names, usedAt: image })
        for (const name of names) sizes.set(digestFor(name), 1)
      }
    }
    const evictor = createTestEvictor(store, { limits: { ...noLimits, maxSize: 50_000 } })
    const delay = monitorEventLoopDelay({ resolution: 1 })
    await setTimeout(5)
    delay.enable()
    const removal = await evictor.evict({ dryRun: true })
    delay.disable()
    expect(removal.blobs).toBe(50_000)
    // Does not depend on the machine's speed: without pauses the callback would run once, at the end.
    expect(delay.count).toBeGreaterThan(3)
  })
})

describe('a removal by name', () => {
  const cases: [string, string[], string[]][] = [
    ['an image', ['docker.io/library/app:old'], ['old', 'old blob']],
    ['an image by digest', [`docker.io/library/app@${digestFor('old')}`], ['old', 'old blob']],
    ['a digest in any repository', [digestFor('old')], ['old', 'old blob']],
    ['a single blob', [digestFor('base')], ['base']],
    [
      'a repository',
      ['docker.io/library/app'],
      ['base', 'old', 'old blob', 'middle', 'middle blob', 'new', 'new blob'],
    ],
    [
      'several images',
      ['docker.io/library/app:old', 'docker.io/library/app:middle'],
      ['old', 'old blob', 'middle', 'middle blob'],
    ],
  ]
  test.each(cases)('removes %s, and nothing that others need', async (_, names, removed) => {
    const { store } = await threeImages()
    const evictor = createTestEvictor(store)
    const preview = await evictor.remove(names, true)
    expect(store.blobs.usage.bytes).toBe(total)
    const removal = await evictor.remove(names, false)
    expect(removal).toEqual(preview)
    expect(removal).toMatchObject({ blobs: removed.length, bytes: removed.join('').length, unknown: [] })
    for (const name of removed) expect(await store.blobs.stat(computeDigest(bytesOf(name)))).toBeUndefined()
    expect(store.blobs.usage.bytes).toBe(total - removed.join('').length)
  })

  test('removes one of two tags, and keeps the image for the other', async () => {
    const { store, repository } = await threeImages()
    repository.apply(setTag('also', digestFor('old')))
    const evictor = createTestEvictor(store)
    expect(await evictor.remove(['docker.io/library/app:old'], false)).toEqual({
      images: ['docker.io/library/app:old'],
      blobs: 0,
      bytes: 0,
      unknown: [],
    })
    expect(repository.current.tags.has('also')).toBe(true)
    expect((await evictor.remove(['docker.io/library/app:also'], false)).blobs).toBe(2)
  })

  test('returns the names that match nothing', async () => {
    const { store } = await threeImages()
    const names = ['docker.io/library/app:none', 'app:old', 'docker.io/library', digestFor('none'), '', '__proto__']
    const removal = await createTestEvictor(store).remove([...names, 'docker.io/library/app:old'], true)
    expect(removal.unknown).toEqual(names)
    expect(removal.images).toEqual(['docker.io/library/app:old'])
  })

  test('removes the record of an image in use, and keeps its blobs while they are in use', async () => {
    const { store, repository } = await threeImages()
    const evictor = createTestEvictor(store, { isInUse: (digest) => digest === digestFor('old blob') })
    expect((await evictor.remove(['docker.io/library/app:old'], false)).blobs).toBe(1)
    expect(repository.current.tags.has('old')).toBe(false)
    expect(await openText(store, digestFor('old blob'))).toBe('old blob')
  })
})
