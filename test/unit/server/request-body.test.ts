import type { IncomingMessage, ServerResponse } from 'node:http'
import { connect } from 'node:net'
import { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { MemoryBudget } from '../../../src/lib/memory.ts'
import { readBody, withSmallBody } from '../../../src/server/request-body.ts'
import { leavingClients } from '../../support/leaving-clients.ts'
import { serve } from '../../support/upstream/serve.ts'

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'setInterval', 'clearInterval', 'performance'] })
})
afterEach(() => {
  vi.useRealTimers()
})

/** Reads a body that brings this number of bytes at each of these moments, ms; the reader takes 10 ms for each piece. */
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

test('a client that sends a byte now and then is disconnected, whatever the reader does at that moment', async () => {
  const { body, result } = read([95, 195, 295, 395], 1)
  await vi.advanceTimersByTimeAsync(200)
  expect(body.destroyed).toBe(true)
  expect(await result).toBe('the client stopped sending')
})

test('a client that sends enough bytes within each idle time may take any total time', async () => {
  const { body, result } = read([95, 195, 295, 395], 1024)
  setTimeout(() => body.push(null), 480)
  await vi.advanceTimersByTimeAsync(500)
  expect(await result).toBe('whole')
})

describe('while the memory for bodies is full', () => {
  beforeEach(() => void vi.useRealTimers())

  // Exceeds the duration of the test, so that no timeout makes room.
  const patience = 120_000

  /** Accepts small bodies after a pause, like that of a password check. */
  function takeBodies(budget: MemoryBudget) {
    const answer = async (request: IncomingMessage, response: ServerResponse) => {
      await sleep(20)
      const bytes = await withSmallBody(request, { limit: 1000, idle: patience, budget }, (body) =>
        body.toString(),
      ).catch((error: unknown) => (error instanceof Error ? error.message : String(error)))
      response.end(bytes)
    }
    return serve((request, response) => void answer(request, response))
  }

  test('a body that has arrived completely waits for its memory, and is read then', async () => {
    const budget = new MemoryBudget({ bytes: 100, maxWaiting: 3, maxWaitMs: patience })
    const all = await budget.reserve(100)
    const { url } = await takeBodies(budget)
    const answer = fetch(url, { method: 'PUT', body: 'all of it' })
    await expect.poll(() => budget.waiting).toBe(1)
    await sleep(20)
    all.release()
    expect(await (await answer).text()).toBe('all of it')
    expect([budget.held, budget.waiting]).toEqual([0, 0])
  })

  test('a small body does not wait for large ones that arrive slowly', async () => {
    const small = { maxBytes: 100, bytes: 200 }
    const budget = new MemoryBudget({ bytes: 2000, maxWaiting: 20, maxWaitMs: patience, pollMs: patience, small })
    const { url, port } = await takeBodies(budget)
    for (let client = 0; client < 10; client++) {
      const socket = connect(port, '127.0.0.1').on('error', () => {})
      onTestFinished(() => void socket.destroy())
      socket.write('PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\nbegun')
    }
    // Keeps one body unfinished in memory, so that the others still wait when the small one has been read.
    await expect.poll(() => budget.waiting).toBe(9)
    expect(await (await fetch(url, { method: 'PUT', body: '{}' })).text()).toBe('{}')
    expect(budget.waiting).toBe(9)
  })

  test('a client that disconnects after it sent its whole body leaves the queue', async () => {
    const budget = new MemoryBudget({ bytes: 100, maxWaiting: 3, maxWaitMs: patience })
    const all = await budget.reserve(100)
    const { signal, leave } = leavingClients()
    const { url } = await takeBodies(budget)
    const answer = fetch(url, { method: 'PUT', body: 'all of it', signal })
    await expect.poll(() => budget.waiting).toBe(1)
    leave()
    await expect(answer).rejects.toThrow()
    await expect.poll(() => budget.waiting).toBe(0)
    all.release()
  })
})
