import { lookup } from 'node:dns'
import { once } from 'node:events'
import { createServer, type AddressInfo, type Socket } from 'node:net'
import { expect, onTestFinished, test } from 'vitest'
import { createTransport } from '../../../src/upstream/transport.ts'
import { readProxies } from '../../../src/upstream/proxy.ts'
import { UpstreamError } from '../../../src/upstream/upstream.ts'

/** fullBytes is the number of bytes that are read before the upstream has to wait. */
const fullBytes = 256 * 1024

/** Requests an answer with `connection: close`, and reads it only after the upstream has ended the connection. */
async function askAndWait(length: number, end: (socket: Socket) => void) {
  const server = createServer((socket) => {
    socket.on('error', () => {})
    socket.once('data', () => {
      socket.write(`HTTP/1.1 200 OK\r\ncontent-length: ${length}\r\nconnection: close\r\n\r\n`)
      socket.write(Buffer.alloc(fullBytes), () => setTimeout(end, 100, socket))
      socket.once('close', () => server.emit('ended'))
    })
  })
  await once(server.listen(0, '127.0.0.1'), 'listening')
  const exchange = createTransport({
    host: 'registry.example',
    timeouts: { connect: 10_000, headers: 10_000, idle: 10_000 },
    guard: { isAlwaysAllowed: () => true, checkLiteral() {}, lookup, getClass: () => 'loopback' },
    proxies: readProxies({}),
    certificates: undefined,
    userAgent: 'test',
  })
  onTestFinished(async () => {
    await exchange.close()
    server.close()
  })
  const ended = once(server, 'ended')
  const url = new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`)
  const { body } = await exchange.send({ method: 'GET', url, headers: {}, pool: 'blobs' })
  await ended
  await new Promise((resolve) => setTimeout(resolve, 100))
  return body
}

test('a body whose connection was paused is whole when the connection ends with it', async () => {
  const body = await askAndWait(fullBytes, (socket) => socket.end())
  let length = 0
  for await (const chunk of body) length += chunk.length
  expect(length).toBe(fullBytes)
})

test('a connection that is reset while it is paused breaks the body, and nothing else', async () => {
  const body = await askAndWait(2 * fullBytes, (socket) => socket.resetAndDestroy())
  let length = 0
  const read = async () => {
    for await (const chunk of body) length += chunk.length
  }
  await expect(read()).rejects.toThrow(UpstreamError)
  expect(length).toBe(fullBytes)
})

test('a connection that ends too early while it is paused breaks the body', async () => {
  const body = await askAndWait(2 * fullBytes, (socket) => socket.end())
  const read = async () => {
    for await (const _ of body);
  }
  await expect(read()).rejects.toThrow(UpstreamError)
})
