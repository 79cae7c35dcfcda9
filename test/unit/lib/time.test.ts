import { beforeEach, afterEach, expect, test, vi } from 'vitest'
import { createDeferred } from '../../../src/lib/async.ts'
import { runEvery, runLater } from '../../../src/lib/time.ts'

beforeEach(() => void vi.useFakeTimers())
afterEach(() => void vi.useRealTimers())

test('errors of a timer task are reported each time, and the timer continues', async () => {
  const failures: unknown[] = []
  let rounds = 0
  const task = () => {
    rounds += 1
    if (rounds === 1) throw new Error('at once')
    return rounds === 2 ? Promise.reject(new Error('a little later')) : undefined
  }
  const stop = runEvery(100, task, (error) => void failures.push(error))
  await vi.advanceTimersByTimeAsync(350)
  expect(rounds).toBe(3)
  expect(failures.map(String)).toEqual(['Error: at once', 'Error: a little later'])
  stop()
  await vi.advanceTimersByTimeAsync(1000)
  expect(rounds).toBe(3)
})

test('a timer task never overlaps with itself: rounds during a run are skipped', async () => {
  const work = createDeferred()
  let rounds = 0
  const task = () => {
    rounds += 1
    return rounds === 1 ? work.promise : undefined
  }
  const stop = runEvery(100, task, () => {})
  await vi.advanceTimersByTimeAsync(1000)
  expect(rounds).toBe(1)
  work.resolve()
  await vi.advanceTimersByTimeAsync(100)
  expect(rounds).toBe(2)
  stop()
})

test('a delayed task runs once, its error is reported, and a cancelled one does not run', async () => {
  const failures: unknown[] = []
  let runs = 0
  const task = async () => {
    runs += 1
    throw new Error('failed')
  }
  runLater(100, task, (error) => void failures.push(error))
  const callOff = runLater(100, task, (error) => void failures.push(error))
  callOff()
  await vi.advanceTimersByTimeAsync(1000)
  expect([runs, failures.length]).toEqual([1, 1])
})
