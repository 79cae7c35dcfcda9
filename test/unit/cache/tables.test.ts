import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { chooseWiderIdentity, findGrant, revokeGrants } from '../../../src/cache/grants.ts'
import { PullTracker } from '../../../src/cache/pulls.ts'
import { isFresh, mayServeStale } from '../../../src/cache/stale.ts'
import { SingleFlight } from '../../../src/lib/async.ts'
import { systemClock } from '../../../src/lib/time.ts'
import { type ManifestOutline, outlineManifest } from '../../../src/oci/content.ts'
import { type Digest, computeDigest } from '../../../src/oci/reference.ts'
import { paginate, createReferrersIndex, toReferrersTag } from '../../../src/oci/lists.ts'
import { anonymousIdentity, parseIdentity } from '../../../src/oci/registry.ts'
import { Stats } from '../../../src/stats/stats.ts'
import {
  createMemoryMetadata,
  createTestRepository,
  setManifest,
  setTag,
  type TestRepository,
} from '../../support/metadata.ts'

const digests = ['a', 'b', 'c', 'd'].map((text) => computeDigest(Buffer.from(text))) as [Digest, Digest, Digest, Digest]
const bytesOf = (value: unknown) => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value))

describe('the freshness of tags', () => {
  const age = { checkedAt: 100, now: 150, freshFor: 100, noCache: false, offline: false }
  test('a tag is fresh for a while, always when offline, never with no-cache or after a start', () => {
    expect(isFresh(age)).toBe(true)
    expect(isFresh({ ...age, now: 200 })).toBe(false)
    expect(isFresh({ ...age, noCache: true })).toBe(false)
    expect(isFresh({ ...age, noCache: true, offline: true })).toBe(true)
    expect(isFresh({ ...age, checkedAt: undefined })).toBe(false)
    expect(isFresh({ ...age, freshFor: 0, now: 100 })).toBe(false)
  })

  test('a stale tag replaces an outage, and a refusal only with the policy "always"', () => {
    for (const failure of ['limited', 'unavailable', 'invalid'] as const) {
      expect([
        mayServeStale('on-error', failure),
        mayServeStale('always', failure),
        mayServeStale('never', failure),
      ]).toEqual([true, true, false])
    }
    for (const failure of ['absent', 'denied'] as const) {
      expect([
        mayServeStale('on-error', failure),
        mayServeStale('always', failure),
        mayServeStale('never', failure),
      ]).toEqual([false, true, false])
    }
  })
})

describe('the outline of a manifest', () => {
  const descriptor = (digest: Digest) => ({ mediaType: 'x/y', digest, size: 3 })
  test('has the config and layers of an image manifest, and the manifests of an index', async () => {
    const manifest = { schemaVersion: 2, config: descriptor(digests[0]), layers: [descriptor(digests[1])] }
    expect(await outlineManifest(bytesOf(manifest), 'application/vnd.oci.image.manifest.v1+json')).toMatchObject({
      links: [
        { kind: 'blob', digest: digests[0], size: 3 },
        { kind: 'blob', digest: digests[1], size: 3 },
      ],
    })
    const index = { schemaVersion: 2, manifests: [descriptor(digests[2])] }
    expect(await outlineManifest(bytesOf(index), 'application/json; charset=utf-8')).toEqual({
      mediaType: 'application/vnd.oci.image.index.v1+json',
      links: [{ kind: 'manifest', digest: digests[2], size: 3, mediaType: 'x/y' }],
    })
  })

  test('has no foreign layers, because an upstream need not have them', async () => {
    const foreign = [
      'application/vnd.oci.image.layer.nondistributable.v1.tar+gzip',
      'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip',
    ].map((mediaType) => ({ ...descriptor(digests[0]), mediaType }))
    const manifest = { schemaVersion: 2, layers: [...foreign, descriptor(digests[1])] }
    expect(await outlineManifest(bytesOf(manifest), 'application/vnd.oci.image.manifest.v1+json')).toMatchObject({
      links: [{ kind: 'blob', digest: digests[1] }],
    })
  })

  test.each<[object, string]>([
    [{ manifests: null, mediaType: null }, 'application/vnd.oci.image.index.v1+json'],
    [{ manifests: null, layers: null, fsLayers: null }, 'application/vnd.oci.image.index.v1+json'],
    [{ manifests: null, config: descriptor(digests[0]) }, 'application/vnd.oci.image.manifest.v1+json'],
  ])('ignores members that are null: %j', async (members, mediaType) => {
    const bytes = bytesOf({ schemaVersion: 2, ...members })
    expect(await outlineManifest(bytes, 'application/json')).toMatchObject({ mediaType })
  })

  test.each([
    ['{"schemaVersion":3,"mediaType":null}', 'not-a-manifest'],
    ['<html>captive portal</html>', 'not-a-manifest'],
    ['[]', 'not-a-manifest'],
    ['{}', 'not-a-manifest'],
    ['null', 'not-a-manifest'],
    ['{"schemaVersion":1,"fsLayers":[]}', 'schema1'],
    ['['.repeat(100_000), 'not-a-manifest'],
  ])('of the text %.30s is %s', async (text, problem) => {
    expect(await outlineManifest(bytesOf(text), 'application/json')).toBe(problem)
  })

  test('skips entries that are not descriptors, such as __proto__', async () => {
    const text = `{"schemaVersion":2,"__proto__":{"x":1},"config":null,"layers":[1,null,{"digest":"sha256:x","size":1},{"digest":"${digests[0]}","size":-1},{"digest":"${digests[0]}","size":1e400}],"manifests":{}}`
    expect(await outlineManifest(bytesOf(text), '')).toMatchObject({ links: [] })
    expect(({} as { x?: number }).x).toBeUndefined()
  })
})

