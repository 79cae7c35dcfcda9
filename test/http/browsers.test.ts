import { connect, type Socket } from 'node:net'
import { request as requestTls } from 'node:https'
import type { IncomingHttpHeaders, Server } from 'node:http'
import { describe, expect, onTestFinished, test } from 'vitest'
import { digestOf } from '../../src/oci/digest.ts'
import { ConnectionBudget } from '../../src/server/connection-budget.ts'
import { listen } from '../../src/server/listen.ts'
import { expectContent, expectError } from '../support/expect-content.ts'
import { headers as withHeaders, status } from '../support/faults.ts'
import { send } from '../support/faulty-server.ts'
import { get, type GetOptions } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { parseAnswers } from '../support/parse-answers.ts'
import { rawHttp } from '../support/raw-http.ts'
import { startTestRegistry, type TestRegistry } from '../support/registry.ts'
import { app, startScene, type Scene } from '../support/scene.ts'
import { anyBlob } from '../support/upstream.ts'
import { testCertificate } from '../unit/upstream/support/certificate.ts'

const secure = {
  'content-security-policy': "sandbox; default-src 'none'",
  'x-content-type-options': 'nosniff',
  'cross-origin-resource-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
}

type Kind = readonly [what: string, status: number, path: (scene: Scene) => string, options?: GetOptions]

const manifest = () => `${app}/manifests/v1`
const blob = ({ layer }: Scene) => `${app}/blobs/${layer}`
const config = ({ image }: Scene) => `${app}/blobs/${[...image.blobs.keys()].find((one) => one !== image.layers[0])!}`
const crossSite = { headers: { 'sec-fetch-site': 'cross-site' } }
const any = { headers: { 'if-none-match': '*' } }

const kinds: Record<'cache' | 'admin', readonly Kind[]> = {
  cache: [
    ['the base', 200, () => '/v2/'],
    ['a manifest', 200, manifest],
    ['a manifest, by HEAD', 200, manifest, { method: 'HEAD' }],
    ['a manifest that the client has', 304, manifest, any],
    ['a small blob', 200, config],
    ['a part of a small blob', 206, config, { headers: { range: 'bytes=0-9' } }],
    ['a cold blob, by HEAD', 200, blob, { method: 'HEAD' }],
    ['a part of a cold blob', 206, blob, { headers: { range: 'bytes=0-9' } }],
    ['a blob', 200, blob],
    ['a part of a blob', 206, blob, { headers: { range: 'bytes=5-99999' } }],
    ['a blob that the client has', 304, blob, any],
    ['a part that no blob has', 416, blob, { headers: { range: 'bytes=99999999-' } }],
    ['tags', 200, () => `${app}/tags/list`],
    ['referrers', 200, ({ image }) => `${app}/referrers/${image.digest}`],
    ['the catalog', 200, () => '/v2/_catalog'],
    ['an absent manifest', 404, () => `${app}/manifests/absent`],
    ['a path that is none', 404, () => '/nothing/here'],
    ['a bad name', 400, () => '/v2/UPPER/manifests/v1'],
    ['a registry that is not mirrored', 404, () => '/v2/app/manifests/v1?ns=evil.example'],
    ['a write', 405, manifest, { method: 'PUT' }],
    ['a preflight', 405, manifest, { method: 'OPTIONS' }],
    ['another Host', 421, manifest, { headers: { host: 'evil.example' } }],
    ['another site', 403, manifest, crossSite],
    ['an expectation that nobody meets', 417, manifest, { headers: { expect: 'x' } }],
  ],
  admin: [
    ['health', 200, () => '/healthz'],
    ['status', 200, () => '/api/status'],
    ['metrics', 200, () => '/metrics'],
    ['metrics, by HEAD', 200, () => '/metrics', { method: 'HEAD' }],
    ['a path that is none', 404, () => '/nothing'],
    ['a change without the token', 401, () => '/api/stop', { method: 'POST' }],
    ['another Host', 421, () => '/api/status', { headers: { host: 'evil.example' } }],
    ['another site', 403, () => '/api/status', crossSite],
  ],
}

function expectSecure(headers: IncomingHttpHeaders | Readonly<Record<string, string>>, what: string): void {
  expect(headers, what).toMatchObject(secure)
  expect(headers, what).not.toHaveProperty('access-control-allow-origin')
}

