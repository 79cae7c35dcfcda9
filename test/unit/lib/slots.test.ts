import { expect, onTestFinished, test, vi } from 'vitest'
import { Slots } from '../../../src/lib/async.ts'

test('what is beyond the limit waits in order, and gets what is given back', async () => {
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

test('who waits too long gets none, and who is called off gets the reason; neither keeps a slot', async () => {
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
])('of %i slots each owner that never gives one back takes half of what the others leave', (limit, shares) => {
  const slots = new Slots(limit)
  expect(slots.roomFor('owner 0')).toBe(slots.mostOfOne)
  expect(shares.map((_, at) => takeAll(slots, `owner ${at}`).length)).toEqual(shares)
})

test('an owner with its share waits, one that comes later does not, and what is given back goes to who waits', async () => {
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

test('who waits while work moves waits on, and no longer than its patience when a byte comes at a time', async () => {
  vi.useFakeTimers()
  onTestFinished(() => void vi.useRealTimers())
  const slots = new Slots(2)
  slots.tryTake('a')
  const begun = performance.now()
  const wait = async (whileMoving: boolean) => {
    expect(await slots.take(400, { owner: 'a', whileMoving })).toBeUndefined()
    return performance.now() - begun
  }
  const waited = Promise.all([wait(false), wait(true)])
  for (let at = 100; at <= 1600; at += 100) {
    await vi.advanceTimersByTimeAsync(100)
    slots.moved(at <= 800 ? 256 * 1024 : 1, 'a')
  }
  // 400 ms after it began, and after the last piece that counts.
  expect(await waited).toEqual([400, 1200])
})
