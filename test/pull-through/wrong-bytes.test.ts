import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { createDeferred } from '../../src/lib/async.ts'
import { computeDigest, type Digest } from '../../src/oci/reference.ts'
import { expectContent } from '../support/expect-content.ts'
import { corrupt, cutAt, drippingAt, htmlPage, inTurn, otherBody, slow, withByteFlipped } from '../support/faults.ts'
import { send, type Fault } from '../support/faulty-server.ts'
import { makeImage } from '../support/images.ts'
import { noise } from '../support/noise.ts'
import { parseAnswers, type RawAnswer } from '../support/parse-answers.ts'
import { rawHttp } from '../support/raw-http.ts'
import { app, layerSize as size, startScene, type Scene } from '../support/scene.ts'
import { anyBlob } from '../support/upstream.ts'

const half = size / 2

/** Resumes where the first answer broke, with other bytes. */
function resumedWith(change: (rest: Buffer) => Buffer, etag?: string): Fault {
  return inTurn(cutAt(half), ({ response, reply }) => {
    const rest = change(Buffer.from(reply.body!))
    send(response, { ...reply, body: rest, headers: { ...reply.headers, ...(etag ? { etag } : {}) } })
  })
}

const faults: [string, Fault][] = [
  ['its first byte flipped', withByteFlipped(0)],
  ['a byte in the middle flipped', corrupt],
  ['its last byte flipped', withByteFlipped(-1)],
  ['a page of the right length', htmlPage('same')],
  ['other bytes after it was resumed', resumedWith((rest) => Buffer.alloc(rest.length, 'x'))],
  ['the rest of another version after it was resumed', resumedWith((rest) => noise(rest.length, 7), '"newer"')],
  ['no length and a byte flipped', chunked(true)],
]

/** Sends the body without a length, right or with a byte flipped. */
function chunked(isWrong: boolean): Fault {
  return ({ response, reply }) => {
    const body = Buffer.from(reply.body!)
    if (isWrong) body[body.length - 1]! ^= 1
    response.writeHead(200, { 'content-type': 'application/octet-stream' }).end(body)
  }
}

const ranges = {
  'its first byte': 'bytes=0-0',
  'its beginning': 'bytes=0-999',
  'more of its beginning than is withheld': 'bytes=0-99999',
  'all but what was withheld once': `bytes=0-${size - 32 * 1024 - 1}`,
  'its middle': 'bytes=100000-199999',
  'a little of its middle': 'bytes=150000-150999',
  'its end': 'bytes=200000-',
  'its last bytes': 'bytes=-1000',
  'all of it': 'bytes=0-',
}

/** Sends all requests at once on one connection. */
async function ask(scene: Scene, ...requests: string[]): Promise<RawAnswer[]> {
  const { text, closed } = await rawHttp(scene.mirror.url, requests.join(''), 30_000)
  expect(closed, requests.join('')).toBe(true)
  return parseAnswers(text)
}

const blobOf = (digest: Digest) => `${app}/blobs/${digest}`
const get = (path: string, range = '', version = '1.1') =>
  `GET ${path} HTTP/${version}\r\nHost: localhost\r\n${range === '' ? '' : `Range: ${range}\r\n`}\r\n`
const last = 'GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'

/** forms are the ways in which a client requests a blob. Each resolves with the answers about it. */
const forms: [
  string,
  (scene: Scene, path: string) => Promise<readonly Pick<RawAnswer, 'status' | 'body' | 'complete'>[]>,
][] = [
  ['whole', async ({ mirror }, path) => [await mirror.get(path)]],
  ...Object.entries(ranges).map(([what, range]): (typeof forms)[number] => [
    `by a range: ${what}`,
    async ({ mirror }, path) => [await mirror.get(path, { headers: { range } })],
  ]),
  [
    'by a range with If-Range',
    async ({ mirror }, path) => {
      const etag = `"${path.slice(path.lastIndexOf('/') + 1)}"`
      return [await mirror.get(path, { headers: { range: 'bytes=0-99999', 'if-range': etag } })]
    },
  ],
  [
    'by two ranges in one',
    async ({ mirror }, path) => [await mirror.get(path, { headers: { range: 'bytes=0-9,20-29' } })],
  ],
  [
    'by several clients at different positions',
    ({ mirror }, path) =>
      Promise.all(
        [undefined, ...Object.values(ranges)].map((range) => mirror.get(path, range ? { headers: { range } } : {})),
      ),
  ],
  ['over HTTP/1.0', (scene, path) => ask(scene, get(path, '', '1.0'))],
  ['over HTTP/1.0 by a range', (scene, path) => ask(scene, get(path, 'bytes=0-99999', '1.0'))],
  [
    'on a connection that is used again',
    async (scene, path) => (await ask(scene, get('/v2/') + get(path, 'bytes=0-99999') + last)).slice(1, 2),
  ],
  [
    'by ranges one after the other on a connection',
    async (scene, path) => {
      const requests = ['bytes=0-99999', 'bytes=100000-199999', 'bytes=-1000'].map((range) => get(path, range))
      return (await ask(scene, ...requests, last)).slice(0, 3)
    },
  ],
]

