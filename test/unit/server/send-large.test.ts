import type { IncomingMessage, ServerResponse } from 'node:http'
import { expect, onTestFinished, test } from 'vitest'
import { clientBodies } from '../../../src/lib/body-memory.ts'
import { BudgetError } from '../../../src/lib/memory.ts'
import { ClientAbort } from '../../../src/server/connection.ts'
import { sendLarge } from '../../../src/server/respond.ts'
import { leavingClients } from '../../support/leaving-clients.ts'
import { serve } from '../../support/upstream/serve.ts'

/** Starts a server that answers with this number of bytes, or with 503. */
async function serveList(bytes: number) {
  const body = Buffer.alloc(bytes, 'a')
  const failures: unknown[] = []
  const answer = async (request: IncomingMessage, response: ServerResponse) => {
    const client = new ClientAbort(request, response)
    try {
      await sendLarge(request, response, {}, body, { idle: 5000, client })
    } catch (error) {
      failures.push(error)
      if (!client.isAborted) response.writeHead(error instanceof BudgetError ? 503 : 500).end()
    }
  }
  const { url } = await serve((request, response) => void answer(request, response))
  return { url, failures }
}

test('a large list waits while there is no memory for it, and is sent then', async () => {
  const { url } = await serveList(300_000)
  const all = await clientBodies.reserve(clientBodies.bytes)
  onTestFinished(() => all.release())
  const answer = fetch(url)
  await expect.poll(() => clientBodies.waiting).toBe(1)
  all.release()
  expect((await (await answer).arrayBuffer()).byteLength).toBe(300_000)
  await expect.poll(() => clientBodies.held).toBe(0)
})

test('a large list does not overtake bodies that wait', async () => {
  const { url } = await serveList(300_000)
  const most = await clientBodies.reserve(clientBodies.bytes - 1_000_000)
  onTestFinished(() => most.release())
  const order: string[] = []
  const first = clientBodies.reserve(2_000_000).then((held) => (order.push('first'), held))
  const answer = fetch(url).then((got) => (order.push('list'), got.arrayBuffer()))
  await expect.poll(() => clientBodies.waiting).toBe(2)
  expect(order).toEqual([])
  most.release()
  ;(await first).release()
  await answer
  expect(order).toEqual(['first', 'list'])
})

test('a client that disconnects while its list waits leaves the queue', async () => {
  const { url, failures } = await serveList(300_000)
  const all = await clientBodies.reserve(clientBodies.bytes)
  onTestFinished(() => all.release())
  const { signal, leave } = leavingClients()
  const answer = fetch(url, { signal })
  await expect.poll(() => clientBodies.waiting).toBe(1)
  leave()
  await expect(answer).rejects.toThrow()
  await expect.poll(() => clientBodies.waiting).toBe(0)
  expect(failures).toMatchObject([{ message: 'the client is gone' }])
})

test('lists wait only up to the size of the memory budget', async () => {
  const { url } = await serveList(Math.ceil(clientBodies.bytes * 0.6))
  const all = await clientBodies.reserve(clientBodies.bytes)
  onTestFinished(() => all.release())
  const { signal, leave } = leavingClients()
  const answer = fetch(url, { signal })
  await expect.poll(() => clientBodies.waiting).toBe(1)
  expect((await fetch(url)).status).toBe(503)
  leave()
  await expect(answer).rejects.toThrow()
})
