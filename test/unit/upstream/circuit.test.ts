import { describe, expect, test } from 'vitest'
import { deferred } from '../../../src/lib/deferred.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { createCircuit } from '../../../src/upstream/circuit.ts'
import { TransientError } from '../../../src/upstream/transient-error.ts'
import { UpstreamError } from '../../../src/upstream/upstream.ts'
import { failureOf, fakeClock } from './support/open-upstream.ts'

const outage = () => new TransientError('unavailable', 502, 'down', { breaksCircuit: true })
const cut = () => new TransientError('unavailable', 502, 'cut')
const fail = (error: Error) => async () => {
  throw error
}

function setUp() {
  const clock = fakeClock()
  const circuit = createCircuit('it', clock, silentLogger)
  const failTimes = async (times: number, make: () => Error) => {
    for (let i = 0; i < times; i++) await failureOf(circuit.run(fail(make())))
  }
  return { clock, circuit, failTimes }
}

describe('the circuit', () => {
  test('opens after five outages in a row, and then refuses without asking', async () => {
    const { circuit, failTimes } = setUp()
    await failTimes(4, outage)
    expect(circuit.state).toBe('failing')
    await failTimes(1, outage)
    expect(circuit.state).toBe('open')
    let asked = false
    const error = await failureOf(circuit.run(async () => (asked = true)))
    expect([asked, error.failure, error.status, error.retryAfterSeconds]).toEqual([false, 'unavailable', 503, 30])
  })

  test.each([
    ['an answer', new UpstreamError('absent', 404, 'no')],
    ['a limit', new UpstreamError('limited', 429, 'wait')],
  ])('begins to count anew after %s', async (_, error) => {
    const { circuit, failTimes } = setUp()
    await failTimes(4, outage)
    await failureOf(circuit.run(fail(error)))
    await failTimes(4, outage)
    expect(circuit.state).toBe('failing')
  })

  test('does not count bodies that were cut', async () => {
    const { circuit, failTimes } = setUp()
    await failTimes(20, cut)
    expect(circuit.state).toBe('ok')
  })

  test('counts a failure that many waiters share once', async () => {
    const { circuit } = setUp()
    const shared = outage()
    await Promise.all(Array.from({ length: 50 }, () => failureOf(circuit.run(fail(shared)))))
    expect(circuit.state).toBe('failing')
  })

  test('after 30 s lets one probe through at a time, and closes when it is answered', async () => {
    const { circuit, clock, failTimes } = setUp()
    await failTimes(5, outage)
    clock.pass(30_000)
    const answer = deferred()
    const probe = circuit.run(() => answer.promise)
    expect((await failureOf(circuit.run(async () => {}))).status).toBe(503)
    answer.resolve()
    await probe
    expect(circuit.state).toBe('ok')
    await circuit.run(async () => {})
  })

  test('stays open for another 30 s when the probe fails', async () => {
    const { circuit, clock, failTimes } = setUp()
    await failTimes(5, outage)
    clock.pass(30_000)
    await failTimes(1, outage)
    clock.pass(29_000)
    expect((await failureOf(circuit.run(async () => {}))).retryAfterSeconds).toBe(1)
    clock.pass(1000)
    await circuit.run(async () => {})
    expect(circuit.state).toBe('ok')
  })

  test('lets another probe through when one is called off', async () => {
    const { circuit, clock, failTimes } = setUp()
    await failTimes(5, outage)
    clock.pass(30_000)
    await expect(circuit.run(fail(new DOMException('gone', 'AbortError')))).rejects.toThrow('gone')
    expect(circuit.state).toBe('open')
    await circuit.run(async () => {})
    expect(circuit.state).toBe('ok')
  })
})
