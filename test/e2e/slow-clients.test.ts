import { readdir } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
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

/** Sends the text, then a byte a second; resolves with how long the server bore it, ms. */
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

/** A minute of clients that leave at random: whether everyone else got every byte, and no file or socket stays open. */
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

const many = <T>(count: number, each: () => Promise<T>) => Promise.all(Array.from({ length: count }, each))

test('clients that send a byte a second are shown out, and nobody else notices them', async () => {
  const upstream = await startUpstream()
  const mirror = await startMirrorProcess({ upstreams: { 'docker.io': upstream.url } })
  const done = new AbortController()
  const pings: number[] = []
  const pinging = (async () => {
    while (!done.signal.aborted) {
      const begun = performance.now()
      expect((await get(mirror.url, '/v2/')).status).toBe(200)
      pings.push(performance.now() - begun)
      await sleep(50)
    }
  })()
  const body = `PATCH ${app}/blobs/uploads/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n`
  const [headers, bodies] = await Promise.all([
    many(500, () => drip(mirror.url, 'GET /v2/ HTTP/1.1\r\nHost: localhost\r\nX-Slow: ')),
    many(50, () => drip(mirror.url, body)),
  ])
  done.abort()
  await pinging
  expect(Math.max(...headers)).toBeLessThanOrEqual(15_000)
  expect(Math.max(...bodies)).toBeLessThanOrEqual(40_000)
  const p99 = pings.toSorted((a, b) => a - b)[Math.floor(pings.length * 0.99)]!
  expect(p99).toBeLessThanOrEqual(100)
})

test(
  'a download at 100 kB/s for 330 s finishes, be it the upstream or the client that is slow; and a minute of clients that leave at random does no harm',
  { timeout: 420_000 },
  async () => {
    const content = noise(33_000_000)
    const image = makeImage({ layers: [content] })
    const other = makeImage({ layers: [noise(33_000_000, 1)] })
    const upstream = await startUpstream({ images: { 'library/app': { v1: image }, 'library/other': { v1: other } } })
    const mirror = await startMirrorProcess({ upstreams: { 'docker.io': upstream.url } })

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
    expect(await Promise.all([slowUpstream(), slowClient(), leaveAtRandom()])).toEqual([true, true, true])
  },
)
