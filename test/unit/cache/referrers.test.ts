import { expect, test } from 'vitest'
import { systemClock } from '../../../src/lib/time.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { computeDigest } from '../../../src/oci/reference.ts'
import { mediaType } from '../../../src/oci/content.ts'
import { Identities, createRequestContext } from '../../../src/cache/grants.ts'
import { ReferrersCache } from '../../../src/cache/referrers.ts'
import type { MetadataStore } from '../../../src/metadata/metadata-store.ts'
import type { Store } from '../../../src/store/open-store.ts'
import { Evictor } from '../../../src/cache/evictor.ts'
import { UpstreamError, type Upstream } from '../../../src/upstream/upstream.ts'
import { addManifest, createTestRepository } from '../../support/metadata.ts'
import { withStore } from '../../support/temporary-store.ts'

const caller = { access: 'anonymous', client: 'a test', noCache: false, head: false, part: false } as const
const subjectOf = (number: number) => computeDigest(Buffer.from(`subject ${number}`))
const lists = 8

/** Creates a list of 150 kB, different for each number. */
function listOf(number: number): Uint8Array<ArrayBuffer> {
  const entry = {
    mediaType: mediaType.ociManifest,
    size: 1,
    artifactType: 'a/b',
    annotations: { filler: 'x'.repeat(75_000) },
  }
  const manifests = ['one', 'two'].map((text) => ({
    ...entry,
    digest: computeDigest(Buffer.from(`${text} ${number}`)),
  }))
  return new Uint8Array(Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: mediaType.ociIndex, manifests })))
}

/** Sets up a cache that has all lists, and whose upstream is down. Counts the reads from disk. */
async function setUp({ blobs, metadata }: Store<MetadataStore>, { patience = 10_000, hasApi = true } = {}) {
  const state: { isDown: boolean; held?: Promise<void> } = { isDown: false }
  const numbers = Array.from({ length: lists }, (_, number) => number)
  const upstream = {
    host: 'registry.example',
    identity: async () => 'anonymous',
    async referrers(_name: string, subject: string) {
      await state.held
      if (state.isDown) throw new UpstreamError('unavailable', 503, 'down')
      if (!hasApi) return undefined
      const number = numbers.find((one) => subjectOf(one) === subject)!
      return { bytes: listOf(number), next: undefined, filtersApplied: undefined, identity: 'anonymous' }
    },
  } as unknown as Upstream
  const reads = { all: 0, now: 0, most: 0 }
  const counted = Object.assign(Object.create(blobs) as typeof blobs, {
    put: blobs.put.bind(blobs),
    stat: blobs.stat.bind(blobs),
    async read(...args: Parameters<typeof blobs.read>) {
      reads.all += 1
      reads.most = Math.max(reads.most, ++reads.now)
      try {
        return await blobs.read(...args)
      } finally {
        reads.now -= 1
      }
    },
  })
  const cache = new ReferrersCache({
    blobs: counted,
    makeRoom: async () => {},
    onStored: () => {},
    runningTime: () => 0,
    logger: silentLogger,
    clock: systemClock,
    policy: { stale: 'on-error', offline: false, revalidateTimeoutMs: patience },
    getByTag: async () => {
      throw new UpstreamError('absent', 404, 'none')
    },
    getCachedByTag: async () => undefined,
  })
  const identities = new Identities()
  const ask = (number: number, query = '') =>
    cache.list(createRequestContext(metadata, upstream, 'app', caller, identities), subjectOf(number), query)
  // Records a manifest, because without the API an empty list is stored only if anything is recorded of the repository.
  addManifest(createTestRepository({ host: 'registry.example', name: 'app' }, metadata), 'known', {})
  for (const number of numbers) await ask(number)
  state.isDown = true
  return { state, reads, ask, numbers }
}

test.each([
  ['', 2],
  ['artifactType=a%2Fb', 2],
  ['artifactType=a%2Fc', 0],
])('concurrent requests of a stored list of referrers (?%s) share one read', async (query, count) => {
  await withStore(async (store) => {
    const { reads, ask } = await setUp(store)
    const answers = await Promise.all(Array.from({ length: 40 }, () => ask(3, query)))
    for (const { bytes, provenance } of answers) {
      expect(provenance.outcome).toBe('stale')
      expect((JSON.parse(Buffer.from(bytes).toString()) as { manifests: unknown[] }).manifests).toHaveLength(count)
    }
    expect(reads.all).toBe(1)
  })
})

test.each(['', 'artifactType=a%2Fb'])('large stored lists of referrers (?%s) are read one at a time', async (query) => {
  await withStore(async (store) => {
    const { reads, ask, numbers } = await setUp(store)
    const answers = await Promise.all(numbers.map((number) => ask(number, query)))
    for (const number of numbers)
      expect(Buffer.from(answers[number]!.bytes).toString()).toContain(computeDigest(Buffer.from(`two ${number}`)))
    expect([reads.all, reads.most]).toEqual([lists, 1])
  })
})

test.each([
  ['with the API', true],
  ['without it', false],
])(
  'a list of referrers that is removed during a request to its upstream (%s) is not stored again',
  async (_, hasApi) => {
    await withStore(async (store) => {
      const { state, ask } = await setUp(store, { patience: 0, hasApi })
      const kept = () =>
        [...store.metadata.get('registry.example', 'app')!.referrers.values()].map(({ subject }) => subject)
      expect(kept()).toContain(subjectOf(3))
      let letGo = () => {}
      state.held = new Promise((resolve) => (letGo = resolve))
      state.isDown = false
      expect((await ask(3)).provenance.outcome).toBe('stale')

      const limits = { maxSize: 0, maxAge: 0, minFree: 0 }
      const evictor = new Evictor({ store, limits, isInUse: () => false, logger: silentLogger, clock: systemClock })
      await evictor.remove([subjectOf(3)], false)
      await evictor.close()
      expect(kept()).not.toContain(subjectOf(3))
      const waiting = ask(3)
      letGo()
      expect((await waiting).provenance.outcome).toBe('passed')
      expect(kept()).toHaveLength(lists - 1)
      expect(kept()).not.toContain(subjectOf(3))

      await ask(3)
      expect(kept()).toContain(subjectOf(3))
    })
  },
)
