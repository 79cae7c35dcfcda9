import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { readdir } from 'node:fs/promises'
import { request, type IncomingMessage } from 'node:http'
import { connect, type Socket } from 'node:net'
import { pipeline } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { comeAndGo } from '../support/come-and-go.ts'
import { slow } from '../support/faults.ts'
import { get, open } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { startMirrorProcess } from '../support/mirror-process.ts'
import { noise } from '../support/noise.ts'
import { pull } from '../support/pull.ts'
import { app } from '../support/scene.ts'
import { anyBlob, startUpstream } from '../support/upstream.ts'

/** Sends the text, then a byte a second; resolves with the time until the server closes the connection, in ms. */
function drip(url: string, text: string): Promise<number> {
  const { hostname, port } = new URL(url)
  return new Promise((resolve) => {
    const begun = performance.now()
    const socket: Socket = connect(Number(port), hostname, () => socket.write(text))
    const timer = setInterval(() => socket.write('a'), 1000)
    socket.on('error', () => {})
    socket.resume()
    socket.once('end', () => socket.destroy())
    socket.once('close', () => {
      clearInterval(timer)
      resolve(performance.now() - begun)
    })
  })
}

/** Lets clients leave at random for a minute; the others must get every byte, and no file or socket may stay open. */
async function leaveAtRandom(): Promise<boolean> {
  const layers = [300, 300_000, 3_000_000, 20_000_000].map((size, seed) => noise(size, seed))
  const image = makeImage({ layers })
  const upstream = await startUpstream({ images: { 'library/app': { v1: image } } })
  const mirror = await startMirrorProcess({ upstreams: { 'docker.io': upstream.url } })
  const descriptors = async () => (await readdir(`/proc/${mirror.pid}/fd`)).length
  const visits = layers.map((content, at) => ({ path: `${app}/blobs/${image.layers[at]!}`, content }))
  for (const { path, content } of visits) expect((await pull(mirror.url, path, content)).right).toBe(true)
  await sleep(1000)
  const before = await descriptors()

  const seen = await comeAndGo(mirror.url, visits, { clients: 24, milliseconds: 60_000 })
  expect(seen).toMatchObject({ wrong: 0, broken: 0 })
  expect(Math.min(seen.whole, seen.left)).toBeGreaterThan(100)
  await expect.poll(descriptors, { timeout: 10_000 }).toBeLessThanOrEqual(before)
  expect((await mirror.status()).cache.errors).toBe(0)
  return true
}

/**
 * Pushes the part `times` times as one blob, by one PATCH without a length and a PUT. The registry compares the digest
 * with its own.
 */
async function pushAtPace(url: string, name: string, part: Buffer, times: number, bytesPerSecond: number) {
  const hash = createHash('sha256')
  const begun = await get(url, `/v2/${name}/blobs/uploads/`, { method: 'POST' })
  const location = begun.headers.location!
  const chunk = Math.min(part.length, 1_000_000, Math.ceil(bytesPerSecond / 10))
  async function* paced(): AsyncGenerator<Buffer> {
    const start = performance.now()
    let sent = 0
    for (let time = 0; time < times; time++)
      for (let at = 0; at < part.length; at += chunk) {
        const bytes = part.subarray(at, at + chunk)
        hash.update(bytes)
        yield bytes
        sent += bytes.length
        await sleep(Math.max(0, start + (sent / bytesPerSecond) * 1000 - performance.now()))
      }
  }
  const { hostname, port } = new URL(url)
  const patch = request({ hostname, port, path: location, method: 'PATCH', agent: false })
  const answered = once(patch, 'response')
  await pipeline(paced(), patch)
  const [patched] = (await answered) as [IncomingMessage]
  patched.resume()
  expect(patched.statusCode).toBe(202)
  const digest = `sha256:${hash.digest('hex')}`
  const { status } = await get(url, `${location}?digest=${digest}`, { method: 'PUT' })
  return { digest, status }
}

const many = <T>(count: number, each: () => Promise<T>) => Promise.all(Array.from({ length: count }, each))

