import { connect } from 'node:net'
import { describe, expect, test } from 'vitest'
import { expectContent } from '../support/expect-content.ts'
import { makeImage } from '../support/images.ts'
import { rawHttp } from '../support/raw-http.ts'
import { startTestRegistry } from '../support/registry.ts'

// Sends requests like go-containerregistry, the library of kaniko: pkg/v1/remote/check.go and write.go.
const agent = 'User-Agent: kaniko/v1.24.0 go-containerregistry/v0.20.4\r\nAccept-Encoding: gzip\r\n'
const close = 'Connection: close\r\n'

const locationIn = (text: string) => /^location: (.+)\r$/im.exec(text)![1]!

describe('kaniko', () => {
  async function setUp() {
    const registry = await startTestRegistry()
    const { host } = new URL(registry.url)
    const send = (head: string, headers: string, body: Buffer | string = '') => {
      const text = `${head} HTTP/1.1\r\nHost: ${host}\r\n${agent}${headers}${close}\r\n`
      return rawHttp(registry.url, Buffer.concat([Buffer.from(text), Buffer.from(body)]))
    }
    return { registry, send }
  }
  const json = 'Content-Length: 0\r\nContent-Type: application/json\r\n'

  test('checks whether it may push: it begins an upload and cancels it', async () => {
    const { registry, send } = await setUp()
    expect((await send('GET /v2/', '')).statuses).toEqual([200])
    const begun = await send('POST /v2/team/app/blobs/uploads/', json)
    expect(begun.statuses).toEqual([202])
    expect((await registry.status()).registry.uploads).toBe(1)
    const location = locationIn(begun.text)
    expect((await send(`DELETE ${location}`, '')).statuses).toEqual([204])
    expect((await send(`DELETE ${location}`, '')).statuses).toEqual([404])
    expect((await registry.status()).registry.uploads).toBe(0)
  })

  test('gets a 400 when it tries TLS on a plain port, and continues without TLS', async () => {
    const { registry, send } = await setUp()
    const { port } = new URL(registry.url)
    const clientHello = Buffer.from('160301002f0100002b0303', 'hex')
    const answer = await new Promise<string>((resolve) => {
      const socket = connect(Number(port), '127.0.0.1', () => socket.write(clientHello))
      let text = ''
      socket.on('data', (chunk: Buffer) => (text += chunk.toString('latin1')))
      socket.once('close', () => resolve(text))
    })
    expect(answer).toMatch(/^HTTP\/1\.1 400 /)
    expect((await send('GET /v2/', '')).statuses).toEqual([200])
  })

  test('pushes: HEAD, POST, PATCH with a length, PUT; a mount with its origin; the manifest', async () => {
    const { registry, send } = await setUp()
    const image = makeImage()
    for (const [digest, bytes] of image.blobs) {
      expect((await send(`HEAD /v2/team/app/blobs/${digest}`, '')).statuses).toEqual([404])
      const location = locationIn((await send('POST /v2/team/app/blobs/uploads/', json)).text)
      const octets = `Content-Length: ${bytes.length}\r\nContent-Type: application/octet-stream\r\n`
      const patched = await send(`PATCH ${location}`, octets, bytes)
      expect(patched.statuses).toEqual([202])
      const target = `${locationIn(patched.text)}?digest=${encodeURIComponent(digest)}`
      const none = 'Content-Length: 0\r\nContent-Type: application/octet-stream\r\n'
      expect((await send(`PUT ${target}`, none)).statuses).toEqual([201])
      const mount = `from=team%2Fapp&mount=${encodeURIComponent(digest)}&origin=127.0.0.1%3A5001`
      expect((await send(`POST /v2/team/cache/blobs/uploads/?${mount}`, json)).statuses).toEqual([201])
    }
    const type = `Content-Length: ${image.bytes.length}\r\nContent-Type: ${image.mediaType}\r\n`
    for (const name of ['app', 'cache']) {
      const put = await send(`PUT /v2/team/${name}/manifests/v1`, type, image.bytes)
      expect(put.statuses).toEqual([201])
      expectContent(await registry.get(`/v2/team/${name}/manifests/v1`), image.digest)
    }
  })
})
