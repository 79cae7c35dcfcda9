import { mkdtemp, mkdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { systemClock } from '../../../src/lib/time.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { computeDigest } from '../../../src/oci/reference.ts'
import { LocalRegistry } from '../../../src/registry/local-registry.ts'
import { openPushedStore } from '../../../src/registry/repositories.ts'
import { UploadSessions } from '../../../src/registry/uploads.ts'

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
  const heldSince = () => store.repositories.get('app')!.blobs.get(digest)!.heldSince
  return { time, store, registry, heldSince }
}

test('a request for a blob protects it from garbage collection, and is recorded once an hour', async () => {
  const { time, store, registry, heldSince } = await setUp()
  const heldAtStart = heldSince()
  time.now += hour / 2
  await registry.blob(app, digest, caller)
  expect(heldSince()).toBe(heldAtStart)
  time.now += hour
  await registry.blob(app, digest, caller)
  expect(heldSince()).toBe(heldAtStart + 1.5 * hour)
  expect((await readFile(store.layout.journal('app'), 'utf8')).split('\n')).toHaveLength(4)
})

test('a blob can be pulled from a full disk', async () => {
  const { time, store, registry, heldSince } = await setUp()
  const journal = store.layout.journal('app')
  await rm(journal)
  await mkdir(journal)
  time.now += 2 * hour
  expect(await registry.blob(app, digest, caller)).toMatchObject({ digest, size: bytes.length })
  expect(heldSince()).toBe(0)
  await expect(registry.mountBlob({ ...app, name: 'app' }, digest, 'app')).rejects.toThrow(/EISDIR|ENOTEMPTY/)
})
