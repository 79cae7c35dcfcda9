import { expect, test } from 'vitest'
import { expectContent, expectNoContent } from '../support/expect-content.ts'
import { cutAt, inTurn, otherBody, slow, stallAt, status, times } from '../support/faults.ts'
import { send, type Fault } from '../support/faulty-server.ts'
import { makeImage } from '../support/images.ts'
import { app, layerSize, startScene } from '../support/scene.ts'
import { anyBlob } from '../support/upstream.ts'

const half = layerSize / 2

test.each([
  ['ends early', cutAt(half, 'end')],
  ['is reset', cutAt(half, 'reset')],
  ['stalls', stallAt(half)],
])('a body that %s is resumed where it broke, and the client gets one complete body', async (_, fault) => {
  const { upstream, mirror, layer } = await startScene({ cache: { timeouts: { idle: 300 } } })
  upstream.on(anyBlob, times(1, fault))
  expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
  const [first, second, ...more] = upstream.requests.filter(({ path }) => path.includes('/blobs/'))
  expect(first!.headers.range).toBeUndefined()
  expect(second!.headers.range).toBe(`bytes=${half}-`)
  expect(more).toEqual([])
})

test('a body that breaks three times is still delivered', async () => {
  const { upstream, mirror, layer } = await startScene()
  upstream.on(anyBlob, times(3, cutAt(50_000)))
  expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
  expect(upstream.count(anyBlob)).toBe(4)
})

test('the first bytes are skipped when an upstream answers a Range with the whole body', async () => {
  const { upstream, mirror, layer, layerBytes } = await startScene()
  const whole: Fault = ({ response }) => send(response, { status: 200, body: layerBytes })
  upstream.on(anyBlob, inTurn(cutAt(half), whole))
  expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
})

test('an upstream that resumes at another byte than requested does not cause wrong bytes', async () => {
  const { upstream, mirror, layer, layerBytes } = await startScene()
  const elsewhere: Fault = ({ response }) =>
    send(response, {
      status: 206,
      headers: { 'content-range': `bytes 100-${layerSize - 1}/${layerSize}` },
      body: layerBytes.subarray(100),
    })
  upstream.on(anyBlob, inTurn(cutAt(half), elsewhere))
  const answer = await mirror.get(`${app}/blobs/${layer}`)
  if (answer.complete) expectContent(answer, layer)
  upstream.heal()
  expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
})

test('a blob that has another size when it is resumed fails', async () => {
  const { upstream, mirror, layer } = await startScene()
  const shorter: Fault = ({ response }) =>
    send(response, {
      status: 206,
      headers: { 'content-range': `bytes ${half}-${half + 9}/${half + 10}` },
      body: Buffer.alloc(10),
    })
  upstream.on(anyBlob, inTurn(cutAt(half), shorter, shorter, shorter, shorter))
  expectNoContent(await mirror.get(`${app}/blobs/${layer}`))
})

test.each([
  ['is cut', cutAt(50_000)],
  ['stalls', stallAt(50_000)],
])(
  'a body that %s every time is cut without an error text or an open socket, and the next request succeeds',
  async (_, fault) => {
    const { upstream, mirror, layer, layerBytes } = await startScene({ cache: { timeouts: { idle: 200 } } })
    upstream.on(anyBlob, fault)
    const answer = await mirror.get(`${app}/blobs/${layer}`)
    expect(answer).toMatchObject({ status: 200, complete: false })
    expect(answer.body.equals(layerBytes.subarray(0, answer.body.length))).toBe(true)
    expect((await mirror.status()).storage.blobs).toBe(0)
    await expect.poll(() => upstream.connections.open).toBe(0)

    upstream.heal()
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
  },
)

test('a 5xx between two parts of a body costs an attempt, not the body', async () => {
  const { upstream, mirror, layer } = await startScene()
  upstream.on(anyBlob, inTurn(cutAt(half), status(503)))
  expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
})

test('a slow body that makes progress never times out', async () => {
  const { upstream, mirror, layer } = await startScene({ cache: { timeouts: { headers: 300, idle: 300 } } })
  upstream.on(anyBlob, slow(250_000))
  expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
  expect(upstream.count(anyBlob)).toBe(1)
})

test('a body without a length is read to its end and verified', async () => {
  const { upstream, mirror, layer, layerBytes } = await startScene()
  const chunked: Fault = ({ response }) => void response.writeHead(200).end(layerBytes)
  upstream.on(anyBlob, chunked)
  expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)

  const { upstream: other, mirror: second } = await startScene()
  const wrong = Buffer.from(layerBytes)
  wrong[0]! ^= 1
  other.on(anyBlob, ({ response }) => void response.writeHead(200).end(wrong))
  expectNoContent(await second.get(`${app}/blobs/${layer}`))
})

test('an empty blob is delivered', async () => {
  const { upstream, mirror } = await startScene()
  const image = makeImage({ layers: [Buffer.alloc(0)] })
  upstream.push('library/app', 'empty', image)
  const digest = image.layers[0]!
  expectContent(await mirror.get(`${app}/blobs/${digest}`), digest)
  expectContent(await mirror.get(`${app}/blobs/${digest}`), digest)
  upstream.on(
    anyBlob,
    otherBody(() => Buffer.from('something')),
  )
  expectContent(await mirror.get(`${app}/blobs/${digest}`), digest)
})
