import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer, type IncomingHttpHeaders, type ServerHttp2Stream } from 'node:http2'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { CriError, createCriClient, criUnimplemented } from '../../../src/clients/containerd/cri.ts'

type Answer = (stream: ServerHttp2Stream) => void

const failing = (code: number, message: string): Answer => {
  // Sends a failure without a body, which has headers only.
  return (stream) => stream.respond({ 'grpc-status': code, 'grpc-message': message }, { endStream: true })
}

const succeeding: Answer = (stream) => {
  stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true })
  stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }))
  stream.end(Buffer.from([0, 0, 0, 0, 0]))
}

/** Serves a runtime that gives one answer to every request, and records the requests. */
async function runtime(answer: Answer) {
  const folder = await mkdtemp(join(tmpdir(), 'mirror-cri-'))
  const requests: { headers: IncomingHttpHeaders; body: Buffer }[] = []
  const server = createServer()
  server.on('stream', (stream, headers) => {
    const chunks: Buffer[] = []
    stream.on('data', (chunk: Buffer) => chunks.push(chunk))
    stream.on('end', () => {
      requests.push({ headers, body: Buffer.concat(chunks) })
      answer(stream)
    })
  })
  const socket = join(folder, 'socket')
  server.listen(socket)
  await once(server, 'listening')
  onTestFinished(async () => {
    server.close()
    await rm(folder, { recursive: true, force: true })
  })
  return { socket, asked: requests }
}

describe('the CRI client', () => {
  test('pulls an image by name, in gRPC', async () => {
    const { socket, asked: requests } = await runtime(succeeding)
    const image = `docker.io/library/${'a'.repeat(200)}:1`
    await createCriClient(socket, 5000).pullImage(image)
    await createCriClient(socket, 5000).removeImage('a')
    expect(requests.map(({ headers }) => headers[':path'])).toEqual([
      '/runtime.v1.ImageService/PullImage',
      '/runtime.v1.ImageService/RemoveImage',
    ])
    expect(requests[0]!.headers).toMatchObject({
      ':method': 'POST',
      'content-type': 'application/grpc',
      te: 'trailers',
    })
    // Compares flag and length, then PullImageRequest.image and ImageSpec.image. A length over 127 takes two bytes.
    expect(requests[1]!.body).toEqual(Buffer.from([0, 0, 0, 0, 5, 0x0a, 3, 0x0a, 1, 0x61]))
    const length = image.length
    expect(requests[0]!.body.subarray(5)).toEqual(
      Buffer.concat([
        Buffer.from([0x0a, ((length + 3) & 0x7f) | 0x80, (length + 3) >> 7, 0x0a, (length & 0x7f) | 0x80, length >> 7]),
        Buffer.from(image),
      ]),
    )
  })

  test.each([
    [2, 'failed%20to pull: 100%25', 'failed to pull: 100%'],
    [5, '100% broken', '100% broken'],
    [criUnimplemented, 'unknown service', 'unknown service'],
  ])('fails with the runtime’s status %i and message', async (status, message, words) => {
    const { socket } = await runtime(failing(status, message))
    const error = await createCriClient(socket, 5000)
      .pullImage('a')
      .catch((error: unknown) => error)
    expect(error).toBeInstanceOf(CriError)
    expect(error).toMatchObject({ status, message: words })
  })

  test('returns the info map of the response, whatever fields surround it', async () => {
    const text = 'x'.repeat(300)
    const entry = (key: string, value: string) => {
      const length = Buffer.from([(value.length & 0x7f) | 0x80, value.length >> 7])
      const body = Buffer.concat([
        Buffer.from([0x0a, key.length]),
        Buffer.from(key),
        Buffer.from([0x12]),
        length,
        Buffer.from(value),
      ])
      return Buffer.concat([Buffer.from([0x12, (body.length & 0x7f) | 0x80, body.length >> 7]), body])
    }
    // Surrounds the info by a field with another message and a number.
    const message = Buffer.concat([
      Buffer.from([0x0a, 2, 0x08, 1]),
      entry('config', text),
      Buffer.from([0x18, 0xac, 2]),
    ])
    const { socket, asked: requests } = await runtime((stream) => {
      stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true })
      stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }))
      const head = Buffer.alloc(5)
      head.writeUInt32BE(message.length, 1)
      stream.end(Buffer.concat([head, message]))
    })
    expect(await createCriClient(socket, 5000).getInfo()).toEqual({ config: text })
    expect(requests[0]!.headers[':path']).toBe('/runtime.v1.RuntimeService/Status')
    expect(requests[0]!.body).toEqual(Buffer.from([0, 0, 0, 0, 2, 0x08, 1]))
  })

  test('times out', async () => {
    const { socket } = await runtime(() => {})
    await expect(createCriClient(socket, 50).pullImage('a')).rejects.toMatchObject({ status: 4 })
  })

  test('fails with the system error of a socket without a listener', async () => {
    await expect(createCriClient('/nowhere/socket', 5000).pullImage('a')).rejects.toMatchObject({ code: 'ENOENT' })
  })
})
