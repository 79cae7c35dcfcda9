import { rm, writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { expectContent } from '../support/expect-content.ts'
import { headers, status } from '../support/faults.ts'
import { open } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { temporaryHome } from '../support/mirror.ts'
import { noise } from '../support/noise.ts'
import { rawHttp } from '../support/raw-http.ts'
import { app, startScene } from '../support/scene.ts'
import { anyBlob, anyManifest, anyManifestHead } from '../support/upstream.ts'

describe('connections are released', () => {
  test('after twenty blobs that were refused for their size', async () => {
    const { upstream, mirror, image, layer } = await startScene({ image: makeImage({ layers: [noise(2_000_000)] }) })
    await mirror.get(`${app}/manifests/v1`)
    upstream.on(anyBlob, headers({ 'content-length': '2500000' }))
    for (let round = 0; round < 20; round++) {
      expect((await mirror.get(`${app}/blobs/${layer}`)).status).toBe(502)
    }
    upstream.heal()
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    expect(image.blobs.has(layer)).toBe(true)
  })

  test('at shutdown, even of a client that sends nothing', async () => {
    const { mirror } = await startScene()
    const { hostname, port } = new URL(mirror.url)
    const silent = connect(Number(port), hostname)
    onTestFinished(() => void silent.destroy())
    await new Promise((resolve) => silent.once('connect', resolve))
    const closed = new Promise((resolve) => silent.once('close', resolve))
    await mirror.close()
    await closed
  })
})

describe('a response', () => {
  test('that is running is cut, and never mixed with an error, when the client sends something that is not HTTP', async () => {
    const { mirror, layer } = await startScene({ image: makeImage({ layers: [noise(30_000_000)] }) })
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    const { hostname, port } = new URL(mirror.url)
    const socket = connect(Number(port), hostname)
    const text = await new Promise<string>((resolve) => {
      let received = ''
      socket.on('error', () => {})
      socket.on('data', (chunk) => {
        if (received === '') socket.write('\0\0 this is not HTTP\r\n\r\n')
        received += chunk.toString('latin1')
      })
      socket.once('close', () => resolve(received))
      socket.write(`GET ${app}/blobs/${layer} HTTP/1.1\r\nHost: localhost\r\n\r\n`)
    })
    expect(text.match(/HTTP\/1\.1 /g)).toHaveLength(1)
  })

  test('to HEAD has the whole size, whatever Range says', async () => {
    const { mirror, layer, layerBytes } = await startScene()
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    const head = await mirror.get(`${app}/blobs/${layer}`, { method: 'HEAD', headers: { range: 'bytes=0-9' } })
    expect([head.status, head.headers['content-length']]).toEqual([200, String(layerBytes.length)])
  })
})

describe('manifests and blobs', () => {
  test('are refused separately', async () => {
    const { mirror, layer } = await startScene()
    expect((await mirror.get(`${app}/manifests/${layer}`, { method: 'HEAD' })).status).toBe(404)
    expect((await mirror.get(`${app}/blobs/${layer}`, { method: 'HEAD' })).status).toBe(200)
  })

  test('are not mixed up: a cached layer is no manifest', async () => {
    const { mirror, layer } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    expect((await mirror.get(`${app}/manifests/${layer}`)).status).toBe(404)
  })
})

describe('an uncached tag', () => {
  test('costs one HEAD for all clients that send HEAD, until the result is stale', async () => {
    const { upstream, mirror } = await startScene({ cache: { tagFreshness: 60_000 } })
    const ask = () => mirror.get(`${app}/manifests/v1`, { method: 'HEAD' })
    const answers = await Promise.all(Array.from({ length: 20 }, ask))
    expect(answers.map(({ status }) => status)).toEqual(Array.from({ length: 20 }, () => 200))
    await ask()
    expect(upstream.count(anyManifestHead)).toBe(1)
    expect(upstream.count(anyManifest)).toBe(0)
  })
})

describe('a list of tags', () => {
  test('with a page size that is no number is refused without a request', async () => {
    const { upstream, mirror } = await startScene()
    expect((await mirror.get(`${app}/tags/list?n=-1`)).status).toBe(400)
    expect(upstream.requests).toHaveLength(0)
  })
})

describe('content that is cached for a credential', () => {
  async function privateScene() {
    const home = await temporaryHome()
    const passwordFile = join(home, 'password')
    await writeFile(passwordFile, 'open sesame')
    const scene = await startScene({
      home,
      auth: { scheme: 'bearer', users: { me: 'open sesame' }, private: ['library/app'] },
      upstream: { credentials: { from: 'password-file', username: 'me', passwordFile } },
    })
    expectContent(await scene.mirror.get(`${app}/manifests/v1`), scene.image.digest)
    expectContent(await scene.mirror.get(`${app}/blobs/${scene.layer}`), scene.layer)
    return { ...scene, passwordFile }
  }

  test('is served while the credential cannot be read', async () => {
    const { mirror, image, layer, passwordFile } = await privateScene()
    await rm(passwordFile)
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expectContent(await mirror.get(`${app}/manifests/${image.digest}`), image.digest)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
  })

  test('is kept when the credential may not list tags', async () => {
    const { upstream, mirror, image, layer } = await privateScene()
    upstream.on({ path: /\/tags\/list/ }, status(403))
    expect((await mirror.get(`${app}/tags/list`)).status).toBe(403)
    await upstream.stop()
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
  })
})

test('a client that disconnects with queued requests leaves nothing open', async () => {
  const { mirror, layer } = await startScene({ image: makeImage({ layers: [noise(20_000_000)] }) })
  expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
  const response = await open(mirror.url, `${app}/blobs/${layer}`)
  response.destroy()
  const one = `GET ${app}/blobs/${layer} HTTP/1.1\r\nHost: localhost\r\n\r\n`
  await rawHttp(mirror.url, one.repeat(5), 100)
  // Checks that the close ends at once, because no client waits any more.
  await mirror.close()
})
