import { expect, onTestFinished, test } from 'vitest'
import { deferred } from '../../../src/lib/async.ts'
import { silentLogger, type Logger } from '../../../src/lib/logger.ts'
import { createWriteBehind } from '../../../src/lib/time.ts'

const never = 1_000_000

/** Something in memory, and what the disk says; each write waits until it is let through. */
function notebook(everyMs: number, logger: Logger = silentLogger) {
  const book = { memory: 0, disk: -1, writes: 0, full: false, gate: undefined as Promise<void> | undefined }
  const behind = createWriteBehind({
    async write() {
      const { memory } = book
      book.writes += 1
      await book.gate
      if (book.full) throw Object.assign(new Error('disk full'), { code: 'ENOSPC', syscall: 'write' })
      book.disk = memory
    },
    logger,
    failure: 'could not write',
    everyMs,
  })
  onTestFinished(() => behind.stop())
  return { book, behind }
}

test('a change that comes during a write is written afterwards, however many there were', async () => {
  const { book, behind } = notebook(never)
  const gate = deferred()
  book.gate = gate.promise
  book.memory = 1
  behind.update()
  for (book.memory = 2; book.memory < 9; book.memory += 1) behind.update()
  expect(book.writes).toBe(1)
  gate.resolve()
  await expect.poll(() => book.disk).toBe(9)
  expect(book.writes).toBe(2)
})

test('a change that nobody announced reaches the disk with the next look', async () => {
  const { book } = notebook(10)
  book.memory = 7
  await expect.poll(() => book.disk).toBe(7)
})

test('a write that the disk refused is said, and tried again', async () => {
  const said: string[] = []
  const { book, behind } = notebook(10, { ...silentLogger, error: (_, message) => void said.push(message) })
  book.full = true
  book.memory = 3
  behind.update()
  await expect.poll(() => said).toContain('could not write')
  book.full = false
  await expect.poll(() => book.disk).toBe(3)
})

test('closing waits for the write that is running, and writes what is true last', async () => {
  const { book, behind } = notebook(never)
  const gate = deferred()
  book.gate = gate.promise
  book.memory = 1
  behind.update()
  book.memory = 2
  const closing = behind.close()
  gate.resolve()
  await closing
  expect(book.disk).toBe(2)
  book.memory = 3
  behind.update()
  await behind.close()
  expect(book.disk).toBe(2)
})
