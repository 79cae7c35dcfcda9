import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { systemClock } from '../../../src/lib/time.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { computeDigest, type Digest } from '../../../src/oci/reference.ts'
import { anonymousIdentity } from '../../../src/oci/registry.ts'
import { LocalRegistry } from '../../../src/registry/local-registry.ts'
import { createRegistryMaintenance, defaultGraceMs } from '../../../src/registry/maintenance.ts'
import { openPushedStore } from '../../../src/registry/repositories.ts'
import { UploadSessions } from '../../../src/registry/uploads.ts'

const repository = (name: string) => ({ registry: undefined, name, byNamespace: false })
const app = repository('app')
const caller = { access: 'anonymous', client: 'a test', noCache: false, head: true, part: false } as const
const mediaType = 'application/vnd.oci.image.index.v1+json'
const tagged = (tag: string) => ({ kind: 'tag', tag }) as const
const byDigest = (digest: Digest) => ({ kind: 'digest', digest }) as const
const all = { olderThan: 0, keep: 0, repository: undefined, dryRun: false }

/** Creates an empty index, different for each seed. */
function makeManifest(seed: number) {
  const bytes = Buffer.from(
    JSON.stringify({ schemaVersion: 2, mediaType, manifests: [], annotations: { a: `${seed}` } }),
  )
  return { bytes, digest: computeDigest(bytes) }
}

async function* only(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes
}

async function setUp() {
  // Advances the wall clock with each read, so that earlier pushes are older.
  const time = { now: 0, wall: 1_000_000 }
  const clock = { ...systemClock, monotonic: () => time.now, wall: () => (time.wall += 1) }
  const root = await mkdtemp(join(tmpdir(), 'mirror-registry-'))
  onTestFinished(() => rm(root, { recursive: true, force: true }))
  const store = await openPushedStore({ root, minFree: 0, logger: silentLogger, clock })
  onTestFinished(() => store.close())
  const sessions = new UploadSessions({ blobs: store.blobs, clock, maxSessions: 10, idleTimeoutMs: 3_600_000 })
  onTestFinished(() => sessions.close())
  const maintenance = createRegistryMaintenance({ store, clock, logger: silentLogger })
  onTestFinished(() => maintenance.close())
  const registry = new LocalRegistry({ store, sessions, makeRoom: async () => {}, clock })
  const put = (name: string, tag: string, bytes: Uint8Array) =>
    registry.putManifest(repository(name), tagged(tag), { bytes, mediaType, tags: [] })
  return { time, store, maintenance, registry, put }
}

describe('a push during a removal', () => {
  const [old, young] = [makeManifest(1), makeManifest(2)]

  test.each([
    ['the same image under another tag', 'v2', old],
    ['the same image under the same tag', 'v1', old],
    ['another image under the same tag', 'v1', young],
  ])('of %s survives a prune of its tag', async (_what, tag, pushed) => {
    const { registry, maintenance, put, store } = await setUp()
    await put('app', 'v1', old.bytes)
    // Stores the bytes before, so that only the commit takes time.
    await store.blobs.put(pushed.digest, pushed.bytes)
    const release = store.repositories.claim([pushed.digest])
    const entry = { identity: anonymousIdentity, updatedAt: 2_000_000, pulls: 0, lastPulled: 0 }
    const manifest = { mediaType, size: pushed.bytes.length, usedAt: 0, ...entry }
    const pushing = store.repositories.commit('app', [
      { op: 'manifest', digest: pushed.digest, ...manifest },
      { op: 'tag', tag, digest: pushed.digest, ...entry },
    ])
    const pruning = maintenance.prune(all)
    await pushing
    await pruning
    release()
    expect(await registry.manifest(app, tagged(tag), caller)).toMatchObject({ digest: pushed.digest })
  })

  test('survives the prune of several repositories, when its own is not the first', async () => {
    const { time, registry, maintenance, put } = await setUp()
    const names = Array.from({ length: 20 }, (_, at) => `app${at}`)
    for (const name of names) await put(name, 'latest', old.bytes)
    time.wall += 10_000
    const pruning = maintenance.prune({ ...all, olderThan: 5000 })
    await put('app19', 'latest', young.bytes)
    await pruning
    expect(await registry.manifest(repository('app19'), tagged('latest'), caller)).toMatchObject({
      digest: young.digest,
    })
  })

  test('is complete or absent after a concurrent delete of the image by digest', async () => {
    const { store, registry, put } = await setUp()
    await put('app', 'v1', old.bytes)
    await put('app', 'other', young.bytes)
    const commit = store.repositories.commit.bind(store.repositories)
    let deleting: Promise<void> | undefined
    store.repositories.commit = (name, changes) => {
      const committed = commit(name, changes)
      deleting ??= registry.deleteManifest(app, byDigest(old.digest))
      return committed
    }
    await put('app', 'v2', old.bytes)
    await deleting
    const { bytes } = await registry.tags(app, { n: undefined, last: undefined, query: '' })
    const { tags } = JSON.parse(Buffer.from(bytes).toString()) as { tags: string[] }
    for (const tag of tags) expect(await registry.manifest(app, tagged(tag), caller)).toBeDefined()
  })
})

describe('garbage collection keeps content that a client has just requested', () => {
  const collect = { grace: defaultGraceMs, untagged: true, dryRun: false }
  const old = 25 * 3_600_000

  test('for a blob, even while the request is being recorded', async () => {
    const { time, registry, maintenance } = await setUp()
    const bytes = Buffer.from('hello')
    const digest = computeDigest(bytes)
    await registry.putBlob(app, digest, { start: undefined, bytes: only(bytes) })
    time.now += old
    const asking = registry.blob(app, digest, caller)
    await maintenance.gc(collect)
    await asking
    expect(await registry.blob(app, digest, caller)).toMatchObject({ digest })
  })

  test('for a manifest without a tag', async () => {
    const { time, registry, maintenance, put } = await setUp()
    const [child, other] = [makeManifest(1), makeManifest(2)]
    for (const one of [child, other])
      await registry.putManifest(app, byDigest(one.digest), { bytes: one.bytes, mediaType, tags: [] })
    await put('app', 'v1', makeManifest(3).bytes)
    time.now += old
    await registry.manifest(app, byDigest(child.digest), caller)
    expect((await maintenance.gc(collect)).images).toEqual([`app@${other.digest}`])
  })
})
