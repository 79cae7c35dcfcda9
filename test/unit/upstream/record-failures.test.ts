import { describe, expect, test } from 'vitest'
import { systemClock } from '../../../src/lib/time.ts'
import { createSystemError } from '../../../src/lib/errors.ts'
import { ProcessHealth } from '../../../src/lib/system-errors.ts'
import { recordFailures } from '../../../src/upstream/failures.ts'
import { TransientError } from '../../../src/upstream/retry.ts'
import { UpstreamError, type Upstream } from '../../../src/upstream/upstream.ts'

const noDescriptor = new TransientError('unavailable', 503, 'The mirror itself could not ask it (EMFILE).', {
  cause: createSystemError('EMFILE', 'connect', 'connect EMFILE'),
})

/** Creates an upstream that fails as the test says, and reads the mirror's report on itself. */
function watched() {
  const ownTroubles = new ProcessHealth(systemClock)
  const failures: Error[] = []
  const resolve = () => Promise.reject(failures.shift()!)
  const failing = { host: 'it', resolve } as unknown as Upstream
  const upstream = recordFailures(failing, () => 0, ownTroubles.watch('fetch'))
  const fail = async (error: Error) => {
    failures.push(error)
    const asked = upstream.resolve('app', { kind: 'tag', tag: 'v1' }, { access: 'anonymous' })
    await expect(asked).rejects.toBe(error)
  }
  return { fail, ownTroubles }
}

describe('a mirror that could not reach upstreams for lack of descriptors', () => {
  test.each([
    ['has nothing', new UpstreamError('absent', 404, 'it does not have it')],
    ['refuses', new UpstreamError('denied', 403, 'it refused')],
  ])('works again when an upstream %s', async (_, answer) => {
    const { fail, ownTroubles } = watched()
    await fail(noDescriptor)
    expect(await ownTroubles.find()).toEqual(['The mirror cannot send requests to upstreams: EMFILE'])
    await fail(answer)
    expect(await ownTroubles.find()).toEqual([])
  })

  test('does not count as working again while a circuit is open, or an upstream does not answer', async () => {
    const { fail, ownTroubles } = watched()
    await fail(noDescriptor)
    await fail(new UpstreamError('unavailable', 503, 'it is left alone for a while'))
    await fail(new UpstreamError('limited', 429, 'it wants no more requests for a while'))
    expect(await ownTroubles.find()).toEqual(['The mirror cannot send requests to upstreams: EMFILE'])
  })
})

describe('the health of an upstream', () => {
  const credentialFailure = new UpstreamError('unavailable', 503, 'The credential for it cannot be used: no file.')

  /** Creates an upstream that answers as the test says, and whose circuit counts no failure. */
  function recorded() {
    const answers: (Error | 'found')[] = []
    const answer = () => {
      const next = answers.shift()!
      return next === 'found' ? Promise.resolve(undefined) : Promise.reject(next)
    }
    const health = () => ({ state: 'ok', rateLimit: undefined })
    const upstream = recordFailures(
      { host: 'it', resolve: answer, identity: answer, health } as unknown as Upstream,
      () => 0,
    )
    const request = async (next: Error | 'found') => {
      answers.push(next)
      await upstream.resolve('app', { kind: 'tag', tag: 'v1' }, { access: 'anonymous' }).catch(() => undefined)
    }
    const identify = async (next: Error | 'found') => {
      answers.push(next)
      await upstream.identity('anonymous').catch(() => undefined)
    }
    return { upstream, request, identify }
  }

  test.each([
    ['a failure of TLS', new UpstreamError('unavailable', 502, 'it does not speak TLS.')],
    ['a broken connection', new TransientError('unavailable', 502, 'it broke the connection.')],
  ])('is failing after %s, until it answers', async (_, failure) => {
    const { upstream, request } = recorded()
    await request(failure)
    expect(upstream.health()).toMatchObject({ state: 'failing', lastError: { message: failure.message } })
    await request('found')
    expect(upstream.health()).toEqual({ state: 'ok', rateLimit: undefined })
    await request(failure)
    await request(new UpstreamError('absent', 404, 'it does not have it'))
    expect(upstream.health().state).toBe('ok')
  })

  test('stays ok after a response that is no use to one request, because the upstream answers', async () => {
    const { upstream, request } = recorded()
    await request(new UpstreamError('invalid', 502, 'it answered 405.'))
    expect(upstream.health().state).toBe('ok')
  })

  test('is failing while its credential cannot be read, although no request is sent', async () => {
    const { upstream, request, identify } = recorded()
    await identify(credentialFailure)
    expect(upstream.health()).toMatchObject({ state: 'failing', lastError: { message: credentialFailure.message } })
    await identify('found')
    expect(upstream.health().state).toBe('failing')
    await request('found')
    expect(upstream.health().state).toBe('ok')
  })

  test('stays ok for a rate limit, a paused request, and a fault of this process', async () => {
    const { upstream, request } = recorded()
    await request(new UpstreamError('limited', 429, 'it limits', { retryAfterSeconds: 9 }))
    expect(upstream.health()).toMatchObject({ state: 'ok', lastError: { failure: 'limited', retryAfterSeconds: 9 } })
    await request(new UpstreamError('unavailable', 503, 'this request is paused', { retryAfterSeconds: 30 }))
    expect(upstream.health().lastError).toMatchObject({ failure: 'unavailable', retryAfterSeconds: 30 })
    await request(noDescriptor)
    expect(upstream.health().state).toBe('ok')
  })
})