describe('a page of a list', () => {
  const all = ['a', 'b', 'c']
  test('has n entries behind last, and links to the next page', () => {
    expect(paginate(all, { n: undefined, last: undefined })).toEqual({ entries: all, next: undefined })
    expect(paginate(all, { n: '2', last: undefined })).toEqual({ entries: ['a', 'b'], next: 'n=2&last=b' })
    expect(paginate(all, { n: '2', last: 'b' })).toEqual({ entries: ['c'], next: undefined })
    expect(paginate(all, { n: '0', last: undefined })).toEqual({ entries: [], next: undefined })
    expect(paginate(all, { n: '999999999', last: undefined }).entries).toEqual(all)
  })

  test.each(['-1', 'x', '', '1.5'])('is refused for n=%s', (n) => {
    expect(() => paginate(all, { n, last: undefined })).toThrow('number')
  })

  test('of referrers can come from the referrers tag, and is filtered by artifact type', () => {
    expect(toReferrersTag(digests[0])).toBe(digests[0].replace(':', '-'))
    expect(toReferrersTag(computeDigest(Buffer.from(''), 'sha512'))).toHaveLength('sha512-'.length + 64)
    const index = JSON.parse(
      Buffer.from(createReferrersIndex([{ artifactType: 'a/b' }, {}, null], 'a/b')).toString(),
    ) as {
      manifests: unknown[]
    }
    expect(index.manifests).toEqual([{ artifactType: 'a/b' }])
  })
})

type ManifestOptions = NonNullable<Parameters<typeof setManifest>[1]>

function repositoryOf(manifests: [Digest, ManifestOptions][]): TestRepository {
  const repository = createTestRepository({ host: 'r.example', name: 'app' })
  repository.apply(...manifests.map(([digest, rest]) => setManifest(digest, { mediaType: 'm/t', ...rest })))
  return repository
}

describe('a grant', () => {
  const me = parseIdentity('me')
  const link = (digest: Digest, mediaType = 'l/t') => ({ kind: 'blob' as const, digest, size: 7, mediaType })

  test('follows from a manifest that names the content, for the identity of that manifest', () => {
    const { current: repository } = repositoryOf([[digests[0], { identity: me, links: [link(digests[1])] }]])
    expect(findGrant(repository, digests[1], me)).toMatchObject({ size: 7 })
    expect(findGrant(repository, digests[0], me)).toMatchObject({ mediaType: 'm/t' })
    expect(findGrant(repository, digests[1], anonymousIdentity)).toBeUndefined()
    expect(findGrant(repository, digests[2], me)).toBeUndefined()
    expect(findGrant(undefined, digests[1], me)).toBeUndefined()
  })

  test('does not follow from a manifest that names a foreign layer', async () => {
    const foreign = link(digests[1], 'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip')
    const outline = await outlineManifest(bytesOf({ schemaVersion: 2, layers: [foreign, link(digests[2])] }), '')
    const { current: repository } = repositoryOf([[digests[0], { links: (outline as ManifestOutline).links }]])
    expect(findGrant(repository, digests[1], anonymousIdentity)).toBeUndefined()
    expect(findGrant(repository, digests[2], anonymousIdentity)).toMatchObject({ size: 7 })
  })

  test('stays anonymous when a credential gets the same grant', () => {
    expect(chooseWiderIdentity(anonymousIdentity, me)).toBe('anonymous')
    expect(chooseWiderIdentity(me, anonymousIdentity)).toBe('anonymous')
    expect(chooseWiderIdentity(undefined, me)).toBe('me')
  })

  test('is revoked for one identity only', () => {
    const repository = repositoryOf([
      [digests[0], { identity: me }],
      [digests[1], { identity: anonymousIdentity }],
    ])
    repository.apply(setTag('mine', digests[0], { identity: me }), setTag('public', digests[1]))
    repository.apply({ op: 'blob', digest: digests[2], size: 1, identity: me, usedAt: 0 })
    repository.apply(...revokeGrants(repository.current, me))
    const { tags, manifests, blobs } = repository.current
    expect([...tags.keys(), ...manifests.keys(), ...blobs.keys()]).toEqual(['public', digests[1]])
    expect(revokeGrants(repository.current, anonymousIdentity)).toEqual([])
  })
})

