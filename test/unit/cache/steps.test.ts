import { PastChanges } from '../../../src/metadata/past-changes.ts'
import { expect, test } from 'vitest'
import { findGrant, findManifestGrant } from '../../../src/cache/grants.ts'
import { PullThrough } from '../../../src/cache/pull-through.ts'
import { PullTracker } from '../../../src/cache/pulls.ts'
import { Slots } from '../../../src/lib/async.ts'
import { createBufferRelease } from '../../../src/lib/body-memory.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { systemClock } from '../../../src/lib/time.ts'
import { DigestTable } from '../../../src/metadata/digest-table.ts'
import { mediaType } from '../../../src/oci/content.ts'
import type { Digest } from '../../../src/oci/reference.ts'
import { anonymousIdentity, type Identity, parseIdentity } from '../../../src/oci/registry.ts'
import { Stats } from '../../../src/stats/stats.ts'
import { createHashPool } from '../../../src/store/hashing.ts'
import type { Upstream } from '../../../src/upstream/upstream.ts'
import {
  createMemoryMetadata,
  createTestRepository,
  digestFor,
  setManifest,
  setTag,
  type TestRepository,
} from '../../support/metadata.ts'
import { openTestStore, putText, temporaryFolder } from '../../support/store/store.ts'

const me = parseIdentity('me')
const identities = [me, ...['one', 'two', 'three'].map(parseIdentity)]
const layerText = 'the shared layer'
const layer = digestFor(layerText)
const platformText = JSON.stringify({
  schemaVersion: 2,
  mediaType: mediaType.ociManifest,
  layers: [{ mediaType: 'l/t', digest: layer, size: layerText.length }],
})
const platform = digestFor(platformText)
const layerLink = { kind: 'blob', mediaType: 'l/t', digest: layer, size: layerText.length } as const
const platformLink = { kind: 'manifest', mediaType: mediaType.ociManifest, digest: platform, size: 1 } as const

/** Counts lookups in maps and sets, and digests that are read from a table, while the action runs. */
async function countSteps(action: () => unknown): Promise<number> {
  let steps = 0
  const counted: [object, string][] = [
    [Map.prototype, 'get'],
    [Map.prototype, 'has'],
    [Set.prototype, 'has'],
    [DigestTable.prototype, 'digest'],
  ]
  const restore = counted.map(([prototype, name]) => {
    const methods = prototype as Record<string, (...args: unknown[]) => unknown>
    const original = methods[name]!
    methods[name] = function (this: unknown, ...args) {
      steps += 1
      return original.apply(this, args)
    }
    return () => void (methods[name] = original)
  })
  try {
    await action()
  } finally {
    for (const undo of restore) undo()
  }
  return steps
}

/** Repeats the action, because timers run between its steps, and the first run fills caches. */
async function countFewestSteps(action: () => unknown): Promise<number> {
  const counts: number[] = []
  for (let run = 0; run < 5; run++) counts.push(await countSteps(action))
  return Math.min(...counts)
}

/** Records manifests of several identities that all name the shared layer, and as many lists that name the platform's manifest. */
function fill(repository: TestRepository, count: number): void {
  for (let at = 0; at < count; at++) {
    const identity = identities[at % identities.length] as Identity
    repository.apply(
      setManifest(digestFor(`manifest ${at}`), { identity, links: [layerLink] }),
      setManifest(digestFor(`index ${at}`), { identity, links: [platformLink] }),
      setTag(`tag-${at}`, digestFor(`index ${at}`), { identity }),
    )
  }
}

const counts = [1000, 20_000]

/** Counts the steps of an action in repositories of different sizes. */
async function compare(create: (count: number) => () => unknown): Promise<number[]> {
  const steps: number[] = []
  for (const count of counts) steps.push(await countFewestSteps(create(count)))
  return steps
}

test.each<[string, Digest, Identity, boolean]>([
  ['a layer that all manifests name', layer, me, true],
  ['the same layer for nobody', layer, anonymousIdentity, false],
  ['the same layer for an unknown identity', layer, parseIdentity('you'), false],
  ['a manifest that all lists name', platform, me, true],
  ['content that no manifest names', digestFor('none'), me, false],
])(
  'the steps to find a grant for %s do not depend on the number of manifests',
  async (_, digest, identity, isFound) => {
    const [few, many] = await compare((count) => {
      const repository = createTestRepository()
      fill(repository, count)
      const { current } = repository
      expect(findGrant(current, digest, identity) !== undefined).toBe(isFound)
      expect(findManifestGrant(current, digest, identity) !== undefined).toBe(isFound && digest === platform)
      return () => [findGrant(current, digest, identity), findManifestGrant(current, digest, identity)]
    })
    expect(many).toBe(few)
    expect(many).toBeLessThan(50)
  },
)

