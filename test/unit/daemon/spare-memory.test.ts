import { expect, onTestFinished, test, vi } from 'vitest'
import { spareMemory } from '../../../src/daemon/limits.ts'

const MiB = 1024 * 1024

const onFailure = (error: unknown) => {
  throw error
}

/** Starts a process that holds the given memory; a trim frees half of the memory beyond 100 MiB. */
function startProcess() {
  vi.useFakeTimers()
  onTestFinished(() => void vi.useRealTimers())
  const state = { held: 100 * MiB, trimmed: 0 }
  const trim = async () => {
    state.trimmed += 1
    state.held -= Math.max(0, (state.held - 100 * MiB) / 2)
  }
  const stop = spareMemory({ trim, held: () => state.held, everyMs: 1000, onFailure })
  onTestFinished(stop)
  const hold = async (bytes: number) => {
    state.held = bytes
    await vi.advanceTimersByTimeAsync(1000)
    return state.trimmed
  }
  return { hold, stop }
}

test('memory of a burst is returned, and memory in use is not scanned again and again', async () => {
  const { hold } = startProcess()
  expect(await hold(140 * MiB)).toBe(0)
  expect(await hold(500 * MiB)).toBe(1)
  // Frees half of the excess of 300 MiB, which leaves 200, and so on until a trim frees too little.
  expect(await hold(300 * MiB)).toBe(2)
  for (let looks = 0; looks < 10; looks++) await hold(130 * MiB)
  expect(await hold(130 * MiB)).toBe(2)
})

test('memory of a second burst is returned, too', async () => {
  const { hold } = startProcess()
  expect(await hold(500 * MiB)).toBe(1)
  expect(await hold(120 * MiB)).toBe(1)
  expect(await hold(350 * MiB)).toBe(2)
})

test('memory that cannot be returned is left alone until it grows', async () => {
  vi.useFakeTimers()
  onTestFinished(() => void vi.useRealTimers())
  let held = 300 * MiB
  const trim = vi.fn<() => Promise<void>>(async () => {})
  onTestFinished(spareMemory({ trim, held: () => held, everyMs: 1000, onFailure }))
  await vi.advanceTimersByTimeAsync(10_000)
  expect(trim).toHaveBeenCalledTimes(1)
  for (const [MiBs, times] of [
    [320, 2],
    [140, 2],
    [160, 3],
  ] as const) {
    held = MiBs * MiB
    await vi.advanceTimersByTimeAsync(10_000)
    expect(trim).toHaveBeenCalledTimes(times)
  }
})

test('no memory is returned after the stop', async () => {
  const { hold, stop } = startProcess()
  stop()
  expect(await hold(500 * MiB)).toBe(0)
})

test('a poll of the memory that throws is reported, and the next poll follows', async () => {
  vi.useFakeTimers()
  onTestFinished(() => void vi.useRealTimers())
  let looks = 0
  const held = () => {
    looks += 1
    throw Object.assign(new Error('EMFILE: too many open files'), { code: 'EMFILE', syscall: 'uv_resident_set_memory' })
  }
  const failures: unknown[] = []
  onTestFinished(
    spareMemory({ trim: async () => {}, held, everyMs: 1000, onFailure: (error) => void failures.push(error) }),
  )
  await vi.advanceTimersByTimeAsync(3000)
  expect([looks, failures.length]).toEqual([3, 3])
})
