import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { createTemporaryFolder } from '../../../src/lib/fs.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { systemClock } from '../../../src/lib/time.ts'
import type { Operation, Repository } from '../../../src/metadata/metadata.ts'
import type { MetadataStore } from '../../../src/metadata/metadata-store.ts'
import { openMetadata } from '../../../src/metadata/open-metadata.ts'
import { packLinks } from '../../../src/metadata/operations.ts'
import { breakLog } from '../../support/metadata-log.ts'
import { computeDigest, type Digest } from '../../../src/oci/reference.ts'
import { anonymousIdentity, parseIdentity } from '../../../src/oci/registry.ts'

const app = { host: 'docker.io', name: 'library/app' }
const me = parseIdentity('me')

function digestOf(name: string, algorithm: 'sha256' | 'sha512' = 'sha256'): Digest {
  return computeDigest(Buffer.from(name), algorithm)
}

async function makeFolder(): Promise<string> {
  const root = await createTemporaryFolder('mirror-metadata-')
  onTestFinished(() => rm(root, { recursive: true }))
  return root
}

async function openStore(root: string, maxWeight?: number): Promise<MetadataStore> {
  const store = await openMetadata({
    folder: join(root, 'metadata'),
    previousFolder: join(root, 'repositories'),
    isNew: async () => true,
    setAside: () => join(root, `aside-${Math.random()}`),
    logger: silentLogger,
    clock: systemClock,
    ...(maxWeight !== undefined && { maxWeight }),
  })
  onTestFinished(() => store.close())
  return store
}

function manifest(name: string, blobs: string[], rest: object = {}): Operation {
  const links = blobs.map((blob) => ({
    kind: 'blob' as const,
    mediaType: 'l/t',
    size: blob.length,
    digest: digestOf(blob),
  }))
  const times = { updatedAt: 0, pulls: 1, lastPulled: 5, usedAt: 7 }
  return {
    op: 'manifest',
    digest: digestOf(name),
    mediaType: 'm/t',
    size: 3,
    identity: anonymousIdentity,
    ...times,
    links: packLinks(links),
    ...rest,
  }
}

function tag(name: string, of = name, updatedAt = 1): Operation {
  return { op: 'tag', tag: name, digest: digestOf(of), identity: me, updatedAt, pulls: 0, lastPulled: 0 }
}

/** Describes a repository, with the links of its manifests. */
function describeRepository(repository: Repository | undefined) {
  if (!repository) return undefined
  return {
    tags: Object.fromEntries(repository.tags),
    manifests: Object.fromEntries(
      [...repository.manifests].map(([digest, value]) => [digest, { ...value, links: repository.getLinks(digest) }]),
    ),
    blobs: Object.fromEntries(repository.blobs),
    referrers: [...repository.referrers.values()],
  }
}

describe('the metadata store', () => {
  test('has the same state after a restart, for all kinds of entries', async () => {
    const root = await makeFolder()
    const store = await openStore(root)
    const long = digestOf('long', 'sha512')
    const page = {
      subject: digestOf('a'),
      identity: me,
      query: '?é',
      digest: digestOf('list'),
      size: 9,
      next: 'n=1',
      filtersApplied: undefined,
      isWithoutApi: false,
      usedAt: 4,
    }
    await store.commit(app, [manifest('a', ['x', 'y']), tag('1', 'a')], 'soon')
    await store.commit(
      app,
      [
        { ...manifest('b', []), digest: long, subject: digestOf('a'), artifactType: 'a/t' } as Operation,
        { op: 'blob', digest: long, size: 4, identity: me, usedAt: 3 },
        { op: 'referrers', ...page },
      ],
      'durable',
    )
    await store.commit({ host: '', name: 'pushed' }, [tag('gone'), tag('kept')], 'durable')
    await store.commit({ host: '', name: 'pushed' }, [{ op: 'untag', tag: 'gone' }], 'durable')
    store.recordUse(app, { op: 'use-manifest', digest: digestOf('a'), pulls: 8, lastPulled: 9, usedAt: 10 })
    const before = [store.get('docker.io', 'library/app'), store.get('', 'pushed')].map(describeRepository)
    expect(before[0]!.manifests[digestOf('a')]).toMatchObject({ pulls: 8, links: [{ size: 1 }, { size: 1 }] })
    await store.close()
    const again = await openStore(root)
    expect([again.get('docker.io', 'library/app'), again.get('', 'pushed')].map(describeRepository)).toEqual(before)
    expect(again.sequence).toBe(store.sequence)
    expect(again.damage).toEqual([])
  })
})

test('a checkpoint loses nothing that is committed meanwhile', async () => {
  const root = await makeFolder()
  const store = await openStore(root)
  const expected = new Map<string, number>()
  const worker = async (name: string) => {
    for (let round = 0; round < 60; round++) {
      const key = `${name}-${round % 20}`
      if (round % 7 === 3) {
        await store.commit(app, [{ op: 'untag', tag: key }], 'durable')
        expected.delete(key)
      } else {
        await store.commit(app, [tag(key, name, round + 1)], 'durable')
        expected.set(key, round + 1)
      }
      if (round % 5 === 0) store.requestCheckpoint()
    }
  }
  await Promise.all(['a', 'b', 'c', 'd', 'e'].map(worker))
  await store.close()
  const again = await openStore(root)
  const found = new Map(
    [...again.get('docker.io', 'library/app')!.tags].map(([name, { updatedAt }]) => [name, updatedAt]),
  )
  expect(Object.fromEntries(found)).toEqual(Object.fromEntries(expected))
  expect(again.damage).toEqual([])
})

test('the least recently used entries are dropped when all take too much memory, and requests are answered meanwhile', async () => {
  const root = await makeFolder()
  const store = await openStore(root, 400_000)
  for (let at = 0; at < 2000; at++)
    await store.commit(app, [manifest(`m${at}`, [`b${at}`], { usedAt: at }), tag(`t${at}`, `m${at}`)], 'soon')
  await vi.waitFor(() => expect(store.get('docker.io', 'library/app')!.weight).toBeLessThan(400_000))
  const { manifests } = store.get('docker.io', 'library/app')!
  expect(manifests.has(digestOf('m1999'))).toBe(true)
  expect(manifests.has(digestOf('m0'))).toBe(false)
  await store.close()
  const again = await openStore(root)
  expect(again.get('docker.io', 'library/app')!.manifests.size).toBe(manifests.size)
})

test('changes that a disk refuses for long are written when it takes them again, or at the stop', async () => {
  const root = await makeFolder()
  const store = await openStore(root)
  const mend = await breakLog(join(root, 'metadata'))
  for (let round = 0; round < 3; round++) {
    for (let at = 0; at < 30_000; at++) void store.commit(app, [tag(`t${round}-${at}`)], 'soon')
    await store.flush()
  }
  await mend()
  await store.close()
  expect((await openStore(root)).get('docker.io', 'library/app')!.tags.size).toBe(90_000)
})