describe('the pull counter', () => {
  function tracked() {
    let now = 0
    const metadata = createMemoryMetadata()
    const repository = createTestRepository({ host: 'r.example', name: 'app' }, metadata)
    const link = { kind: 'manifest' as const, digest: digests[1], size: 1, mediaType: 'm/t' }
    repository.apply(setManifest(digests[0], { links: [link] }), setManifest(digests[1]), setTag('1', digests[0]))
    const { current } = repository
    const clock = { ...systemClock, monotonic: () => now }
    const tracker = new PullTracker(metadata, clock, () => 42)
    const byTag = (head: boolean) => tracker.record('c', current, { kind: 'tag', tag: '1' }, digests[0], head)
    const byDigest = (digest: Digest, client = 'c') =>
      tracker.record(client, current, { kind: 'digest', digest }, digest, false)
    return {
      repository: current,
      countTagPulls: () => current.tags.get('1')!.pulls,
      byTag,
      byDigest,
      wait: (ms: number) => (now += ms),
    }
  }

  test("counts containerd's HEAD, index and manifest as one pull", () => {
    const { countTagPulls, byTag, byDigest, repository } = tracked()
    byTag(true)
    expect(countTagPulls()).toBe(0)
    byDigest(digests[0])
    byDigest(digests[1])
    expect(countTagPulls()).toBe(1)
    expect(repository.manifests.get(digests[0])!.usedAt).toBe(42)
    expect(repository.manifests.get(digests[1])!.pulls).toBe(0)
  })

  test("counts podman's GETs by tag and by digest as one pull, and later ones as a second pull", () => {
    const { countTagPulls, byTag, byDigest, wait } = tracked()
    byTag(false)
    byDigest(digests[1])
    expect(countTagPulls()).toBe(1)
    wait(11_000)
    byTag(false)
    expect(countTagPulls()).toBe(2)
  })

  test('does not count polling with HEAD, and does not protect its image from eviction', () => {
    const { countTagPulls, byTag, repository } = tracked()
    byTag(true)
    byTag(true)
    expect(countTagPulls()).toBe(0)
    expect(repository.manifests.get(digests[0])!.usedAt).toBe(0)
  })

  test('counts a pull by digest and of its platform manifest once, for the digest', () => {
    const { countTagPulls, byDigest, repository } = tracked()
    byDigest(digests[0], 'other')
    byDigest(digests[1], 'other')
    expect(countTagPulls()).toBe(0)
    expect(repository.manifests.get(digests[0])!.pulls).toBe(1)
    expect(repository.manifests.get(digests[1])!.pulls).toBe(0)
  })
})

test('the statistics keep the avoided pulls across restarts, and read a file from before they were counted', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'mirror-stats-'))
  onTestFinished(() => rm(folder, { recursive: true }))
  const path = join(folder, 'stats.json')
  const stats = new Stats(0)
  const provenance = { registry: 'docker.io', cacheStatus: '' }
  for (const outcome of ['hit', 'revalidated', 'stale', 'collapsed', 'miss', 'passed'] as const)
    stats.recordResponse({ provenance: { ...provenance, outcome }, bytes: 1, head: false, isPull: true })
  await stats.save(path)
  const restarted = new Stats(1)
  await restarted.load(path)
  expect(restarted.upstreams.get('docker.io')).toMatchObject({ hits: 3, misses: 2, pullsAvoided: 4 })

  await writeFile(path, JSON.stringify({ since: 5, totals: {}, upstreams: { 'docker.io': { hits: 7 } } }))
  const updated = new Stats(1)
  await updated.load(path)
  expect(updated.upstreams.get('docker.io')).toMatchObject({ hits: 7, pullsAvoided: 0 })
})

test('a single flight is shared while it lasts, and removed before its waiters resume', async () => {
  const flights = new SingleFlight<number>()
  let starts = 0
  const start = () => Promise.reject(new Error(`no ${++starts}`))
  const [first, second] = [flights.run('k', start), flights.run('k', start)]
  expect([first.joined, second.joined]).toEqual([false, true])
  await expect(first.result).rejects.toThrow('no 1')
  await expect(second.result).rejects.toThrow('no 1')
  const again = flights.run('k', start)
  expect(again.joined).toBe(false)
  await expect(again.result).rejects.toThrow('no 2')
})

test('the statistics count outcomes, bytes and errors as documented', () => {
  const stats = new Stats(0)
  const served = (outcome: 'hit' | 'revalidated' | 'stale' | 'miss' | 'collapsed' | 'passed', head = false) =>
    stats.recordResponse({ provenance: { registry: 'r.example', outcome, cacheStatus: '' }, bytes: 10, head })
  for (const outcome of ['hit', 'revalidated', 'stale', 'miss', 'collapsed'] as const) served(outcome)
  served('passed', true)
  expect(stats.totals).toMatchObject({
    requests: 6,
    hits: 3,
    misses: 2,
    collapsed: 1,
    revalidated: 1,
    staleServed: 1,
    bytesSaved: 40,
    bytesServed: 60,
  })
  expect(stats.hitRatio).toBe(0.6)
  expect(stats.upstreams.get('r.example')).toMatchObject({ hits: 3, misses: 2 })
})
