import { spawnSync } from 'node:child_process'
import { open, readdir, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { connect, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, onTestFinished, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import type { ByteRange } from '../../src/oci/headers.ts'
import type { SendBlob } from '../../src/server/send/send-blob.ts'
import { FileOpenBlob } from '../../src/store/file-blob-store.ts'
import { get, open as openAnswer } from '../support/get.ts'
import { noise } from '../support/noise.ts'
import { rawGet, rawHttp } from '../support/raw-http.ts'
import { temporaryFolder } from '../support/store/store.ts'

interface Sending {
  readonly url: string
  /** The outcome of each transfer, in order: undefined or its error. */
  readonly ends: unknown[]
  /** The paths of requests, in order. */
  readonly begun: string[]
  /** The paths of requests whose blob was read through this process. */
  readonly readFor: Set<string>
}

/** Tests the contract of functions that send a stored blob. `create`: its argument is the idle timeout of clients, ms. */
export function sendBlobContract(name: string, create: (idle: number) => Promise<SendBlob>): void {
  const bytes = noise(7_000_001)

  /** Serves the blob, or a part of it, at every path; `?first=…&last=…` is the part. */
  async function serve(content: Buffer = bytes, size = content.length, idle = 10_000): Promise<Sending> {
    const sendBlob = await create(idle)
    const path = join(await temporaryFolder(), 'blob')
    await writeFile(path, content)
    // Drops the file from the page cache, where the system can.
    spawnSync('dd', [`if=${path}`, 'iflag=nocache', 'count=0'])
    const ends: unknown[] = []
    const begun: string[] = []
    const readFor = new Set<string>()
    const server = createServer((request, response) => {
      const query = new URL(request.url!, 'http://localhost').searchParams
      const range: ByteRange = { start: Number(query.get('first') ?? 0), end: Number(query.get('last') ?? size - 1) }
      const gone = new AbortController()
      response.once('close', () => gone.abort(new Error('the client is gone')))
      void (async () => {
        begun.push(request.url!)
        const blob = new FileOpenBlob(computeDigest(content), size, await open(path))
        const read = blob.read.bind(blob)
        blob.read = (...place) => {
          readFor.add(request.url!)
          return read(...place)
        }
        response.writeHead(200, { 'content-length': range.end - range.start + 1 })
        try {
          await sendBlob(response, blob, range, gone.signal)
          response.end()
          ends.push(undefined)
        } catch (error) {
          response.destroy()
          ends.push(error)
        } finally {
          await blob.close()
        }
      })()
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    onTestFinished(async () => {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    })
    return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, ends, begun, readFor }
  }

  describe(name, () => {
    test('sends every byte of a blob from disk or from memory', async () => {
      const { url, ends } = await serve()
      for (const _ of ['cold', 'warm']) {
        const answer = await get(url, '/')
        expect(answer.complete).toBe(true)
        expect(answer.body.equals(bytes)).toBe(true)
      }
      expect(ends).toEqual([undefined, undefined])
    })

    test.each([
      [0, 0],
      [1, 1],
      [7_000_000, 7_000_000],
      [0, 65_535],
      [1_048_575, 1_048_576],
      [123_457, 6_543_210],
    ])('sends the bytes %i to %i and no others', async (first, last) => {
      const { url } = await serve()
      const answer = await get(url, `/?first=${first}&last=${last}`)
      expect(answer.complete).toBe(true)
      expect(answer.body.equals(bytes.subarray(first, last + 1))).toBe(true)
    })

    test('sends the requested part to each of many concurrent clients', async () => {
      const { url } = await serve()
      const right = await Promise.all(
        Array.from({ length: 30 }, async (_, at) => {
          const first = at * 1000
          const { body, complete } = await get(url, `/?first=${first}&last=${6_999_999 - at}`)
          return complete && body.equals(bytes.subarray(first, 7_000_000 - at))
        }),
      )
      expect(right).toEqual(Array(30).fill(true))
    })

    test('leaves the connection usable for the next requests, also for pipelined ones', async () => {
      const { url } = await serve()
      const ask = (first: number, last: number) =>
        `GET /?first=${first}&last=${last} HTTP/1.1\r\nHost: localhost\r\n\r\n`
      const { text } = await rawHttp(url, ask(0, 3_000_000) + ask(5, 4_000_000) + rawGet('/?first=7&last=9'))
      const answers = text.split('HTTP/1.1 200 OK\r\n').slice(1)
      const bodies = answers.map((answer) => Buffer.from(answer.slice(answer.indexOf('\r\n\r\n') + 4), 'latin1'))
      const asked = [bytes.subarray(0, 3_000_001), bytes.subarray(5, 4_000_001), bytes.subarray(7, 10)]
      expect(bodies.map((body, at) => body.equals(asked[at]!))).toEqual([true, true, true])
    })

    test('waits for a slow client while it makes progress', async () => {
      const { url, ends } = await serve()
      const response = await openAnswer(url, '/')
      const chunks: Buffer[] = []
      for await (const chunk of response as AsyncIterable<Buffer>) {
        chunks.push(chunk)
        if (chunks.length % 10 === 0) await sleep(20)
      }
      expect(Buffer.concat(chunks).equals(bytes)).toBe(true)
      expect(ends).toEqual([undefined])
    })

    test('reads nothing for a response that waits behind another on the connection', async () => {
      const { url, ends, begun, readFor } = await serve()
      const { hostname, port } = new URL(url)
      const ahead = Array.from({ length: 20 }, (_, index) => `/${index}?last=999`)
      const socket = connect(Number(port), hostname)
      onTestFinished(() => void socket.destroy())
      socket.pause()
      socket.write(['/', ...ahead].map((path) => `GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`).join(''))
      await expect.poll(() => begun.length).toBe(21)
      await sleep(100)
      expect([...readFor].filter((path) => path !== '/')).toEqual([])

      let taken = 0
      socket.on('data', (chunk: Buffer) => (taken += chunk.length)).resume()
      await expect.poll(() => ends).toEqual(['/', ...ahead].map(() => undefined))
      await expect.poll(() => taken).toBeGreaterThan(bytes.length + 20 * 1000)
    })

    test('disconnects a client that reads nothing', async () => {
      const { url, ends } = await serve(noise(30_000_000), 30_000_000, 300)
      const response = await openAnswer(url, '/')
      await expect.poll(() => ends).toEqual([expect.any(Error)])
      response.destroy()
    })

    test('ends when the client disconnects, before the first byte and later, and leaves no file open', async () => {
      const { url, ends } = await serve(noise(30_000_000))
      const files = async () => (await readdir('/proc/self/fd')).length
      const before = process.platform === 'linux' ? await files() : 0
      const leaveAfter = async (bytesTaken: number) => {
        const { hostname, port } = new URL(url)
        const socket = connect(Number(port), hostname, () => socket.write(rawGet('/')))
        socket.on('error', () => {})
        let taken = 0
        await new Promise<void>((resolve) => {
          if (bytesTaken === 0) return socket.once('connect', resolve)
          socket.on('data', (chunk: Buffer) => (taken += chunk.length) >= bytesTaken && resolve())
        })
        socket.destroy()
      }
      for (const taken of [0, 1, 100_000, 5_000_000, 20_000_000]) await leaveAfter(taken)
      await expect.poll(() => ends.length).toBeGreaterThanOrEqual(4)
      expect(ends.filter((end) => end === undefined)).toEqual([])
      if (process.platform === 'linux') await expect.poll(files).toBeLessThanOrEqual(before)
    })

    test('fails when a file is shorter than its blob, instead of sending a response that seems complete', async () => {
      const { url, ends } = await serve(bytes.subarray(0, 2_000_000), 2_500_000)
      const answer = await get(url, '/')
      expect(answer.complete).toBe(false)
      expect(answer.body.length).toBeLessThanOrEqual(2_000_000)
      expect(ends).toEqual([expect.any(Error)])
    })
  })
}
