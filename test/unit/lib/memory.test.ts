import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { clientBodies, upstreamBodies } from '../../../src/lib/body-memory.ts'
import { BudgetError, MemoryBudget, type MemoryBudgetOptions, type Reservation } from '../../../src/lib/memory.ts'

beforeEach(() => void vi.useFakeTimers())
afterEach(() => void vi.useRealTimers())

/** Lets time pass, and runs all due timers. */
const pass = (ms: number) => vi.advanceTimersByTimeAsync(ms)

const budgetOf = (options: Partial<MemoryBudgetOptions> = {}) =>
  new MemoryBudget({ bytes: 100, maxWaiting: 3, maxWaitMs: 5000, pollMs: 10, ...options })

test('waiting bodies are admitted in order, even when a later one would fit', async () => {
  const budget = budgetOf()
  const first = await budget.reserve(80)
  const order: string[] = []
  const large = budget.reserve(60).then((held) => (order.push('large'), held))
  const small = budget.reserve(10).then((held) => (order.push('small'), held))
  await pass(5)
  expect(order).toEqual([])
  first.release()
  for (const held of await Promise.all([large, small])) held.release()
  expect(order).toEqual(['large', 'small'])
  expect([budget.held, budget.waiting]).toEqual([0, 0])
})

test('a body is refused with a retry time when the queue is full and when its wait takes too long', async () => {
  const budget = budgetOf({ maxWaiting: 1, maxWaitMs: 30 })
  const held = await budget.reserve(100)
  const waiting = budget.reserve(1)
  await expect(budget.reserve(1)).rejects.toThrow(BudgetError)
  expect(budget.waiting).toBe(1)
  const refused = expect(waiting).rejects.toMatchObject({ retryAfterSeconds: 2 })
  await pass(30)
  await refused
  held.release()
  expect([budget.held, budget.waiting]).toEqual([0, 0])
})

test('a cancelled wait and a second release do not affect other bodies', async () => {
  const budget = budgetOf()
  const held = await budget.reserve(90)
  const leaving = new AbortController()
  const left = budget.reserve(50, { signal: leaving.signal })
  const behind = budget.reserve(10)
  leaving.abort(new Error('gone'))
  await expect(left).rejects.toThrow('gone')
  const last = await behind
  held.release()
  held.release()
  expect(budget.held).toBe(10)
  last.release()
})

test('a body larger than the budget is admitted alone', async () => {
  const budget = budgetOf()
  const all = await budget.reserve(1000)
  expect(budget.held).toBe(100)
  all.release()
})

test('a holder without progress is evicted while others wait, a settled holder is not', async () => {
  const budget = budgetOf()
  const evicted: string[] = []
  const slow: Reservation = await budget.reserve(50, { evict: () => (evicted.push('slow'), slow.release()) })
  const whole = await budget.reserve(50, { evict: () => void evicted.push('whole') })
  whole.settle()
  await pass(50)
  expect(evicted).toEqual([])
  const waiting = budget.reserve(50)
  await pass(20)
  expect(evicted).toEqual(['slow'])
  const next = await waiting
  whole.release()
  next.release()
  expect(budget.held).toBe(0)
})

test('a holder that makes progress is not evicted', async () => {
  const budget = budgetOf({ maxWaitMs: 60 })
  let isEvicted = false
  const held = await budget.reserve(100, { evict: () => (isEvicted = true) })
  const moving = setInterval(() => held.progress(1_000_000), 1)
  const refused = expect(budget.reserve(1)).rejects.toThrow(BudgetError)
  await pass(60)
  await refused
  clearInterval(moving)
  expect(isEvicted).toBe(false)
})

test('two growing holders never wait for each other: the second is refused, the first goes before all waiting bodies', async () => {
  const budget = budgetOf()
  const one = await budget.reserve(50)
  const two = await budget.reserve(50)
  const outside = budget.reserve(50)
  const grown = one.grow(30)
  await expect(two.grow(30)).rejects.toThrow(BudgetError)
  two.release()
  await grown
  expect(budget.held).toBe(80)
  one.release()
  ;(await outside).release()
  expect(budget.held).toBe(0)
})

