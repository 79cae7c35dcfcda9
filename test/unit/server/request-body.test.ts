import type { IncomingMessage } from 'node:http'
import { Readable } from 'node:stream'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { readBody } from '../../../src/server/request-body.ts'

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'setInterval', 'clearInterval', 'performance'] })
})
afterEach(() => {
  vi.useRealTimers()
})

/** A body that brings so many bytes at each of these moments, ms, read by one who takes 10 ms for each. */
function read(moments: readonly number[], bytes: number): { body: Readable; result: Promise<string> } {
  const body = new Readable({ read() {} })
  for (const moment of moments) setTimeout(() => body.push(Buffer.alloc(bytes)), moment)
  const drain = async () => {
    for await (const _ of readBody(body as IncomingMessage, 100)) await new Promise((done) => setTimeout(done, 10))
  }
  const result = drain().then(
    () => 'whole',
    (error: Error) => error.message,
  )
  return { body, result }
}

test('a byte now and then is not enough, whatever the reader does at the moment it comes', async () => {
  const { body, result } = read([95, 195, 295, 395], 1)
  await vi.advanceTimersByTimeAsync(200)
  expect(body.destroyed).toBe(true)
  expect(await result).toBe('the client stopped sending')
})

test('a client that brings its share within each idle time may take as long as it likes', async () => {
  const { body, result } = read([95, 195, 295, 395], 1024)
  setTimeout(() => body.push(null), 480)
  await vi.advanceTimersByTimeAsync(500)
  expect(await result).toBe('whole')
})
