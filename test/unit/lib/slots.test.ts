import { expect, onTestFinished, test, vi } from 'vitest'
import { Slots } from '../../../src/lib/async.ts'

test('callers beyond the limit wait in order for released slots', async () => {
  const slots = new Slots(1)
  const first = slots.tryTake()!
  const order: string[] = []
  const [a, b] = ['a', 'b'].map(async (name) => {
    const release = await slots.take(10_000)
    order.push(name)
    release!()
  })
  expect(slots.tryTake()).toBeUndefined()
  first()
  first()
  await Promise.all([a, b])
  expect(order).toEqual(['a', 'b'])
  expect([slots.free, slots.isUnused]).toEqual([1, true])
})

test('a caller that waits too long gets no slot, an aborted one gets the reason, and neither keeps a slot', async () => {
  const slots = new Slots(1)
  const first = slots.tryTake()!
  expect(await slots.take(10)).toBeUndefined()
  const ending = new AbortController()
  const waiting = slots.take(10_000, { signal: ending.signal })
  ending.abort(new Error('gone'))
  await expect(waiting).rejects.toThrow('gone')
  first()
  expect(slots.isUnused).toBe(true)
})

const takeAll = (slots: Slots, owner: string) => {
  const taken: (() => void)[] = []
  for (let next = slots.tryTake(owner); next; next = slots.tryTake(owner)) taken.push(next)
  return taken
}

test.each([
  [2, [1, 1]],
  [3, [2, 1]],
  [12, [6, 3, 2, 1]],
  [30, [15, 8, 4, 2, 1]],
  [121, [61, 30, 15, 8, 4, 2, 1]],
])('each owner takes half of those of %i slots that the others leave', (limit, shares) => {
  const slots = new Slots(limit)
  expect(slots.roomFor('owner 0')).toBe(slots.maxPerOwner)
  expect(shares.map((_, at) => takeAll(slots, `owner ${at}`).length)).toEqual(shares)
})

test('an owner that has its share waits, a later owner does not, and a released slot goes to a waiter', async () => {
  const slots = new Slots(4)
  const [first] = takeAll(slots, 'a')
  const order: string[] = []
  const waiting = ['a1', 'a2'].map(async (name) => {
    const release = await slots.take(10_000, { owner: 'a' })
    order.push(name)
    return release
  })
  expect(await slots.take(10_000, { owner: 'b' })).toBeDefined()
  expect(order).toEqual([])
  first!()
  ;(await waiting[0])!()
  await waiting[1]
  expect(order).toEqual(['a1', 'a2'])
})

test('progress of the owner extends the wait of its callers, a body that trickles in does not', async () => {
  vi.useFakeTimers()
  onTestFinished(() => void vi.useRealTimers())
  const slots = new Slots(2)
  slots.tryTake('a')
  const begun = performance.now()
  const wait = async (whileMoving: boolean) => {
    expect(await slots.take(400, { owner: 'a', extendOnProgress: whileMoving })).toBeUndefined()
    return performance.now() - begun
  }
  const waited = Promise.all([wait(false), wait(true)])
  for (let at = 100; at <= 1600; at += 100) {
    await vi.advanceTimersByTimeAsync(100)
    slots.recordProgress(at <= 800 ? 256 * 1024 : 1, 'a')
  }
  // Expects 400 ms after the start, and 400 ms after the last piece that counts as progress.
  expect(await waited).toEqual([400, 1200])
})