const KiB = 1024

test('a small body does not wait for large ones, and small bodies beyond the extra memory wait for each other', async () => {
  const budget = budgetOf({ bytes: 1000, small: { maxBytes: 10, bytes: 20 } })
  const large = await budget.reserve(1000)
  const waiting = budget.reserve(11)
  const small = await Promise.all([budget.reserve(10), budget.reserve(10)])
  let isIn = false
  const last = budget.reserve(1).then((held) => ((isIn = true), held))
  await pass(5)
  expect([isIn, budget.held, budget.waiting]).toEqual([false, 1020, 2])
  small[0].release()
  ;(await last).release()
  small[1].release()
  large.release()
  ;(await waiting).release()
  expect([budget.held, budget.waiting]).toEqual([0, 0])
})

test('a small body that grows waits with the large ones and releases its extra memory', async () => {
  const budget = budgetOf({ bytes: 1000, small: { maxBytes: 10, bytes: 10 } })
  const large = await budget.reserve(1000)
  let isEvicted = false
  const growing = await budget.reserve(10, { evict: () => (isEvicted = true) })
  const grown = growing.grow(90)
  const next = budget.reserve(10)
  await pass(50)
  expect([isEvicted, budget.held, budget.waiting]).toEqual([false, 1010, 2])
  large.release()
  await grown
  const small = await next
  expect(budget.held).toBe(110)
  growing.release()
  small.release()
  expect(budget.held).toBe(0)
})

test('a small body that is released while it waits to grow leaves the queue', async () => {
  const budget = budgetOf({ bytes: 1000, small: { maxBytes: 10, bytes: 10 } })
  const large = await budget.reserve(1000)
  const growing = await budget.reserve(10)
  const grown = growing.grow(90)
  growing.release()
  await expect(grown).rejects.toThrow(BudgetError)
  large.release()
  expect([budget.held, budget.waiting]).toEqual([0, 0])
})

test('the holder with the longest remaining time is evicted when the first waiter is due', async () => {
  const budget = budgetOf({ bytes: 100 * 1024 * KiB, evictAfterMs: 100, maxWaitMs: 10_000 })
  const evicted: string[] = []
  const hold = async (name: string, expected: number) => {
    const held: Reservation = await budget.reserve(50 * 1024 * KiB, {
      expected,
      evict: () => (evicted.push(name), held.release()),
    })
    return held
  }
  const [near, far] = [await hold('near', 10_000 * KiB), await hold('far', 1_000_000 * KiB)]
  const moving = setInterval(() => [near, far].forEach((held) => held.progress(100 * KiB)), 1)
  const waiting = budget.reserve(50 * 1024 * KiB)
  await pass(90)
  expect(evicted).toEqual([])
  await pass(20)
  expect(evicted).toEqual(['far'])
  clearInterval(moving)
  const next = await waiting
  near.release()
  next.release()
  expect([budget.held, budget.waiting]).toEqual([0, 0])
})

test('a holder that waits to grow does not count as slow, and leaves the queue when it is released', async () => {
  const budget = budgetOf({ maxWaitMs: 300 })
  const all = await budget.reserve(60)
  let isEvicted = false
  const growing = await budget.reserve(40, { evict: () => (isEvicted = true) })
  const grown = growing.grow(20)
  const waiting = budget.reserve(10)
  await pass(100)
  expect([isEvicted, budget.waiting]).toEqual([false, 2])
  growing.release()
  await expect(grown).rejects.toThrow(BudgetError)
  ;(await waiting).release()
  all.release()
  expect([budget.held, budget.waiting]).toEqual([0, 0])
  await expect(growing.grow(1)).rejects.toThrow(BudgetError)
})

test('client bodies and upstream bodies never wait for each other', async () => {
  const all = await clientBodies.reserve(clientBodies.bytes)
  const other = await upstreamBodies.reserve(upstreamBodies.bytes)
  expect(clientBodies.bytes + upstreamBodies.bytes).toBeLessThanOrEqual(64 * 1024 * KiB)
  all.release()
  other.release()
})