describe('every answer forbids browsers to render it, run it or embed it', () => {
  test('of the cache', async () => {
    const scene = await startScene()
    for (const [what, code, path, options] of kinds.cache) {
      const answer = await get(scene.mirror.url, path(scene), options)
      expect([what, answer.status]).toEqual([what, code])
      expectSecure(answer.headers, what)
    }
    scene.upstream.on({}, status(500, { 'content-type': 'text/html' }, '<script>alert(1)</script>'))
    const failed = await scene.mirror.get(`${app}/manifests/other`)
    expectError(failed, 502)
    expectSecure(failed.headers, 'an outage')
    expect(failed.body.toString()).not.toContain('<script>')
  })

  test('of the admin listener', async () => {
    const scene = await startScene()
    for (const [what, code, path, options] of kinds.admin) {
      const answer = await get(scene.mirror.adminUrl, path(scene), options)
      expect([what, answer.status]).toEqual([what, code])
      expectSecure(answer.headers, what)
    }
    expectSecure((await scene.mirror.post('/api/cache/prune', { dryRun: true })).headers, 'a change')
    expectSecure((await scene.mirror.post('/api/cache/verify', {})).headers, 'progress')
    expectSecure((await scene.mirror.post('/api/cache/rm', { names: 1 })).headers, 'a bad body')
  })

  test('of the registry', async () => {
    const registry = await startTestRegistry()
    const image = makeImage()
    expectSecure((await registry.push('app', 'v1', image)).headers, 'a push')
    const location = await registry.begin('app')
    const asked: [string, string, number, Parameters<TestRegistry['ask']>[2]?][] = [
      ['GET', '/v2/', 200],
      ['GET', '/v2/app/manifests/v1', 200],
      ['GET', `/v2/app/blobs/${image.layers[0]!}`, 200],
      ['GET', `/v2/app/blobs/${image.layers[0]!}`, 206, { headers: { range: 'bytes=0-0' } }],
      ['GET', '/v2/app/tags/list', 200],
      ['GET', `/v2/app/referrers/${image.digest}`, 200],
      ['POST', '/v2/app/blobs/uploads/', 202],
      ['GET', location, 204],
      ['PUT', location, 400],
      ['PATCH', '/v2/app/manifests/v1', 405],
      ['GET', '/v2/app/manifests/absent', 404],
      ['PUT', '/v2/app/manifests/v2', 400, { body: '<html>' }],
      ['POST', '/v2/app/blobs/uploads/', 403, { headers: { origin: 'https://evil.example' } }],
      ['GET', '/v2/app/manifests/v1', 403, crossSite],
      ['GET', '/v2/', 421, { headers: { host: 'evil.example' } }],
      ['DELETE', '/v2/app/manifests/v1', 202],
    ]
    for (const [method, path, code, options] of asked) {
      const answer = await registry.ask(method, path, options)
      expect([method, path, answer.status]).toEqual([method, path, code])
      expectSecure(answer.headers, `${method} ${path}`)
    }
  })

  test.each([
    ['what is no HTTP', 'GET\r\n\r\n', 400],
    ['no Host', 'GET /v2/ HTTP/1.1\r\n\r\n', 400],
    ['two Hosts', 'GET /v2/ HTTP/1.1\r\nHost: localhost\r\nHost: b\r\nConnection: close\r\n\r\n', 400],
    ['a head that is too large', `GET /v2/ HTTP/1.1\r\nHost: localhost\r\nX: ${'a'.repeat(20_000)}\r\n\r\n`, 431],
    ['a request of HTTP/1.0', 'GET /v2/ HTTP/1.0\r\nHost: localhost\r\n\r\n', 200],
  ])('to %s, on each listener', async (what, bytes, code) => {
    const { mirror } = await startScene()
    const registry = await startTestRegistry()
    for (const url of [mirror.url, registry.url, mirror.adminUrl]) {
      const [answer] = parseAnswers((await rawHttp(url, bytes, 10_000)).text)
      // The admin listener has nothing at /v2/.
      expect(url === mirror.adminUrl && code === 200 ? [200, 404] : [code]).toContain(answer!.status)
      expectSecure(answer!.headers, what)
    }
  })

  test('to a head that never ends', async () => {
    let server: Server | undefined
    const listener = await listen({ host: '127.0.0.1', port: 0, prepare: (made) => void (server = made) }, () => {})
    onTestFinished(() => listener.close(0))
    // What Node says of a connection after its 10 s.
    server!.on('connection', (socket: Socket) => {
      server!.emit('clientError', Object.assign(new Error('late'), { code: 'ERR_HTTP_REQUEST_TIMEOUT' }), socket)
    })
    const [answer] = parseAnswers((await rawHttp(listener.url, '', 10_000)).text)
    expect(answer!.status).toBe(408)
    expectSecure(answer!.headers, 'late')
  })

  test('over TLS, and with a head that nobody has written', async () => {
    const tls = { cert: testCertificate.cert, key: testCertificate.key }
    const listener = await listen({ host: '127.0.0.1', port: 0, tls }, (_, response) => void response.end('x'))
    onTestFinished(() => listener.close(0))
    const headers = await new Promise<IncomingHttpHeaders>((resolve, reject) => {
      requestTls(listener.url, { ca: tls.cert, checkServerIdentity: () => undefined, agent: false }, (response) =>
        resolve(response.resume().headers),
      )
        .once('error', reject)
        .end()
    })
    expectSecure(headers, 'TLS')
  })

  test('except a page of ours that brings a policy of its own', async () => {
    const own = { 'content-security-policy': "default-src 'self'" }
    const listener = await listen({ host: '127.0.0.1', port: 0 }, (request, response) => {
      if (request.url === '/set') response.setHeader('Content-Security-Policy', own['content-security-policy'])
      response.writeHead(200, request.url === '/set' ? {} : own).end()
    })
    onTestFinished(() => listener.close(0))
    for (const path of ['/set', '/given'])
      expect((await get(listener.url, path)).headers).toMatchObject({ ...secure, ...own })
  })
})

