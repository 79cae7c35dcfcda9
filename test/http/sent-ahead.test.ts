import { createServer, connect, type AddressInfo, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, onTestFinished, test } from 'vitest'
import { listen } from '../../src/server/listen.ts'
import { get } from '../support/get.ts'
import { startMirrorProcess } from '../support/mirror-process.ts'
import { rawGet, rawHttp } from '../support/raw-http.ts'

const MiB = 1024 * 1024

const large = `X: ${'a'.repeat(14_000)}\r\n`
const requestFor = (path: string, extra = '') => `GET ${path} HTTP/1.1\r\nHost: localhost\r\n${extra}\r\n`

/** Sends a request that gets no answer, and this number of requests behind it. */
function sendAhead(port: number, first: string, count: number): Socket {
  const socket = connect(port, '127.0.0.1').on('error', () => {})
  onTestFinished(() => void socket.destroy())
  socket.resume()
  socket.write(requestFor(first))
  socket.write(requestFor('/behind', large).repeat(count))
  return socket
}

describe('pipelined requests', () => {
  /** Starts a server that answers all requests except /never. */
  async function serve() {
    const listener = await listen({ host: '127.0.0.1', port: 0 }, (request, response) => {
      if (request.url !== '/never') response.end(request.url)
    })
    onTestFinished(() => listener.close(0))
    return listener
  }

  test('share a memory limit: connections that exceed it are ended, and no other client is delayed', async () => {
    const { url, port } = await serve()
    const sockets = Array.from({ length: 40 }, () => sendAhead(port, '/never', 20))
    const isEnded = (socket: Socket) => socket.destroyed
    await expect.poll(() => sockets.filter(isEnded).length, { timeout: 10_000 }).toBeGreaterThan(20)
    expect(sockets.filter(isEnded).length).toBeLessThan(40)
    expect((await get(url, '/')).status).toBe(200)
    // Checks that two pipelined requests are still answered.
    const { statuses } = await rawHttp(url, requestFor('/one') + rawGet('/two'))
    expect(statuses).toEqual([200, 200])
  })

  test('return their memory when they start, and when their client disconnects', async () => {
    const { url, port } = await serve()
    for (let round = 0; round < 3; round++) {
      const sockets = Array.from({ length: 10 }, () => sendAhead(port, '/never', 20))
      await sleep(200)
      expect(sockets.filter((socket) => socket.destroyed)).toEqual([])
      for (const socket of sockets) socket.destroy()
      await sleep(100)
      for (let at = 0; at < 5; at++) {
        const { statuses } = await rawHttp(url, requestFor('/', large).repeat(90) + rawGet('/'))
        expect(statuses).toHaveLength(91)
      }
    }
  })
})

test('200 clients that pipeline 99 requests with large heads, while an upstream hangs, cost no memory for them', async () => {
  const hanging = createServer((socket) => void socket.on('error', () => {}).resume())
  await new Promise<void>((resolve) => hanging.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => void hanging.close())
  const upstreams = { 'docker.io': `http://127.0.0.1:${(hanging.address() as AddressInfo).port}` }
  const mirror = await startMirrorProcess({ upstreams })
  const port = Number(new URL(mirror.url).port)
  const before = await mirror.memory('VmRSS')
  for (let client = 0; client < 200; client++) {
    sendAhead(port, `/v2/library/app/manifests/v${client}`, 99)
    if (client % 20 === 19) await sleep(50)
  }
  await sleep(2000)
  expect((await mirror.memory('VmHWM')) - before).toBeLessThan(150 * MiB)
  expect((await mirror.get('/v2/')).status).toBe(200)
  expect(mirror.log()).not.toContain('"level":"error"')
})
