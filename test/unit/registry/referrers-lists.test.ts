import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { systemClock } from '../../../src/lib/time.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { computeDigest, type Digest } from '../../../src/oci/reference.ts'
import { mediaType } from '../../../src/oci/content.ts'
import { toReferrersTag } from '../../../src/oci/lists.ts'
import { LocalRegistry } from '../../../src/registry/local-registry.ts'
import { changeReferrersList } from '../../../src/registry/referrers.ts'
import { openPushedStore } from '../../../src/registry/repositories.ts'
import { UploadSessions } from '../../../src/registry/uploads.ts'

const app = { registry: undefined, name: 'app', byNamespace: false }
const page = { n: undefined, last: undefined, query: '' }
const caller = { access: 'anonymous', client: 'a test', noCache: false, head: false, part: false } as const

async function setUp() {
  const root = await mkdtemp(join(tmpdir(), 'mirror-registry-'))
  onTestFinished(() => rm(root, { recursive: true, force: true }))
  const store = await openPushedStore({ root, minFree: 0, logger: silentLogger, clock: systemClock })
  onTestFinished(() => store.close())
  const sessions = new UploadSessions({
    blobs: store.blobs,
    clock: systemClock,
    maxSessions: 10,
    idleTimeoutMs: 3_600_000,
  })
  onTestFinished(() => sessions.close())
  const registry = new LocalRegistry({ store, sessions, makeRoom: async () => {}, clock: systemClock })
  return { store, registry }
}

const subjectOf = (number: number) => computeDigest(Buffer.from(`subject ${number}`))

/** Creates a referrer of the subject with this number. */
function referrerOf(number: number, annotations?: Record<string, string>) {
  const subject = { mediaType: mediaType.ociManifest, digest: subjectOf(number), size: 9 }
  const fields = { schemaVersion: 2, mediaType: mediaType.ociIndex, manifests: [], subject, annotations }
  const bytes = Buffer.from(JSON.stringify(fields))
  return { bytes, digest: computeDigest(bytes) }
}

test('lists of referrers under tags are updated one at a time, even for different subjects', async () => {
  const { store, registry } = await setUp()
  const numbers = Array.from({ length: 12 }, (_, number) => number)
  const put = (reference: Parameters<LocalRegistry['putManifest']>[1], bytes: Uint8Array) =>
    registry.putManifest(app, reference, { bytes, mediaType: mediaType.ociIndex, tags: [] })
  const lists = new Set<Digest>()
  for (const number of numbers) {
    const annotations = { filler: `${number}`.repeat(20_000) }
    const list = { schemaVersion: 2, mediaType: mediaType.ociIndex, manifests: [], annotations }
    const pushed = await put({ kind: 'tag', tag: toReferrersTag(subjectOf(number)) }, Buffer.from(JSON.stringify(list)))
    lists.add(pushed.digest)
  }
  let [now, most] = [0, 0]
  const { blobs } = store
  const [read, putBlob] = [blobs.read.bind(blobs), blobs.put.bind(blobs)]
  blobs.read = (digest, limit) => {
    if (lists.has(digest)) most = Math.max(most, ++now)
    return read(digest, limit)
  }
  blobs.put = async (digest, bytes) => {
    await putBlob(digest, bytes)
    if (bytes.length > 20_000) {
      now -= 1
      lists.add(digest)
    }
  }
  const entries = async (number: number) => {
    const found = await registry.manifest(app, { kind: 'tag', tag: toReferrersTag(subjectOf(number)) }, caller)
    return (JSON.parse(String(found.body!.body)) as { manifests: { digest: Digest }[] }).manifests.map(
      (one) => one.digest,
    )
  }
  await Promise.all(
    numbers.map((number) => put({ kind: 'digest', digest: referrerOf(number).digest }, referrerOf(number).bytes)),
  )
  expect([now, most]).toEqual([0, 1])
  for (const number of numbers) expect(await entries(number)).toEqual([referrerOf(number).digest])
  ;[now, most] = [0, 0]
  for (const { digest } of store.repositories.get('app')!.tags.values()) lists.add(digest)
  await Promise.all(
    numbers.map((number) => registry.deleteManifest(app, { kind: 'digest', digest: referrerOf(number).digest })),
  )
  expect([now, most]).toEqual([0, 1])
  for (const number of numbers) expect(await entries(number)).toEqual([])
})