describe('a request that a browser makes', () => {
  type Asked = readonly [who: string, headers: Record<string, string>, registries: boolean, admin: boolean]
  const pages: Asked[] = [
    ['of another site', { 'sec-fetch-site': 'cross-site', 'sec-fetch-mode': 'no-cors' }, false, false],
    ['that follows a link', { 'sec-fetch-site': 'cross-site', 'sec-fetch-mode': 'navigate' }, false, false],
    ['of another port of this machine', { 'sec-fetch-site': 'same-site' }, false, false],
    ['of a site that no version of the standard knows', { 'sec-fetch-site': 'elsewhere' }, false, false],
    ['from another origin', { origin: 'http://localhost:3000' }, false, false],
    ['from a sandbox', { origin: 'null' }, false, false],
    // Also where a site that the user went to by the address bar redirects.
    ['for the address bar', { 'sec-fetch-site': 'none', 'sec-fetch-mode': 'navigate' }, false, true],
    ['for the address bar, without a mode', { 'sec-fetch-site': 'none' }, false, true],
    ['for a page of the same listener', { 'sec-fetch-site': 'same-origin', origin: 'OWN' }, true, true],
    ['to show a page', { 'sec-fetch-site': 'same-origin', 'sec-fetch-mode': 'navigate' }, false, true],
    ['that names no site, to show a page', { 'sec-fetch-mode': 'navigate' }, false, true],
    ['for a WebSocket', { 'sec-fetch-mode': 'websocket', 'sec-fetch-dest': 'websocket' }, false, true],
    ['for an image', { 'sec-fetch-mode': 'no-cors', 'sec-fetch-dest': 'image' }, false, true],
    ['for a frame', { 'sec-fetch-site': 'same-origin', 'sec-fetch-dest': 'iframe' }, false, true],
    ['for a script', { 'sec-fetch-site': 'same-origin', 'sec-fetch-dest': 'script' }, false, true],
    ['by a script', { 'sec-fetch-site': 'same-origin', 'sec-fetch-dest': 'empty' }, true, true],
    ["no browser: Node's fetch", { 'sec-fetch-mode': 'cors' }, true, true],
    ['no browser', {}, true, true],
  ]

  test.each(pages)('%s (%j) is answered or refused as its listener has it', async (_, headers, registries, admin) => {
    const { upstream, mirror, image, layer } = await startScene()
    const registry = await startTestRegistry()
    await registry.push('app', 'v1', image)
    const paths: [string, string, boolean][] = [
      [mirror.url, '/v2/', registries],
      [mirror.url, `${app}/manifests/v1`, registries],
      [mirror.url, `${app}/blobs/${layer}`, registries],
      [mirror.url, `${app}/tags/list`, registries],
      [mirror.url, '/v2/_catalog', registries],
      [registry.url, '/v2/app/manifests/v1', registries],
      [registry.url, `/v2/app/blobs/${layer}`, registries],
      [mirror.adminUrl, '/api/status', admin],
      [mirror.adminUrl, '/metrics', admin],
      [mirror.adminUrl, '/healthz', admin],
    ]
    for (const [url, path, isAllowed] of paths)
      for (const method of ['GET', 'HEAD']) {
        const own = headers['origin'] === 'OWN' ? { ...headers, origin: url } : headers
        const answer = await get(url, path, { method, headers: own })
        expect([method, path, answer.status]).toEqual([method, path, isAllowed ? 200 : 403])
        if (!isAllowed && method === 'GET') expectError(answer, 403, 'DENIED')
      }
    if (!registries) expect(upstream.requests).toEqual([])
  })

  test('to show the cache or the registry hears that neither is a page for browsers', async () => {
    const { mirror } = await startScene()
    const registry = await startTestRegistry()
    const navigation = { 'sec-fetch-site': 'none', 'sec-fetch-mode': 'navigate', 'sec-fetch-dest': 'document' }
    for (const url of [mirror.url, registry.url]) {
      const answer = await get(url, '/v2/', { headers: navigation })
      expectError(answer, 403, 'DENIED')
      expect(answer.body.toString()).toContain('no page for browsers')
    }
  })

  test('for the address bar only reads, by the fetch of Node everything, with the token', async () => {
    const { mirror } = await startScene()
    const change = (headers: Record<string, string>) =>
      get(mirror.adminUrl, '/api/cache/prune', { method: 'POST', headers, body: '{}' })
    expect((await change({ 'sec-fetch-site': 'none' })).status).toBe(403)
    expect((await change({ 'sec-fetch-mode': 'cors' })).status).toBe(401)
    expect((await fetch(`${mirror.url}/v2/`)).status).toBe(200)
  })
})

