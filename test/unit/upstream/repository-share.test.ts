import { expect, test } from 'vitest'
import { Slots } from '../../../src/lib/slots.ts'
import type { HttpUpstream } from '../../../src/upstream/http-upstream.ts'
import { digestOf } from '../../../src/oci/digest.ts'
import { openUpstream, readAll } from './support/open-upstream.ts'
import { serve } from './support/serve.ts'

const body = Buffer.from('a layer')
const blob = async (upstream: HttpUpstream, name: string) =>
  readAll((await upstream.blob(name, digestOf(body), { access: 'anonymous', from: 0 })).body)

test('an upstream that never answers for many repositories leaves connections to another one', async () => {
  const requests = new Slots(8)
  const timeouts = { connect: 60_000, headers: 60_000, idle: 60_000 }
  const hung = await serve(() => {})
  const well = await serve((_, response) => response.end(body))
  const dead = openUpstream(hung.url, { host: 'dead.example', requests, timeouts })
  const alive = openUpstream(well.url, { host: 'well.example', requests, timeouts: { ...timeouts, headers: 10_000 } })
  const asked = Array.from({ length: 30 }, (_, at) => blob(dead, `team/app${at}`).catch(() => undefined))
  await expect.poll(() => hung.log.length).toBeGreaterThanOrEqual(4)
  expect(await blob(alive, 'team/app')).toEqual(body)
  expect(hung.log.length).toBe(4)
  await dead.close()
  await Promise.all(asked)
})

test('a blob waits for a connection longer than a question, while others of its repository are on their way', async () => {
  const requests = new Slots(4)
  const slow = await serve((_, response) => {
    response.write(body.subarray(0, 1))
    setTimeout(() => response.end(body.subarray(1)), 1200)
  })
  const timeouts = { connect: 10_000, headers: 800, idle: 20_000 }
  const upstream = openUpstream(slow.url, { requests, timeouts })
  const bodies = await Promise.all(Array.from({ length: 4 }, () => blob(upstream, 'team/app')))
  for (const bytes of bodies) expect(bytes).toEqual(body)
})
