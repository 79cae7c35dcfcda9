import { setTimeout as sleep } from 'node:timers/promises'
import { expect, test } from 'vitest'
import {
  BudgetError,
  MemoryBudget,
  type MemoryBudgetOptions,
  type Reservation,
} from '../../../src/lib/memory-budget.ts'

const budgetOf = (options: Partial<MemoryBudgetOptions> = {}) =>
  new MemoryBudget({ bytes: 100, mostWaiting: 3, patience: 5000, lookEvery: 10, ...options })

test('those who find no room come in in their order, also when a later one would fit', async () => {
  const budget = budgetOf()
  const first = await budget.reserve(80)
  const order: string[] = []
  const large = budget.reserve(60).then((held) => (order.push('large'), held))
  const small = budget.reserve(10).then((held) => (order.push('small'), held))
  await sleep(5)
  expect(order).toEqual([])
  first.release()
  for (const held of await Promise.all([large, small])) held.release()
  expect(order).toEqual(['large', 'small'])
  expect([budget.held, budget.waiting]).toEqual([0, 0])
})

test('beyond the line, and after the patience, a body is refused with the time to ask again', async () => {
  const budget = budgetOf({ mostWaiting: 1, patience: 30 })
  const held = await budget.reserve(100)
  const waiting = budget.reserve(1)
  await expect(budget.reserve(1)).rejects.toThrow(BudgetError)
  await expect(waiting).rejects.toMatchObject({ retryAfterSeconds: 2 })
  expect(() => budget.reserveNow(1)).toThrow(BudgetError)
  held.release()
  expect([budget.held, budget.waiting]).toEqual([0, 0])
})

test('one that leaves the line, or gives back twice, changes nothing for the others', async () => {
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

test('more than there can be is let in alone', async () => {
  const budget = budgetOf()
  const all = await budget.reserve(1000)
  expect(budget.held).toBe(100)
  all.release()
})

test('a holder that brings nothing while others wait is ended, and one that has all is not', async () => {
  const budget = budgetOf()
  const evicted: string[] = []
  const slow: Reservation = await budget.reserve(50, { evict: () => (evicted.push('slow'), slow.release()) })
  const whole = await budget.reserve(50, { evict: () => void evicted.push('whole') })
  whole.settle()
  await sleep(50)
  expect(evicted).toEqual([])
  const next = await budget.reserve(50)
  expect(evicted).toEqual(['slow'])
  whole.release()
  next.release()
  expect(budget.held).toBe(0)
})

test('a holder that goes on stays', async () => {
  const budget = budgetOf({ patience: 60 })
  let isEvicted = false
  const held = await budget.reserve(100, { evict: () => (isEvicted = true) })
  const moving = setInterval(() => held.progress(1_000_000), 1)
  await expect(budget.reserve(1)).rejects.toThrow(BudgetError)
  clearInterval(moving)
  expect(isEvicted).toBe(false)
})

test('two that grow never wait for each other: the second is refused, and the first goes before all who wait', async () => {
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
