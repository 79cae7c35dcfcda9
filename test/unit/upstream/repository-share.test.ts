import { expect, onTestFinished, test, vi } from 'vitest'
import { createDeferred, Slots } from '../../../src/lib/async.ts'
import { computeDigest } from '../../../src/oci/reference.ts'
import type { HttpUpstream } from '../../../src/upstream/http-upstream.ts'
import { createRepositoryShare } from '../../../src/upstream/transport.ts'
import { openUpstream, readAll } from '../../support/upstream/open-upstream.ts'
import { serve } from '../../support/upstream/serve.ts'

const body = Buffer.from('a layer')
const blob = async (upstream: HttpUpstream, name: string) =>
  readAll((await upstream.blob(name, computeDigest(body), { access: 'anonymous', from: 0 })).body)

test('an upstream that never answers for many repositories leaves connections to another upstream', async () => {
  const requests = new Slots(8)
  // Exceeds the duration of the test, so that no request times out and makes room.
  const timeouts = { connect: 600_000, headers: 600_000, idle: 600_000 }
  const hung = await serve(() => {})
  const well = await serve((_, response) => response.end(body))
  const dead = openUpstream(hung.url, { host: 'dead.example', requests, timeouts })
  const alive = openUpstream(well.url, { host: 'well.example', requests, timeouts })
  const asked = Array.from({ length: 30 }, (_, at) => blob(dead, `team/app${at}`).catch(() => undefined))
  await expect.poll(() => hung.log.length).toBeGreaterThanOrEqual(4)
  expect(await blob(alive, 'team/app')).toEqual(body)
  expect(hung.log.length).toBe(4)
  await dead.close()
  await Promise.all(asked)
})

test('a metadata request waits as long as the timeout for headers, and a blob longer while other blobs of its repository progress', async () => {
  vi.useFakeTimers()
  onTestFinished(() => void vi.useRealTimers())
  const requests = new Slots(8)
  const share = createRepositoryShare({ host: 'one', maxWaitMs: 800, maxBlobWaitMs: 2000, requests, connections: 4 })
  const question = { repository: 'app', pool: 'metadata' } as const
  const blob = { repository: 'app', pool: 'blobs' } as const
  const begun = performance.now()
  const refused = async (request: typeof question | typeof blob) => {
    await expect(share.enter(request)).rejects.toMatchObject({ status: 503, retryAfterSeconds: 1 })
    return performance.now() - begun
  }
  await share.enter(question)
  await Promise.all([1, 2, 3].map(() => share.enter(blob)))
  const waited = Promise.all([refused(question), refused(blob)])
  await vi.advanceTimersByTimeAsync(1500)
  share.recordBytes(blob, 256 * 1024)
  await vi.advanceTimersByTimeAsync(2000)
  expect(await waited).toEqual([800, 3500])
})

test('a blob waits longer for a connection than a metadata request, while other blobs of its repository arrive', async () => {
  const requests = new Slots(4)
  const waited = createDeferred()
  const slow = await serve((_, response) => {
    response.write(body.subarray(0, 1))
    void waited.promise.then(() => response.end(body.subarray(1)))
  })
  const timeouts = { connect: 10_000, headers: 3000, idle: 60_000 }
  const upstream = openUpstream(slow.url, { requests, timeouts })
  const bodies = Promise.all(Array.from({ length: 4 }, () => blob(upstream, 'team/app')))
  setTimeout(waited.resolve, 3500)
  for (const bytes of await bodies) expect(bytes).toEqual(body)
})
