import { createServer, connect, type AddressInfo, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { expect, onTestFinished, test } from 'vitest'
import { createExecStream } from '../../../src/docker/connection.ts'

/** Creates the stream that the engine attaches, and returns both ends. */
async function attach() {
  const server = createServer({ allowHalfOpen: true })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const arrived = new Promise<Socket>((resolve) => server.once('connection', resolve))
  const attached = connect({ port: (server.address() as AddressInfo).port, host: '127.0.0.1', allowHalfOpen: true })
  const engine = await arrived
  onTestFinished(() => {
    engine.destroy()
    attached.destroy()
    server.close()
  })
  return { engine, stream: createExecStream(attached) }
}

function frame(of: 1 | 2, text: string | Buffer): Buffer {
  const header = Buffer.alloc(8)
  header[0] = of
  header.writeUInt32BE(Buffer.byteLength(text), 4)
  return Buffer.concat([header, Buffer.from(text)])
}

test('output of a program is read without frames, however the network splits them', async () => {
  const { engine, stream } = await attach()
  const bytes = Buffer.concat([frame(1, 'one '), frame(1, ''), frame(1, 'two '), frame(1, 'three')])
  engine.setNoDelay()
  for (const byte of bytes) {
    engine.write(Buffer.of(byte))
    await sleep(1)
  }
  engine.end()
  expect(Buffer.concat(await stream.toArray()).toString()).toBe('one two three')
})

test('large output of a program arrives complete at the pace of the reader', async () => {
  const { engine, stream } = await attach()
  const parts = Array.from({ length: 60 }, (_, index) => Buffer.alloc(50_000, index))
  for (const part of parts) engine.write(frame(1, part))
  engine.end()
  const read: Buffer[] = []
  for await (const chunk of stream) {
    read.push(chunk as Buffer)
    if (read.length % 20 === 0) await sleep(1)
  }
  expect(Buffer.concat(read).equals(Buffer.concat(parts))).toBe(true)
})

test('input reaches the program without frames, and so does its end', async () => {
  const { engine, stream } = await attach()
  stream.end('question')
  expect(Buffer.concat(await engine.toArray()).toString()).toBe('question')
})

test('output on stderr is the error that ends the stream', async () => {
  const { engine, stream } = await attach()
  engine.end(Buffer.concat([frame(1, 'half'), frame(2, 'connect '), frame(2, 'ECONNREFUSED 127.0.0.1:5056\n')]))
  await expect(stream.toArray()).rejects.toMatchObject({
    name: 'ExecError',
    message: 'connect ECONNREFUSED 127.0.0.1:5056',
  })
})

test('a destroyed stream closes the attached connection', async () => {
  const { engine, stream } = await attach()
  const isClosed = new Promise((resolve) => engine.once('close', resolve))
  engine.resume().on('end', () => engine.end())
  stream.destroy()
  await isClosed
})