test('both ports disconnect clients that send a byte a second, and other clients do not notice', async () => {
  const mirror = await startMirrorProcess({ upstreams: {}, registry: true })
  const urls = [mirror.url, mirror.registryUrl!]
  const done = new AbortController()
  const pings: number[] = []
  const ping = async (url: string) => {
    while (!done.signal.aborted) {
      const begun = performance.now()
      expect((await get(url, '/v2/')).status).toBe(200)
      pings.push(performance.now() - begun)
      await sleep(50)
    }
  }
  const pinging = Promise.all(urls.map(ping))
  const dripHeaders = (url: string) => drip(url, 'GET /v2/ HTTP/1.1\r\nHost: localhost\r\nX-Slow: ')
  const dripBody = async (url: string) => {
    // Sends the body to the cache too, which accepts no pushes but has to read the bodies.
    const begun = await get(url, `${app}/blobs/uploads/`, { method: 'POST' })
    const target = begun.headers.location ?? `${app}/blobs/uploads/x`
    return drip(url, `PATCH ${target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n`)
  }
  const [headers, bodies] = await Promise.all([
    Promise.all(urls.map((url) => many(500, () => dripHeaders(url)))),
    Promise.all(urls.map((url) => many(50, () => dripBody(url)))),
  ])
  done.abort()
  await pinging
  expect(Math.max(...headers.flat())).toBeLessThanOrEqual(15_000)
  expect(Math.max(...bodies.flat())).toBeLessThanOrEqual(40_000)
  const p99 = pings.toSorted((a, b) => a - b)[Math.floor(pings.length * 0.99)]!
  expect(p99).toBeLessThanOrEqual(100)
})

test(
  'downloads from a slow upstream and by a slow client, a slow PATCH and a push of 3 GB finish after 300 s and more, beside clients that leave at random',
  { timeout: 480_000 },
  async () => {
    const content = noise(33_000_000)
    const image = makeImage({ layers: [content] })
    const other = makeImage({ layers: [noise(33_000_000, 1)] })
    const upstream = await startUpstream({ images: { 'library/app': { v1: image }, 'library/other': { v1: other } } })
    const mirror = await startMirrorProcess({ upstreams: { 'docker.io': upstream.url } })
    // Starts a second mirror to measure its memory, because the memory of the first one includes its cache.
    const registry = await startMirrorProcess({ upstreams: {}, registry: true })

    const slowUpstream = async () => {
      upstream.on({ ...anyBlob, path: /library\/app\/blobs/ }, slow(100_000))
      return (await pull(mirror.url, `${app}/blobs/${image.layers[0]!}`, content)).right
    }
    const slowClient = async () => {
      const response = await open(mirror.url, `/v2/library/other/blobs/${other.layers[0]!}`)
      const begun = performance.now()
      let got = 0
      for await (const chunk of response as AsyncIterable<Buffer>) {
        got += chunk.length
        await sleep(Math.max(0, begun + got / 100 - performance.now()))
      }
      return response.complete && got === content.length
    }
    const slowPatch = async () => {
      const url = registry.registryUrl!
      const { digest, status } = await pushAtPace(url, 'slow', content, 1, 100_000)
      const pulled = await pull(url, `/v2/slow/blobs/${digest}`, content)
      return status === 201 && pulled.right
    }
    const largePush = async () => {
      const url = registry.registryUrl!
      const part = noise(10_000_000, 2)
      await pushAtPace(url, 'large', part, 5, 50_000_000)
      const before = await registry.memory('VmRSS')
      const { digest, status } = await pushAtPace(url, 'large', part, 300, 10_000_000)
      const growth = (await registry.memory('VmHWM')) - before
      const head = await get(url, `/v2/large/blobs/${digest}`, { method: 'HEAD' })
      return { status, length: head.headers['content-length'], isFlat: growth <= 50 * 2 ** 20 }
    }
    expect(await Promise.all([slowUpstream(), slowClient(), slowPatch(), largePush(), leaveAtRandom()])).toEqual([
      true,
      true,
      true,
      { status: 201, length: '3000000000', isFlat: true },
      true,
    ])
  },
)
