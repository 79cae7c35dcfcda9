import { setTimeout as sleep } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { Slots } from '../../../src/lib/slots.ts'

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
  const slots = new Slots(2)
  slots.tryTake('a')
  const takes = { slow: slots.take(400, { owner: 'a', whileMoving: true }), plain: slots.take(400, { owner: 'a' }) }
  const begun = performance.now()
  const ended: Record<string, number> = {}
  const all = Object.entries(takes).map(async ([name, take]) => {
    expect(await take).toBeUndefined()
    ended[name] = performance.now() - begun
  })
  for (let at = 0; at < 8; at++) {
    await sleep(100)
    slots.moved(256 * 1024, 'a')
  }
  const last = performance.now() - begun
  for (let at = 0; at < 8; at++) {
    await sleep(100)
    slots.moved(1, 'a')
  }
  await Promise.all(all)
  expect(ended['plain']).toBeLessThan(ended['slow']!)
  expect(ended['slow']).toBeGreaterThan(last)
})