describe("an upstream's page", () => {
  const page = '<html><script>alert(document.domain)</script></html>'

  test.each([
    ['text/html', undefined],
    ['text/html', 'text/html'],
    ['application/xhtml+xml', 'application/xhtml+xml'],
    ['image/svg+xml', 'application/x.svg+xml'],
    ['application/vnd.x<script>', undefined],
    ['application/vnd.x y', 'application/vnd.x y'],
    ['application/vnd.foo+xml', undefined],
    ['', 'not a type'],
  ])('is no manifest: one that is sent as %j and calls itself %j has the type of what it is', async (sent, own) => {
    const image = makeImage({ manifest: { mediaType: own, annotations: { a: page } } })
    const { upstream, mirror } = await startScene({ image })
    upstream.on({ path: /\/manifests\// }, withHeaders({ 'content-type': sent }))
    for (const [method, path] of [
      ['HEAD', 'v1'],
      ['GET', 'v1'],
      ['GET', image.digest],
      ['HEAD', 'v1'],
      ['HEAD', image.digest],
    ] as const) {
      const answer = await mirror.get(`${app}/manifests/${path}`, { method })
      expect([answer.status, answer.headers['content-type']]).toEqual([
        200,
        'application/vnd.oci.image.manifest.v1+json',
      ])
      if (method === 'GET') expectContent(answer, image.digest)
    }
  })

  test('in the place of a manifest, a list or an error never leaves as a page', async () => {
    const { upstream, mirror, image } = await startScene()
    for (const code of [200, 401, 403, 404, 429, 500]) {
      upstream.heal()
      upstream.on({}, status(code, { 'content-type': 'text/html' }, page))
      for (const path of [`manifests/x${code}`, 'tags/list', `referrers/${image.digest}`]) {
        const { headers, body } = await mirror.get(`${app}/${path}`)
        expect(headers['content-type']).toMatch(/^application\/(?:json|vnd\.oci\.image\.index\.v1\+json)$/)
        expect(body.toString()).not.toContain('<script>')
      }
    }
  })

  test('as a blob is bytes, whatever its type', async () => {
    const image = makeImage({ layers: [Buffer.from(page)] })
    const { upstream, mirror, layer } = await startScene({ image })
    upstream.on(anyBlob, withHeaders({ 'content-type': 'text/html' }))
    for (const _ of ['cold', 'warm']) {
      const answer = await mirror.get(`${app}/blobs/${layer}`)
      expectContent(answer, layer)
      expect(answer.headers['content-type']).toBe('application/octet-stream')
    }
  })

  test('with the digest that was asked for is still no manifest', async () => {
    const { upstream, mirror } = await startScene()
    const path = `${app}/manifests/${digestOf(Buffer.from(page))}`
    upstream.on({ path }, ({ response }) =>
      send(response, { status: 200, headers: { 'content-type': 'text/html' }, body: Buffer.from(page) }),
    )
    expectError(await mirror.get(path), 502)
  })
})

test.each(['text/html', 'image/svg+xml', 'application/xhtml+xml', 'application/x"y', 'application/', 'json'])(
  'a manifest that is pushed as %s is refused',
  async (type) => {
    const registry = await startTestRegistry()
    const image = makeImage({ manifest: { mediaType: undefined } })
    for (const one of image.blobs.values()) await registry.pushBlob('app', one)
    expectError(
      await registry.pushManifest('app', 'v1', { bytes: image.bytes, mediaType: type }),
      400,
      'MANIFEST_INVALID',
    )
    expect((await registry.get('/v2/app/manifests/v1')).status).toBe(404)
  },
)

test('a connection beyond the limit hears so with the same headers', async () => {
  const connections = new ConnectionBudget({ limits: { clients: 2, admin: 2 }, refusals: 8 })
  const listener = await listen({ host: '127.0.0.1', port: 0, connections }, () => {})
  onTestFinished(() => listener.close(0))
  for (const _ of ['first', 'second']) {
    const socket = connect(listener.port, '127.0.0.1')
    onTestFinished(() => void socket.destroy())
    await new Promise((resolve) => socket.once('connect', resolve))
  }
  const answer = await get(listener.url, '/v2/')
  expectError(answer, 503)
  expectSecure(answer.headers, 'busy')
})
