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
  const waiting = slots.take(10_000, ending.signal)
  ending.abort(new Error('gone'))
  await expect(waiting).rejects.toThrow('gone')
  first()
  expect(slots.isUnused).toBe(true)
})
