import { describe, expect, test } from 'vitest'
import { createDeferred } from '../../../src/lib/async.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { createCircuit, type Outage, TransientError } from '../../../src/upstream/retry.ts'
import { UpstreamError } from '../../../src/upstream/upstream.ts'
import { failureOf, fakeClock } from '../../support/upstream/open-upstream.ts'

const outage = (kind: Outage) => () =>
  new TransientError('unavailable', 502, 'down', { breaksCircuit: true, outage: kind })
const [unreachable, silent, answered] = [outage('unreachable'), outage('silent'), outage('answered')]
const cut = () => new TransientError('unavailable', 502, 'cut')
const fail = (error: Error) => async () => {
  throw error
}

function setUp() {
  const clock = fakeClock()
  const circuit = createCircuit('it', clock, silentLogger)
  /** Runs an attempt for `manifests/v1` of a repository, or for another path of it. */
  const run = <T>(repository: string, attempt: () => Promise<T>, what = 'manifests/v1') =>
    circuit.run({ repository, request: `GET ${repository}/${what}` }, attempt)
  const failTimes = async (times: number, make: () => Error, repository = 'app') => {
    for (let i = 0; i < times; i++) await failureOf(run(repository, fail(make())))
  }
  const failEach = async (repositories: string[], make: () => Error) => {
    for (const repository of repositories) await failTimes(1, make, repository)
  }
  const isAsked = async (repository: string, what?: string) => {
    let asked = false
    await run(repository, async () => (asked = true), what).catch(() => {})
    return asked
  }
  return { clock, circuit, run, failTimes, failEach, isAsked }
}

const five = ['a', 'b', 'c', 'd', 'e']

describe('the circuit breaker', () => {
  test('opens after five failed connections in a row, and then refuses every request to the upstream', async () => {
    const { circuit, run, failTimes, isAsked } = setUp()
    await failTimes(4, unreachable)
    expect(circuit.state).toBe('failing')
    await failTimes(1, unreachable)
    expect(circuit.state).toBe('open')
    expect(await isAsked('other')).toBe(false)
    const error = await failureOf(run('other', async () => {}))
    expect([error.failure, error.status, error.retryAfterSeconds]).toEqual(['unavailable', 503, 30])
  })

  test.each([
    ['an answer', new UpstreamError('absent', 404, 'no')],
    ['a limit', new UpstreamError('limited', 429, 'wait')],
  ])('counts from zero after %s', async (_, error) => {
    const { circuit, run, failTimes } = setUp()
    await failTimes(4, unreachable)
    await failureOf(run('app', fail(error)))
    await failTimes(4, unreachable)
    expect(circuit.state).toBe('failing')
  })

  test('does not count bodies that broke off', async () => {
    const { circuit, failTimes } = setUp()
    await failTimes(20, cut)
    expect(circuit.state).toBe('ok')
  })

  test('counts a failure that many requests share once', async () => {
    const { circuit, run } = setUp()
    const shared = unreachable()
    await Promise.all(Array.from({ length: 50 }, () => failureOf(run('app', fail(shared)))))
    expect(circuit.state).toBe('failing')
  })

  test('admits one probe per repository at a time after 30 s, and closes when it succeeds', async () => {
    const { circuit, clock, run, failTimes } = setUp()
    await failTimes(5, unreachable)
    clock.pass(30_000)
    const answer = createDeferred()
    const probe = run('app', () => answer.promise)
    expect((await failureOf(run('app', async () => {}, 'blobs/1'))).status).toBe(503)
    answer.resolve()
    await probe
    expect(circuit.state).toBe('ok')
    await run('app', async () => {}, 'blobs/1')
  })

  test('admits probes of at most five repositories at the same time', async () => {
    const { clock, run, failTimes, isAsked } = setUp()
    await failTimes(5, unreachable)
    clock.pass(30_000)
    const answer = createDeferred()
    const probes = five.map((repository) => run(repository, () => answer.promise))
    expect(await isAsked('sixth')).toBe(false)
    answer.resolve()
    await Promise.all(probes)
    expect(await isAsked('sixth')).toBe(true)
  })

  test('stays open for another 30 s when the probe gets no connection', async () => {
    const { circuit, clock, run, failTimes } = setUp()
    await failTimes(5, unreachable)
    clock.pass(30_000)
    await failTimes(1, unreachable)
    clock.pass(29_000)
    expect((await failureOf(run('app', async () => {}))).retryAfterSeconds).toBe(1)
    clock.pass(1000)
    await run('app', async () => {})
    expect(circuit.state).toBe('ok')
  })

  test('admits another probe when one is aborted', async () => {
    const { circuit, clock, run, failTimes } = setUp()
    await failTimes(5, unreachable)
    clock.pass(30_000)
    await expect(run('app', fail(new DOMException('gone', 'AbortError')))).rejects.toThrow('gone')
    expect(circuit.state).toBe('open')
    await run('app', async () => {})
    expect(circuit.state).toBe('ok')
  })
})

