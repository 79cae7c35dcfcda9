import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { connect, type AddressInfo } from 'node:net'
import { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { MemoryBudget } from '../../../src/lib/memory-budget.ts'
import { readBody, withSmallBody } from '../../../src/server/request-body.ts'

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

describe('while the memory for bodies is full', () => {
  beforeEach(() => void vi.useRealTimers())

  /** A server that takes small bodies, after a turn of the event loop as a look into a password file is one. */
  async function serve(budget: MemoryBudget) {
    const answer = async (request: IncomingMessage, response: ServerResponse) => {
      await sleep(20)
      const bytes = await withSmallBody(request, { limit: 1000, idle: 5000, budget }, (body) => body.toString()).catch(
        (error: unknown) => (error instanceof Error ? error.message : String(error)),
      )
      response.end(bytes)
    }
    const server = createServer((request, response) => void answer(request, response))
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    onTestFinished(() => void server.close())
    return (server.address() as AddressInfo).port
  }

  test('a body that has arrived as a whole waits for its memory, and is read then', async () => {
    const budget = new MemoryBudget({ bytes: 100, mostWaiting: 3, patience: 5000 })
    const all = await budget.reserve(100)
    const answer = fetch(`http://127.0.0.1:${await serve(budget)}/`, { method: 'PUT', body: 'all of it' })
    await expect.poll(() => budget.waiting).toBe(1)
    await sleep(20)
    all.release()
    expect(await (await answer).text()).toBe('all of it')
    expect([budget.held, budget.waiting]).toEqual([0, 0])
  })

  test('a small body is not kept waiting by large ones that come slowly', async () => {
    const budget = new MemoryBudget({
      bytes: 2000,
      mostWaiting: 20,
      patience: 20_000,
      small: { largest: 100, bytes: 200 },
    })
    const port = await serve(budget)
    for (let client = 0; client < 10; client++) {
      const socket = connect(port, '127.0.0.1').on('error', () => {})
      onTestFinished(() => void socket.destroy())
      socket.write('PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\nbegun')
    }
    await expect.poll(() => budget.waiting).toBeGreaterThan(0)
    const begun = performance.now()
    expect(await (await fetch(`http://127.0.0.1:${port}/`, { method: 'PUT', body: '{}' })).text()).toBe('{}')
    expect(performance.now() - begun).toBeLessThan(1000)
    expect(budget.waiting).toBeGreaterThan(0)
  })

  test('a client that leaves after it has sent its whole body leaves the line', async () => {
    const budget = new MemoryBudget({ bytes: 100, mostWaiting: 3, patience: 5000 })
    const all = await budget.reserve(100)
    const leaving = new AbortController()
    const url = `http://127.0.0.1:${await serve(budget)}/`
    const answer = fetch(url, { method: 'PUT', body: 'all of it', signal: leaving.signal })
    await expect.poll(() => budget.waiting).toBe(1)
    leaving.abort()
    await expect(answer).rejects.toThrow()
    await expect.poll(() => budget.waiting).toBe(0)
    all.release()
  })
})