test('a grant is gone with the last manifest that names the content', () => {
  const repository = createTestRepository()
  fill(repository, 8)
  repository.apply({ op: 'drop-manifest', digest: digestFor('manifest 0') })
  expect(findGrant(repository.current, layer, me)).toMatchObject({ identity: me, size: layerText.length })
  repository.apply({ op: 'drop-manifest', digest: digestFor('manifest 4') })
  expect(findGrant(repository.current, layer, me)).toBeUndefined()
  expect(findGrant(repository.current, layer, parseIdentity('one'))).toBeDefined()
})

test.each(['tag', 'digest'] as const)(
  'the steps to count a pull by %s do not depend on the number of manifests',
  async (kind) => {
    const [few, many] = await compare((count) => {
      const metadata = createMemoryMetadata()
      const repository = createTestRepository({}, metadata)
      fill(repository, count)
      repository.apply(setManifest(platform), setTag('v1', platform))
      let client = 0
      const tracker = new PullTracker(metadata, systemClock, () => 1)
      const reference = kind === 'tag' ? ({ kind, tag: 'v1' } as const) : ({ kind, digest: platform } as const)
      return () => tracker.record(`client ${client++}`, repository.current, reference, platform, false)
    })
    expect(many).toBe(few)
    expect(many).toBeLessThan(1000)
  },
)

/** Sets up a cache of an upstream that refuses every request, with the shared layer and one image of it on the disk. */
async function openCache(count: number) {
  const store = await openTestStore(await temporaryFolder())
  for (const text of [layerText, platformText]) await putText(store, text)
  const repository = createTestRepository({ host: 'r.example', name: 'app' }, store.metadata)
  fill(repository, count)
  const links = [layerLink]
  const image = setManifest(platform, { mediaType: mediaType.ociManifest, identity: me, links })
  repository.apply(image, setTag('v1', platform, { identity: me }))
  const upstream = { host: 'r.example', identity: async () => me, isProbe: false } as unknown as Upstream
  const stats = new Stats(0)
  const cache = new PullThrough({
    ...store,
    resolveUpstream: ({ name }) => ({ upstream, name }),
    policy: {
      freshness: { default: 1, byHost: new Map() },
      stale: 'never',
      offline: true,
      revalidateTimeoutMs: 1000,
    },
    prefetchLayers: 3,
    ranges: { perBlob: 1, bytes: 1, minSize: 1 },
    hashes: createHashPool(1),
    release: createBufferRelease(),
    downloadSlots: new Slots(1),
    maxUnsizedBytes: 1,
    stats,
    pastChanges: new PastChanges(() => 0),
    runningTime: () => 1,
    makeRoom: async () => {},
    onStored: () => {},
    clock: systemClock,
    logger: silentLogger,
  })
  return { cache, repository, stats }
}

test('the steps of a tag hit and a blob hit do not depend on the number of manifests', async () => {
  const wanted = { registry: 'r.example', name: 'app', byNamespace: false }
  const steps: number[][] = []
  for (const count of counts) {
    const { cache, repository, stats } = await openCache(count)
    let client = 0
    const caller = () => {
      const parts = { client: `client ${client++}`, noCache: false, head: false, part: false }
      return { access: 'credentialed' as const, ...parts }
    }
    const outcomes = new Set<string>()
    const getTag = async () => {
      const answer = await cache.manifest(wanted, { kind: 'tag', tag: 'v1' }, caller())
      outcomes.add(`${answer.digest} ${answer.provenance.outcome}`)
    }
    const getBlob = async () => {
      const answer = await cache.blob(wanted, layer, caller())
      outcomes.add(`${answer.digest} ${answer.provenance.outcome}`)
    }
    steps.push([await countFewestSteps(getTag), await countFewestSteps(getBlob)])
    expect([...outcomes]).toEqual([`${platform} hit`, `${layer} hit`])
    expect(stats.totals.pulls).toBe(5)
    expect(repository.current.tags.get('v1')).toMatchObject({ pulls: 5 })
    await cache.close()
  }
  expect(steps[1]).toEqual(steps[0])
})