describe.each([
  ['answers 5xx', answered],
  ['does not answer in time', silent],
])('one repository that %s', (_, make) => {
  test('does not open the circuit for other repositories, however many requests fail', async () => {
    const { circuit, failTimes, isAsked } = setUp()
    await failTimes(50, make)
    expect(circuit.state).toBe('failing')
    expect(await isAsked('other')).toBe(true)
    expect(circuit.state).toBe('ok')
  })

  test('gets no repetition of a request for 30 s after it failed five times in a row, then one; other requests pass', async () => {
    const { clock, run, failTimes, isAsked } = setUp()
    await failTimes(5, make)
    expect(await isAsked('app')).toBe(false)
    expect((await failureOf(run('app', async () => {}))).retryAfterSeconds).toBe(30)
    expect(await isAsked('app', 'blobs/1')).toBe(true)
    expect(await isAsked('app')).toBe(false)
    clock.pass(30_000)
    const answer = createDeferred()
    const probe = run('app', () => answer.promise)
    expect(await isAsked('app')).toBe(false)
    answer.resolve()
    await probe
    expect(await isAsked('app')).toBe(true)
  })

  test('counts with others: five failed repositories in a row open the circuit, and each is refused', async () => {
    const { circuit, clock, failEach, isAsked } = setUp()
    await failEach([...five.slice(0, 4), ...five.slice(0, 4)], make)
    expect(circuit.state).toBe('failing')
    await failEach(['e'], make)
    expect(circuit.state).toBe('open')
    for (const repository of five) expect(await isAsked(repository, 'blobs/1')).toBe(false)
    clock.pass(30_000)
    expect(await isAsked('a')).toBe(true)
    expect(circuit.state).toBe('ok')
  })

  test('does not block a repository that has not failed, whose response closes the circuit', async () => {
    const { circuit, failEach, isAsked } = setUp()
    await failEach(five, make)
    expect(await isAsked('f')).toBe(true)
    expect(circuit.state).toBe('ok')
    expect(await isAsked('a')).toBe(true)
  })

  test('does not block the others when it is the probe after an outage', async () => {
    const { circuit, clock, failTimes, isAsked } = setUp()
    await failTimes(5, unreachable)
    clock.pass(30_000)
    await failTimes(1, make, 'broken')
    expect(await isAsked('other')).toBe(true)
    expect(circuit.state).toBe('ok')
  })
})

test('a probe that hangs blocks its own repository and no other', async () => {
  const { clock, run, failTimes, isAsked } = setUp()
  await failTimes(5, unreachable)
  clock.pass(30_000)
  const never = createDeferred()
  const probe = run('broken', () => never.promise)
  expect(await isAsked('broken')).toBe(false)
  expect(await isAsked('other')).toBe(true)
  never.resolve()
  await probe
})
