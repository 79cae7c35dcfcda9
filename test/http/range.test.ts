import { describe, expect, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { expectContent } from '../support/expect-content.ts'
import { corrupt, slow } from '../support/faults.ts'
import { app, layerSize as size, startScene } from '../support/scene.ts'
import { anyBlob } from '../support/upstream.ts'

const satisfiable = [
  ['bytes=0-0', 0, 0],
  ['bytes=100-199', 100, 199],
  ['bytes=299999-299999', size - 1, size - 1],
  ['bytes=1000-', 1000, size - 1],
  ['bytes=-500', size - 500, size - 1],
  ['bytes=-9999999', 0, size - 1],
  ['bytes=290000-9999999', 290_000, size - 1],
] as const

const unsatisfiable = ['bytes=300000-', 'bytes=300000-300001', 'bytes=5-2', 'bytes=-0']

const ignored = [
  'bytes=0-9,20-29',
  `bytes=${Array.from({ length: 1000 }, (_, at) => `${at}-${at + 100}`).join(',')}`,
  'lines=1-2',
  'bytes=a-b',
  'bytes=-',
  'bytes',
]

describe.each(['cold', 'warm'])('a Range of a %s blob', (state) => {
  async function startBlob() {
    const scene = await startScene()
    if (state === 'warm') {
      await scene.mirror.get(`${app}/blobs/${scene.layer}`)
      await scene.mirror.untilStored(1)
    }
    return scene
  }

  test.each(satisfiable)('%s is 206', async (range, start, end) => {
    const { upstream, mirror, layer, layerBytes } = await startBlob()
    const answer = await mirror.get(`${app}/blobs/${layer}`, { headers: { range } })
    expect(answer).toMatchObject({
      status: 206,
      complete: true,
      headers: {
        'content-range': `bytes ${start}-${end}/${size}`,
        'content-length': String(end - start + 1),
        'docker-content-digest': layer,
        'accept-ranges': 'bytes',
      },
    })
    expect(answer.body.equals(layerBytes.subarray(start, end + 1))).toBe(true)
    // Checks that the download was completed.
    await mirror.untilStored(1)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    expect(upstream.count(anyBlob)).toBe(1)
  })

  test.each(unsatisfiable)('%s is 416', async (range) => {
    const { mirror, layer } = await startBlob()
    const answer = await mirror.get(`${app}/blobs/${layer}`, { headers: { range } })
    expect(answer).toMatchObject({ status: 416, complete: true, headers: { 'content-range': `bytes */${size}` } })
    expect(answer.headers['content-length']).toBe(String(answer.body.length))
  })

  test.each(ignored)('%s is a 200 of the whole', async (range) => {
    const { mirror, layer } = await startBlob()
    const answer = await mirror.get(`${app}/blobs/${layer}`, { headers: { range } })
    expect(answer.body.length).toBeLessThanOrEqual(size)
    expectContent(answer, layer)
  })

  test('with an If-Range for other content is a 200 of the whole', async () => {
    const { mirror, layer } = await startBlob()
    const path = `${app}/blobs/${layer}`
    expectContent(await mirror.get(path, { headers: { range: 'bytes=5-', 'if-range': '"other"' } }), layer)
    expect((await mirror.get(path, { headers: { range: 'bytes=5-', 'if-range': `"${layer}"` } })).status).toBe(206)
  })
})

test('a range at the start of a blob that is being downloaded joins the download, and ends when the blob is verified', async () => {
  const { upstream, mirror, layer, layerBytes } = await startScene()
  upstream.on(anyBlob, slow(300_000))
  const whole = mirror.get(`${app}/blobs/${layer}`)
  const answer = await mirror.get(`${app}/blobs/${layer}`, { headers: { range: 'bytes=0-999' } })
  expect(answer).toMatchObject({ status: 206, complete: true })
  expect(answer.body.equals(layerBytes.subarray(0, 1000))).toBe(true)
  expectContent(await whole, layer)
  expect(upstream.count(anyBlob)).toBe(1)
})

test('a range within the withheld tail of a wrong blob is never answered', async () => {
  const { upstream, mirror, layer } = await startScene()
  upstream.on(anyBlob, corrupt)
  const answer = await mirror.get(`${app}/blobs/${layer}`, { headers: { range: 'bytes=-1000' } })
  expect(answer.status >= 500 || !answer.complete).toBe(true)
})

test('the parts of a blob make the whole', async () => {
  const { mirror, layer } = await startScene()
  const parts: Buffer[] = []
  for (let at = 0; at < size; at += 70_000) {
    const range = `bytes=${at}-${at + 69_999}`
    parts.push((await mirror.get(`${app}/blobs/${layer}`, { headers: { range } })).body)
  }
  expect(computeDigest(Buffer.concat(parts))).toBe(layer)
})

test('a manifest is sent whole whatever Range says', async () => {
  const { mirror, image } = await startScene()
  expectContent(await mirror.get(`${app}/manifests/v1`, { headers: { range: 'bytes=0-9' } }), image.digest)
})
