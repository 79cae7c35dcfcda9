import { setTimeout as sleep } from 'node:timers/promises'
import { expect, test } from 'vitest'
import type { TransportResponse } from '../../../src/upstream/transport.ts'
import { readWholeBody } from '../../../src/upstream/body.ts'
import { failureOf } from '../../support/upstream/open-upstream.ts'

/** Creates an answer whose body comes byte by byte, and ends when it is discarded. */
function drip(bytes: number, pause: number) {
  let isDiscarded = false
  async function* body() {
    for (let sent = 0; sent < bytes; sent++) {
      await sleep(pause)
      if (isDiscarded) throw new Error('the body was let go of')
      yield Buffer.from('a')
    }
  }
  const discard = () => void (isDiscarded = true)
  const answer: TransportResponse = {
    status: 200,
    redirectHost: undefined,
    isStorage: false,
    header: () => undefined,
    body: body(),
    discard,
  }
  return { answer, isDiscarded: () => isDiscarded }
}

test('a body that drips without end fails with a timeout', async () => {
  const { answer, isDiscarded } = drip(1000, 10)
  const error = await failureOf(readWholeBody(answer, 1000, 'registry.example', 100))
  expect([error.failure, error.status]).toEqual(['unavailable', 504])
  expect(error.message).toBe('registry.example did not send its whole answer within 1 s.')
  expect(isDiscarded()).toBe(true)
})

test('a slow body that arrives in time is whole', async () => {
  const { answer, isDiscarded } = drip(10, 5)
  expect(Buffer.from(await readWholeBody(answer, 1000, 'registry.example', 10_000)).toString()).toBe('a'.repeat(10))
  expect(isDiscarded()).toBe(false)
})
