import { setMaxListeners } from 'node:events'
import { describe, expect, test } from 'vitest'
import { createDeferred, type Deferred } from '../../../src/lib/async.ts'
import { PasswordQueue, type PasswordCheck } from '../../../src/server/passwords.ts'

/** Opens a queue whose comparisons the test ends. */
function open() {
  const begun: { readonly password: string; readonly verdict: Deferred<boolean> }[] = []
  const queue = new PasswordQueue((password) => {
    const verdict = createDeferred<boolean>()
    begun.push({ password, verdict })
    return verdict.promise
  })
  const here = new AbortController().signal
  setMaxListeners(0, here)
  const ask = (password: string, other: Partial<PasswordCheck> = {}, signal = here) => {
    const check = { key: password, address: '127.0.0.1', user: 'dev', password, hash: '', isTrusted: false, ...other }
    const result = queue.run(check, signal)
    const outcome = { of: result, is: 'waiting' as unknown }
    result.then(
      (isSame) => (outcome.is = isSame),
      (error: { status?: number }) => (outcome.is = error.status ?? 'left'),
    )
    return outcome
  }
  const settled = () => new Promise((resolve) => setImmediate(resolve))
  /** Ends the running comparison, and waits for its outcome. */
  const end = async (isSame = false) => {
    begun.at(-1)!.verdict.resolve(isSame)
    await settled()
  }
  return { queue, begun, ask, end, settled, order: () => begun.map(({ password }) => password) }
}

test('one comparison runs and eight wait; a ninth is refused at once, with the time to wait', async () => {
  const { queue, begun, ask, settled } = open()
  const all = Array.from({ length: 300 }, (_, at) => ask(`wrong-${at}`))
  await settled()
  expect(begun).toHaveLength(1)
  expect(queue.waiting).toBe(8)
  expect(all.filter(({ is }) => is === 429)).toHaveLength(291)
  await expect(all[299]!.of).rejects.toMatchObject({
    code: 'TOOMANYREQUESTS',
    headers: { 'retry-after': expect.stringMatching(/^[1-9]\d*$/) },
  })
})

test('requests with the same credential share one comparison, and do not count as waiting', async () => {
  const { queue, ask, end, order } = open()
  const [first, ...more] = Array.from({ length: 50 }, () => ask('same'))
  const others = Array.from({ length: 20 }, () => ask('another'))
  expect(queue.waiting).toBe(1)
  await end(true)
  expect([first!, ...more].every(({ is }) => is === true)).toBe(true)
  await end(false)
  expect(others.every(({ is }) => is === false)).toBe(true)
  expect(order()).toEqual(['same', 'another'])
})

describe('clients that disconnected', () => {
  test('leave the queue, and their passwords are not compared', async () => {
    const { queue, ask, end, order } = open()
    ask('running')
    const leaving = new AbortController()
    setMaxListeners(0, leaving.signal)
    const gone = Array.from({ length: 8 }, (_, at) => ask(`gone-${at}`, {}, leaving.signal))
    leaving.abort(new Error('the client is gone'))
    expect(queue.waiting).toBe(0)
    const right = ask('right')
    await end()
    await end(true)
    expect(right.is).toBe(true)
    expect(gone.every(({ is }) => is === 'left')).toBe(true)
    expect(order()).toEqual(['running', 'right'])
  })

  test('leave the comparison to the others that wait for it', async () => {
    const { ask, end } = open()
    ask('running')
    const leaving = new AbortController()
    ask('same', {}, leaving.signal)
    const other = ask('same')
    leaving.abort(new Error('the client is gone'))
    await end()
    await end(true)
    expect(other.is).toBe(true)
  })

  test('before their request are refused at once', async () => {
    const { begun, ask, settled } = open()
    const gone = ask('gone', {}, AbortSignal.abort(new Error('the client is gone')))
    await settled()
    expect(gone.is).toBe('left')
    expect(begun).toEqual([])
  })
})

describe('a flood of passwords', () => {
  test('from one address yields to another address, which is the next in turn', async () => {
    const { ask, end, order, settled } = open()
    const flood = Array.from({ length: 50 }, (_, at) => ask(`wrong-${at}`))
    const right = ask('right', { address: '172.18.0.2' })
    await settled()
    expect(flood.filter(({ is }) => is === 429)).toHaveLength(42)
    await end()
    await end(true)
    expect(right.is).toBe(true)
    expect(order().slice(0, 2)).toEqual(['wrong-0', 'right'])
  })

  test('for one user yields to another user of the same address', async () => {
    const { ask, end } = open()
    for (let at = 0; at < 50; at++) ask(`wrong-${at}`)
    const right = ask('right', { user: 'other' })
    await end()
    await end(true)
    expect(right.is).toBe(true)
  })

  test('yields to a credential that was valid before, whatever its address', async () => {
    const { ask, end } = open()
    for (let at = 0; at < 50; at++) ask(`wrong-${at}`, { user: `name-${at}` })
    const right = ask('right', { isTrusted: true })
    expect(ask('wrong', { user: 'more' }).is).toBe('waiting')
    await end()
    await end(true)
    expect(right.is).toBe(true)
  })
})

test('a comparison that fails rejects the requests that wait for it, and the next one runs', async () => {
  const { begun, ask, end, settled } = open()
  const first = ask('first')
  const second = ask('second')
  begun[0]!.verdict.reject(Object.assign(new Error('the thread has ended'), { status: 'failed' }))
  await settled()
  await end(true)
  expect([first.is, second.is]).toEqual(['failed', true])
})
