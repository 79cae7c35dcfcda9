import { describe, expect, test } from 'vitest'
import { systemClock } from '../../../src/lib/time.ts'
import { systemError } from '../../../src/lib/errors.ts'
import { ProcessHealth } from '../../../src/lib/system-errors.ts'
import { recordFailures } from '../../../src/upstream/failures.ts'
import { TransientError } from '../../../src/upstream/retry.ts'
import { UpstreamError, type Upstream } from '../../../src/upstream/upstream.ts'

const noDescriptor = new TransientError('unavailable', 503, 'The mirror itself could not ask it (EMFILE).', {
  cause: systemError('EMFILE', 'connect', 'connect EMFILE'),
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
