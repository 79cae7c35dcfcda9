import { expect, onTestFinished, test } from 'vitest'
import { createDeferred } from '../../../src/lib/async.ts'
import { silentLogger, type Logger } from '../../../src/lib/logger.ts'
import { createWriteBehind } from '../../../src/lib/time.ts'

const never = 1_000_000

/** Creates a value in memory and its copy on disk; each write waits for the gate. */
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

test('any number of changes during a write lead to one more write', async () => {
  const { book, behind } = notebook(never)
  const gate = createDeferred()
  book.gate = gate.promise
  book.memory = 1
  behind.update()
  for (book.memory = 2; book.memory < 9; book.memory += 1) behind.update()
  expect(book.writes).toBe(1)
  gate.resolve()
  await expect.poll(() => book.disk).toBe(9)
  expect(book.writes).toBe(2)
})

test('a change without an update reaches the disk with the next periodic write', async () => {
  const { book } = notebook(10)
  book.memory = 7
  await expect.poll(() => book.disk).toBe(7)
})

test('a failed write is logged and repeated', async () => {
  const said: string[] = []
  const { book, behind } = notebook(10, { ...silentLogger, error: (_, message) => void said.push(message) })
  book.full = true
  book.memory = 3
  behind.update()
  await expect.poll(() => said).toContain('could not write')
  book.full = false
  await expect.poll(() => book.disk).toBe(3)
})

test('closing waits for the running write, then writes the last state', async () => {
  const { book, behind } = notebook(never)
  const gate = createDeferred()
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
