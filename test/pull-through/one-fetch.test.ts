import { describe, expect, test } from 'vitest'
import { createDeferred } from '../../src/lib/async.ts'
import { expectContent, expectError, expectNoContent } from '../support/expect-content.ts'
import { cutAt, hang, heldAt, late, slow, status } from '../support/faults.ts'
import { open } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { noise } from '../support/noise.ts'
import { app, startScene } from '../support/scene.ts'
import { anyBlob, anyManifest } from '../support/upstream.ts'

const MB = 1_000_000
const times = (count: number) => Array.from({ length: count })
const big = (size: number) => makeImage({ layers: [noise(size)] })

describe('concurrent clients', () => {
  test('of one uncached 5 MB blob cost one fetch, and all get their first byte together', async () => {
    const { upstream, mirror, layer } = await startScene({ image: big(5 * MB) })
    const began = createDeferred()
    // Sends the second half when all clients have a byte of the first; a wait for the whole blob would never end.
    upstream.on(anyBlob, heldAt(2.5 * MB, began.promise))
    let missing = 20
    const onFirstByte = () => {
      if ((missing -= 1) === 0) began.resolve()
    }
    const answers = await Promise.all(times(20).map(() => mirror.get(`${app}/blobs/${layer}`, { onFirstByte })))
    for (const answer of answers) expectContent(answer, layer)
    expect(upstream.count(anyBlob)).toBe(1)

    // Polls, because a client has the last byte before the mirror counts it.
    const counted = async () => (await mirror.status()).cache
    const all = { misses: 20, collapsed: 19, bytesFromUpstream: 5 * MB, bytesSaved: 19 * 5 * MB }
    await expect.poll(counted).toMatchObject(all)
  })

  test('that come late join the download and get the whole blob', async () => {
    const { upstream, mirror, layer } = await startScene({ image: big(MB) })
    upstream.on(anyBlob, slow(2 * MB))
    const first = mirror.get(`${app}/blobs/${layer}`)
    const early = await open(mirror.url, `${app}/blobs/${layer}`)
    await new Promise((resolve) => early.once('data', resolve))
    const late = await mirror.get(`${app}/blobs/${layer}`)
    early.destroy()
    expectContent(late, layer)
    expect(late.headers['cache-status']).toBe('mirror; fwd=miss; collapsed')
    expectContent(await first, layer)
    expect(upstream.count(anyBlob)).toBe(1)
  })

  test('of one uncached manifest cost one fetch, by tag and by digest', async () => {
    const { upstream, mirror, image } = await startScene()
    upstream.on(anyManifest, late(100))
    for (const reference of [image.digest, 'v1']) {
      const before = upstream.count(anyManifest)
      const answers = await Promise.all(times(20).map(() => mirror.get(`${app}/manifests/${reference}`)))
      for (const answer of answers) expectContent(answer, image.digest)
      expect(upstream.count(anyManifest) - before).toBe(1)
    }
  })

  test('of many blobs cause no warning of Node.js', async () => {
    const layers = times(12).map((_, seed) => noise(50_000, seed + 1))
    const { upstream, mirror, image } = await startScene({ image: makeImage({ layers }) })
    upstream.on(anyBlob, late(200))
    const warnings: Error[] = []
    const onWarning = (warning: Error) => void warnings.push(warning)
    process.on('warning', onWarning)
    try {
      const answers = await Promise.all(image.layers.map((digest) => mirror.get(`${app}/blobs/${digest}`)))
      expect(answers.map(({ status }) => status)).toEqual(layers.map(() => 200))
    } finally {
      process.off('warning', onWarning)
    }
    expect(warnings).toEqual([])
  })
})