describe('an uncached blob', () => {
  test.each(faults)(
    'with %s is never sent completely in any form, is not stored, and is correct afterwards',
    async (_, fault) => {
      // Uses another blob for each form, so that all of them are cold.
      const image = makeImage({ layers: forms.map((_, at) => noise(size, at)) })
      const scene = await startScene({ image })
      const { upstream, mirror } = scene
      for (const layer of image.layers) upstream.on({ method: 'GET', path: blobOf(layer) }, fault)
      await Promise.all(
        forms.map(async ([form, askFor], at) => {
          const answers = await askFor(scene, blobOf(image.layers[at]!))
          expect(answers.length, form).toBeGreaterThan(0)
          for (const { status, complete } of answers) expect(status >= 500 || !complete, form).toBe(true)
        }),
      )
      expect((await mirror.status()).storage.blobs).toBe(0)

      upstream.heal()
      await Promise.all(
        forms.map(async ([form, askFor], at) => {
          const layer = image.layers[at]!
          for (const { status, body, complete } of await askFor(scene, blobOf(layer))) {
            expect([status < 300, complete], form).toEqual([true, true])
            expect(image.blobs.get(layer)!.includes(body), form).toBe(true)
          }
          expectContent(await mirror.get(blobOf(layer)), layer)
        }),
      )
    },
  )
})

test('a connection whose response was cut carries no further response', async () => {
  const scene = await startScene()
  scene.upstream.on(anyBlob, corrupt)
  const path = blobOf(scene.layer)
  const answers = await ask(scene, get('/v2/'), get(path, 'bytes=0-99999'), last)
  expect(answers.map(({ status, complete }) => [status, complete])).toEqual([
    [200, true],
    [206, false],
  ])
  expect(answers[1]!.body.length).toBe(100_000 - 32 * 1024)
})

test('a response that has not begun becomes a 502, and the connection stays usable', async () => {
  const scene = await startScene()
  scene.upstream.on(anyBlob, corrupt)
  const answers = await ask(scene, get(blobOf(scene.layer), 'bytes=0-999'), last)
  expect(answers.map(({ status, complete }) => [status, complete])).toEqual([
    [502, true],
    [200, true],
  ])
})

describe('over HTTP/1.0, where a body of unknown length ends with its connection', () => {
  test('an uncached blob is sent with its length once it is verified', async () => {
    const scene = await startScene()
    scene.upstream.on(anyBlob, chunked(false))
    const [answer] = await ask(scene, get(blobOf(scene.layer), '', '1.0'))
    expect(answer).toMatchObject({ status: 200, complete: true, headers: { 'content-length': String(size) } })
    expect(answer!.body.equals(scene.layerBytes)).toBe(true)
  })

  test('a wrong blob is a 502', async () => {
    const scene = await startScene()
    scene.upstream.on(anyBlob, chunked(true))
    const [answer] = await ask(scene, get(blobOf(scene.layer), '', '1.0'))
    expect(answer).toMatchObject({ status: 502, complete: true })
  })
})