test.each([
  [
    'with more values than the parser accepts',
    JSON.stringify({ schemaVersion: 2, manifests: [], note: Array(200_001).fill(0) }),
  ],
  ['that is not an image index', '[]'],
])('a pushed list of referrers %s is not changed by a push of a referrer', async (_, text) => {
  const { bytes, digest } = referrerOf(1)
  const entry = { mediaType: mediaType.ociIndex, digest, size: bytes.length }
  expect(await changeReferrersList(Buffer.from(text), digest, entry)).toBeUndefined()
})

/** Is too large for the cache of descriptors. */
const large = referrerOf(1, { filler: 'x'.repeat(70_000) })

/** Sets up a registry with a referrer; its reads from disk wait for a release, and are counted. */
async function setUpHeld(referrer = large) {
  const { store, registry } = await setUp()
  await registry.putManifest(
    app,
    { kind: 'digest', digest: referrer.digest },
    { bytes: referrer.bytes, mediaType: mediaType.ociIndex, tags: [] },
  )
  const { blobs } = store
  const read = blobs.read.bind(blobs)
  const held = { count: 0, letGo: () => {} }
  const gate = new Promise<void>((resolve) => (held.letGo = resolve))
  blobs.read = async (digest, limit) => {
    held.count += 1
    await gate
    return read(digest, limit)
  }
  const ask = (signal?: AbortSignal) =>
    registry.referrers(app, subjectOf(1), undefined, { ...caller, clientAbort: signal && { signal } }, page)
  return { held, ask }
}

test('a client that disconnects while it waits for a list of referrers leaves the queue', async () => {
  const { held, ask } = await setUpHeld()
  const first = ask()
  const clientAbort = new AbortController()
  const leaving = Array.from({ length: 10 }, () => ask(clientAbort.signal))
  const last = ask()
  clientAbort.abort(new Error('the client is gone'))
  for (const one of leaving) await expect(one).rejects.toThrow('the client is gone')
  held.letGo()
  const answers = await Promise.all([first, last])
  for (const { bytes } of answers) expect(Buffer.from(bytes).toString()).toContain(large.digest)
  expect(held.count).toBe(2)
})

test('a list of referrers is refused with Retry-After while 64 requests are waiting', async () => {
  const { held, ask } = await setUpHeld()
  const responses = Array.from({ length: 65 }, () => ask())
  await expect(ask()).rejects.toMatchObject({ name: 'BudgetError', retryAfterSeconds: 2 })
  held.letGo()
  expect(await Promise.all(responses)).toHaveLength(65)
})

test('a referrer is read once for all lists of referrers, and has its annotations in each', async () => {
  const annotations = { note: 'ünï' }
  const { held, ask } = await setUpHeld(referrerOf(1, annotations))
  held.letGo()
  for (let lists = 0; lists < 3; lists++) {
    const { manifests } = JSON.parse(Buffer.from((await ask()).bytes).toString()) as { manifests: object[] }
    expect(manifests).toMatchObject([{ digest: referrerOf(1, annotations).digest, annotations }])
  }
  expect(held.count).toBe(1)
})

test('a list of referrers reads the referrers of its subject only', async () => {
  const { store, registry } = await setUp()
  for (const number of [1, 2, 3]) {
    const { digest, bytes } = referrerOf(number)
    const body = { bytes, mediaType: mediaType.ociIndex, tags: [] }
    await registry.putManifest(app, { kind: 'digest', digest }, body)
  }
  const { blobs } = store
  const read = blobs.read.bind(blobs)
  const seen: Digest[] = []
  blobs.read = (digest, limit) => {
    seen.push(digest)
    return read(digest, limit)
  }
  await registry.referrers(app, subjectOf(2), undefined, caller, page)
  expect(seen).toEqual([referrerOf(2).digest])
})
