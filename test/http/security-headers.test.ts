import { connect, type Socket } from 'node:net'
import { request as requestTls } from 'node:https'
import type { IncomingHttpHeaders, Server } from 'node:http'
import { describe, expect, onTestFinished, test } from 'vitest'
import { ConnectionBudget } from '../../src/server/connection-budget.ts'
import { listen } from '../../src/server/listen.ts'
import { expectError } from '../support/expect-content.ts'
import { status } from '../support/faults.ts'
import { get, type GetOptions } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { parseAnswers } from '../support/parse-answers.ts'
import { rawHttp } from '../support/raw-http.ts'
import { startTestRegistry, type TestRegistry } from '../support/registry.ts'
import { app, startScene, type Scene } from '../support/scene.ts'
import { testCertificate } from '../support/upstream/certificate.ts'

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

async function expectAllSecure(url: string, all: readonly Kind[], scene: Scene): Promise<void> {
  for (const [what, code, path, options] of all) {
    const answer = await get(url, path(scene), options)
    expect([what, answer.status]).toEqual([what, code])
    expectSecure(answer.headers, what)
  }
}

describe('the security headers are in every response', () => {
  test('of the cache', async () => {
    const scene = await startScene()
    await expectAllSecure(scene.mirror.url, kinds.cache, scene)
    scene.upstream.on({}, status(500, { 'content-type': 'text/html' }, '<script>alert(1)</script>'))
    const failed = await scene.mirror.get(`${app}/manifests/other`)
    expectError(failed, 502)
    expectSecure(failed.headers, 'an outage')
    expect(failed.body.toString()).not.toContain('<script>')
  })

  test('of the admin listener', async () => {
    const scene = await startScene()
    await expectAllSecure(scene.mirror.adminUrl, kinds.admin, scene)
    expectSecure((await scene.mirror.post('/api/cache/prune', { dryRun: true })).headers, 'a change')
    expectSecure((await scene.mirror.post('/api/cache/verify', {})).headers, 'progress')
    expectSecure((await scene.mirror.post('/api/cache/rm', { names: 1 })).headers, 'a bad body')
  })

  test('of the admin listener, and browsers keep none of its numbers', async () => {
    const { mirror } = await startScene()
    for (const path of ['/healthz', '/metrics', '/api/status', '/api/requests', '/api/session', '/api/doctor']) {
      const { headers } = await get(mirror.adminUrl, path)
      expect([path, headers['cache-control']]).toEqual([path, 'no-store'])
    }
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
  ])('to %s on each listener', async (what, bytes, code) => {
    const { mirror } = await startScene()
    const registry = await startTestRegistry()
    for (const url of [mirror.url, registry.url, mirror.adminUrl]) {
      const [answer] = parseAnswers((await rawHttp(url, bytes, 10_000)).text)
      // Accepts 404 of the admin listener, which has no /v2/.
      expect(url === mirror.adminUrl && code === 200 ? [200, 404] : [code]).toContain(answer!.status)
      expectSecure(answer!.headers, what)
    }
  })

  test('to a head that never ends', async () => {
    let server: Server | undefined
    const listener = await listen({ host: '127.0.0.1', port: 0, prepare: (made) => void (server = made) }, () => {})
    onTestFinished(() => listener.close(0))
    // Emits the error that Node emits for a connection after 10 s.
    server!.on('connection', (socket: Socket) => {
      server!.emit('clientError', Object.assign(new Error('late'), { code: 'ERR_HTTP_REQUEST_TIMEOUT' }), socket)
    })
    const [answer] = parseAnswers((await rawHttp(listener.url, '', 10_000)).text)
    expect(answer!.status).toBe(408)
    expectSecure(answer!.headers, 'late')
  })

  test('over TLS, and with a head that Node wrote itself', async () => {
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

  test('except in a page of the mirror that sets its own policy', async () => {
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

test('the 503 to a connection beyond the limit has the same security headers', async () => {
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