describe('a blob that is fetched over several connections', () => {
  const large = noise(1_050_000, 3)

  async function startLarge(): Promise<Scene> {
    const image = makeImage({ layers: [large] })
    const prefetch = { layers: 0, rangesPerBlob: 4, rangeBytes: 100_000, rangeMinSize: 500_000 }
    const scene = await startScene({ image, cache: { prefetch } })
    await scene.mirror.get(`${app}/manifests/v1`)
    return scene
  }

  test.each([
    ['first', 0],
    ['fourth', 300_000],
    ['last', 1_000_000],
  ])('with a flipped byte in its %s part is not sent completely to any follower', async (_, start) => {
    const scene = await startLarge()
    const { upstream, mirror, layer } = scene
    const wrong: Fault = async (exchange) => {
      const { range } = exchange.request.headers
      // Flips a byte also in the answer to a part that is too late to join, which is requested in one piece.
      if (range === undefined || range.startsWith(`bytes=${start}-`)) return withByteFlipped(5)(exchange)
      // Slows down the first part, so that others arrive before it.
      return range.startsWith('bytes=0-') ? slow(500_000)(exchange) : send(exchange.response, exchange.reply)
    }
    upstream.on(anyBlob, wrong)
    const whole = mirror.get(blobOf(layer))
    await expect.poll(() => upstream.count(anyBlob)).toBeGreaterThan(1)
    const parts = ['bytes=0-999', 'bytes=0-99999', 'bytes=300000-499999', 'bytes=900000-949999', 'bytes=-50000']
    const answers = await Promise.all([
      whole,
      ...parts.map((range) => mirror.get(blobOf(layer), { headers: { range } })),
    ])
    for (const { status, complete } of answers) expect(status >= 500 || !complete).toBe(true)
    expect((await mirror.status()).storage.blobs).toBe(1)

    upstream.heal()
    expectContent(await mirror.get(blobOf(layer)), layer)
  })

  test('sends a range as it arrives, and its end once the whole blob is verified', async () => {
    const { upstream, mirror, layer } = await startLarge()
    const began = createDeferred()
    // Sends the last part when the reader has a byte of the second one; a wait for the whole blob would never end.
    upstream.on(anyBlob, async ({ request, response, reply }) => {
      if (request.headers.range?.startsWith('bytes=1000000-')) await began.promise
      send(response, reply)
    })
    const whole = mirror.get(blobOf(layer))
    await expect.poll(() => upstream.count(anyBlob)).toBeGreaterThan(0)
    const range = { range: 'bytes=100000-299999' }
    const answer = await mirror.get(blobOf(layer), { headers: range, onFirstByte: began.resolve })
    expect(answer).toMatchObject({ status: 206, complete: true })
    expect(answer.body.equals(large.subarray(100_000, 300_000))).toBe(true)
    expectContent(await whole, layer)
  })
})

test('a range is sent while the blob arrives, and no timeout cuts its withheld end', async () => {
  const idle = 2000
  const { upstream, mirror, layer, layerBytes } = await startScene({ cache: { timeouts: { idle } } })
  const began = createDeferred()
  const waited = began.promise.then(() => sleep(2 * idle))
  upstream.on(anyBlob, drippingAt(half, waited))
  let isOver = false
  const range = { range: 'bytes=0-59999' }
  const answer = mirror.get(blobOf(layer), { headers: range, onFirstByte: began.resolve })
  void answer.then(() => (isOver = true))
  await waited
  expect(isOver).toBe(false)
  const { body, ...rest } = await answer
  expect(rest).toMatchObject({ status: 206, complete: true })
  expect(body.equals(layerBytes.subarray(0, 60_000))).toBe(true)
})

test('a range of a stored blob is sent at once', async () => {
  const { upstream, mirror, layer, layerBytes } = await startScene()
  await mirror.get(blobOf(layer))
  await mirror.untilStored(1)
  await upstream.stop()
  const answer = await mirror.get(blobOf(layer), { headers: { range: 'bytes=0-999' } })
  expect(answer).toMatchObject({ status: 206, complete: true })
  expect(answer.body.equals(layerBytes.subarray(0, 1000))).toBe(true)
})

test('the end of a blob with a SHA-512 digest is withheld in the same way', async () => {
  const { upstream, mirror, layerBytes } = await startScene()
  const digest = computeDigest(layerBytes, 'sha512')
  const wrong = otherBody(() => Buffer.from(layerBytes).fill(0, 0, 10))
  const path = `${app}/blobs/${digest}`
  upstream.on({ method: 'GET', path }, async (exchange) =>
    wrong({ ...exchange, reply: { status: 200, headers: {}, body: layerBytes } }),
  )
  const answer = await mirror.get(path, { headers: { range: 'bytes=100000-199999' } })
  expect(answer.status >= 500 || !answer.complete).toBe(true)
  expect((await mirror.status()).storage.blobs).toBe(0)
})
