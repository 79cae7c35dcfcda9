import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { systemClock } from '../../../src/lib/time.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { mediaType } from '../../../src/oci/content.ts'
import { computeDigest } from '../../../src/oci/reference.ts'
import { anonymousIdentity } from '../../../src/oci/registry.ts'
import { LocalRegistry } from '../../../src/registry/local-registry.ts'
import { openPushedStore } from '../../../src/registry/repositories.ts'
import { UploadSessions } from '../../../src/registry/uploads.ts'
import { breakLog, countSyncs, listLog } from '../../support/metadata-log.ts'

const app = { registry: undefined, name: 'app', byNamespace: false }
const caller = { access: 'anonymous', client: 'a test', noCache: false, head: true, part: false } as const
const bytes = Buffer.from('hello')
const digest = computeDigest(bytes)
const hour = 3_600_000

async function* once(): AsyncGenerator<Uint8Array> {
  yield bytes
}

/** Sets up a registry with a blob and a clock. */
async function setUp() {
  const time = { now: 0 }
  const clock = { ...systemClock, monotonic: () => time.now }
  const root = await mkdtemp(join(tmpdir(), 'mirror-registry-'))
  onTestFinished(() => rm(root, { recursive: true, force: true }))
  const store = await openPushedStore({ root, minFree: 0, logger: silentLogger, clock })
  onTestFinished(() => store.close())
  const sessions = new UploadSessions({ blobs: store.blobs, clock, maxSessions: 10, idleTimeoutMs: hour })
  onTestFinished(() => sessions.close())
  const registry = new LocalRegistry({ store, sessions, makeRoom: async () => {}, clock })
  await registry.putBlob(app, digest, { start: undefined, bytes: once() })
  const usedAt = () => store.repositories.get('app')!.blobs.get(digest)!.usedAt
  const folder = store.layout.metadata
  const logText = async () =>
    (await Promise.all((await listLog(folder)).map((path) => readFile(path, 'utf8')))).join('')
  return { root, time, store, registry, usedAt, folder, logText }
}

test('a request for a blob protects it from garbage collection, and is recorded once an hour', async () => {
  const { root, time, store, registry, usedAt, logText } = await setUp()
  const usedAtStart = usedAt()
  time.now += hour / 2
  await registry.blob(app, digest, caller)
  expect(usedAt()).toBe(usedAtStart)
  time.now += hour
  const syncs = await countSyncs(root)
  await registry.blob(app, digest, caller)
  expect(usedAt()).toBe(usedAtStart + 1.5 * hour)
  await registry.blob(app, digest, caller)
  await store.close()
  expect((await logText()).match(/"use-blob"/g)).toHaveLength(1)
  expect(syncs.count).toBe(0)
})

test('a blob can be pulled from a full disk', async () => {
  const { time, registry, usedAt, folder } = await setUp()
  await breakLog(folder)
  time.now += 2 * hour
  expect(await registry.blob(app, digest, caller)).toMatchObject({ digest, size: bytes.length })
  expect(usedAt()).toBe(2 * hour)
  await expect(registry.mountBlob({ ...app, name: 'app' }, digest, 'app')).rejects.toThrow(/EEXIST|ENOTDIR/)
})

/** Creates a manifest that names the blob, different for each number. */
function makeManifest(number: number) {
  const content = { mediaType: 'application/x', digest, size: bytes.length }
  const fields = { schemaVersion: 2, mediaType: mediaType.ociManifest, config: content, layers: [content] }
  return Buffer.from(JSON.stringify({ ...fields, annotations: { number: String(number) } }))
}

test('a push into a repository with 5,000 tags writes no more than one into an empty repository', async () => {
  const { store, registry, logText } = await setUp()
  const written = async (number: number) => {
    const before = (await logText()).length
    const manifest = { bytes: makeManifest(number), mediaType: mediaType.ociManifest, tags: ['latest', 'v1'] }
    await registry.putManifest(app, { kind: 'digest', digest: computeDigest(manifest.bytes) }, manifest)
    await registry.mountBlob(app, digest, undefined)
    return (await logText()).length - before
  }
  const first = await written(1)
  const tag = { digest, identity: anonymousIdentity, updatedAt: 0, pulls: 0, lastPulled: 0 }
  const tags = Array.from({ length: 5000 }, (_, at) => ({ op: 'tag' as const, tag: `t${at}`, ...tag }))
  await store.repositories.commit('app', tags)
  expect(await written(2)).toBeLessThan(first + 50)
})

test('a blob is mounted without a source only while a repository has it', async () => {
  const { registry } = await setUp()
  const other = { ...app, name: 'other' }
  expect(await registry.mountBlob(other, computeDigest(Buffer.from('unknown')), undefined)).toBe(false)
  expect(await registry.mountBlob(other, digest, undefined)).toBe(true)
  expect(await registry.mountBlob(other, digest, 'nowhere')).toBe(false)
  for (const repository of [app, other]) await registry.deleteBlob(repository, digest)
  expect(await registry.mountBlob(other, digest, undefined)).toBe(false)
})