describe('a failure reaches every waiting client, and the next request succeeds', () => {
  test('when the body breaks for good', async () => {
    const { upstream, mirror, layer } = await startScene()
    upstream.on(anyBlob, cutAt(50_000))
    const answers = await Promise.all(times(10).map(() => mirror.get(`${app}/blobs/${layer}`)))
    for (const answer of answers) expectNoContent(answer)
    upstream.heal()
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
  })

  test('when the upstream refuses the request', async () => {
    const { upstream, mirror, layer, image } = await startScene()
    upstream.on({}, async (exchange) => {
      await late(50)(exchange)
    })
    upstream.on({ path: /\/(blobs|manifests)\// }, status(503))
    const blobs = times(10).map(() => mirror.get(`${app}/blobs/${layer}`))
    const manifests = times(10).map(() => mirror.get(`${app}/manifests/${image.digest}`))
    for (const answer of await Promise.all([...blobs, ...manifests])) expectError(answer, [502, 503, 504])
  })

  test('when the upstream does not respond', async () => {
    const { upstream, mirror, layer } = await startScene({ cache: { timeouts: { headers: 200 } } })
    upstream.on(anyBlob, hang)
    const answers = await Promise.all(times(10).map(() => mirror.get(`${app}/blobs/${layer}`)))
    for (const answer of answers) expectError(answer, [502, 503, 504])
    upstream.heal()
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
  })
})

describe('clients that leave or are slow', () => {
  test('a client that leaves after a tenth of a blob does not end the download, and the next client needs no upstream', async () => {
    const { upstream, mirror, layer } = await startScene({ image: big(5 * MB) })
    upstream.on(anyBlob, slow(10 * MB))
    const response = await open(mirror.url, `${app}/blobs/${layer}`)
    let got = 0
    for await (const chunk of response as AsyncIterable<Buffer>) {
      got += chunk.length
      if (got >= MB / 2) break
    }
    expect(got).toBeLessThan(4 * MB)
    await expect.poll(async () => (await mirror.status()).storage.blobs).toBe(1)
    await upstream.stop()
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    expect(upstream.count(anyBlob)).toBe(1)
  })

  test('a client that leaves before the first byte does not end the download', async () => {
    const { upstream, mirror, layer } = await startScene()
    upstream.on(anyBlob, late(200))
    const gone = new AbortController()
    const left = mirror.get(`${app}/blobs/${layer}`, { signal: gone.signal }).catch(() => 'left')
    await expect.poll(() => upstream.count(anyBlob)).toBe(1)
    gone.abort()
    expect(await left).toBe('left')
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    expect(upstream.count(anyBlob)).toBe(1)
  })

  test('a client that reads nothing does not delay others, and is cut off after the idle timeout', async () => {
    const { upstream, mirror, layer } = await startScene({ image: big(20 * MB), cache: { timeouts: { idle: 500 } } })
    const stuck = await open(mirror.url, `${app}/blobs/${layer}`)
    const closed = new Promise((resolve) => stuck.once('close', resolve))
    const answers = await Promise.all(times(5).map(() => mirror.get(`${app}/blobs/${layer}`)))
    for (const answer of answers) expectContent(answer, layer)
    expect(upstream.count(anyBlob)).toBe(1)

    // Checks that the client was disconnected while it slept: it only gets the bytes that the kernel had accepted.
    await new Promise((resolve) => setTimeout(resolve, 1500))
    let got = 0
    stuck.on('data', (chunk: Buffer) => (got += chunk.length)).on('error', () => {})
    await closed
    expect(stuck.complete).toBe(false)
    expect(got).toBeLessThan(20 * MB)
  })

  test('a slow client gets the whole blob, long after the end of the download', async () => {
    const { upstream, mirror, layer } = await startScene({ image: big(3 * MB) })
    const response = await open(mirror.url, `${app}/blobs/${layer}`)
    const chunks: Buffer[] = []
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    for await (const chunk of response as AsyncIterable<Buffer>) {
      chunks.push(chunk)
      if (chunks.length % 8 === 0) await new Promise((resolve) => setTimeout(resolve, 20))
    }
    const { statusCode, headers, complete } = response
    expectContent(
      { status: statusCode!, headers, complete, body: Buffer.concat(chunks), firstByteAt: undefined },
      layer,
    )
    expect(upstream.count(anyBlob)).toBe(1)
  })
})
