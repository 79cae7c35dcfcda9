import { setTimeout as sleep } from 'node:timers/promises'
import { expect, onTestFinished, test } from 'vitest'
import { systemClock, type Clock } from '../../../src/lib/time.ts'
import { createDeferred } from '../../../src/lib/async.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { computeDigest, type Digest } from '../../../src/oci/reference.ts'
import { anonymousIdentity } from '../../../src/oci/registry.ts'
import type { Download } from '../../../src/cache/download/download.ts'
import type { RequestContext } from '../../../src/cache/grants.ts'
import { Prefetcher } from '../../../src/cache/prefetch.ts'
import { createTestRepository, setManifest } from '../../support/metadata.ts'

const digests = Array.from({ length: 6 }, (_, at) => computeDigest(Buffer.from(`layer ${at}`)))
const manifest = computeDigest(Buffer.from('manifest'))

/** Creates the context of a client at a repository with one image of six layers. */
function place(): RequestContext {
  const mediaType = 'application/vnd.oci.image.layer.v1.tar+gzip'
  const links = digests.map((digest) => ({ kind: 'blob' as const, mediaType, digest, size: 1 }))
  const repository = createTestRepository({ host: 'a', name: 'b' })
  repository.apply(setManifest(manifest, { links }))
  const caller = { access: 'anonymous' as const, client: 'c', noCache: false, head: false, part: false }
  // Omits the upstream, because prefetching does not use it.
  const upstream = undefined as unknown as RequestContext['upstream']
  return {
    host: 'a',
    name: 'b',
    upstream,
    caller,
    identity: async () => anonymousIdentity,
    findLastIdentity: () => anonymousIdentity,
    access: async () => 'anonymous' as const,
    throwIfRefused: async () => {},
    record: () => repository.current,
    commit: (operations) => repository.apply(...operations),
  }
}

function start(layers: number) {
  let now = 0
  const clock: Clock = { ...systemClock, monotonic: () => now }
  const fetched: {
    digest: Digest
    signal: AbortSignal
    end: (stored: boolean) => void
    claim: () => void
    follow: () => void
  }[] = []
  const prefetcher = new Prefetcher({
    layers,
    clock,
    logger: silentLogger,
    async fetch(_, { digest }, signal) {
      const settled = createDeferred<boolean>()
      const state = { isFollowed: false, isClaimed: false, settled: settled.promise }
      signal.addEventListener('abort', () => settled.resolve(false))
      const claim = () => void Object.assign(state, { isClaimed: true })
      const follow = () => void Object.assign(state, { isFollowed: true, isClaimed: true })
      fetched.push({ digest, signal, end: settled.resolve, claim, follow })
      return state as unknown as Download
    },
  })
  onTestFinished(() => prefetcher.close())
  const turn = () => sleep(5)
  return {
    prefetcher,
    fetched,
    turn,
    pass: (ms: number) => (now += ms),
    order: () => fetched.map(({ digest }) => digest),
  }
}

test('the layers behind the requested one are prefetched in order, up to the limit at a time', async () => {
  const { prefetcher, fetched, turn, order } = start(2)
  prefetcher.recordManifest(place(), manifest)
  prefetcher.recordBlob(place(), digests[1]!)
  prefetcher.recordBlob(place(), digests[2]!)
  await turn()
  expect(order()).toEqual(digests.slice(2, 4))
  fetched[0]!.end(true)
  await turn()
  expect(order()).toEqual(digests.slice(2, 5))
})

test('prefetching stops after a layer that could not be stored', async () => {
  const { prefetcher, fetched, turn, order } = start(2)
  prefetcher.recordManifest(place(), manifest)
  prefetcher.recordBlob(place(), digests[0]!)
  await turn()
  fetched[0]!.end(false)
  fetched[1]!.end(true)
  await turn()
  expect(order()).toEqual(digests.slice(1, 3))
})

test('prefetched downloads without a client are aborted when the pull does not continue', async () => {
  const { prefetcher, fetched, turn, pass, order } = start(3)
  prefetcher.recordManifest(place(), manifest)
  prefetcher.recordBlob(place(), digests[0]!)
  await turn()
  fetched[0]!.follow()
  pass(60_000)
  await sleep(1200)
  expect(fetched.map(({ signal }) => signal.aborted)).toEqual([false, false, false])
  fetched[0]!.end(true)
  await turn()
  await expect.poll(() => fetched[1]!.signal.aborted).toBe(true)
  expect(fetched[0]!.signal.aborted).toBe(false)
  expect(order()).toEqual(digests.slice(1, 5))
})

test('a prefetched download that a client waits for is not aborted before it has started', async () => {
  const { prefetcher, fetched, turn, pass } = start(2)
  prefetcher.recordManifest(place(), manifest)
  prefetcher.recordBlob(place(), digests[0]!)
  await turn()
  fetched[0]!.claim()
  pass(60_000)
  await expect.poll(() => fetched[1]!.signal.aborted).toBe(true)
  expect(fetched[0]!.signal.aborted).toBe(false)
})

test('a pull continues while its client reads the layer that it has requested', async () => {
  const { prefetcher, fetched, turn, pass } = start(3)
  const own = { isFollowed: true }
  prefetcher.recordManifest(place(), manifest)
  prefetcher.recordBlob(place(), digests[0]!, own)
  await turn()
  pass(60_000)
  await sleep(1200)
  expect(fetched.map(({ signal }) => signal.aborted)).toEqual([false, false, false])
  own.isFollowed = false
  await expect.poll(() => fetched[1]!.signal.aborted).toBe(true)
})
