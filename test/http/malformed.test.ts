import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { expectContent, expectError } from '../support/expect-content.ts'
import { hostilePaths } from '../support/hostile-paths.ts'
import { rawGet, rawHttp } from '../support/raw-http.ts'
import { startTestRegistry } from '../support/registry.ts'
import { app, startScene } from '../support/scene.ts'

test('a malformed path gets a 400 or a 404 in JSON, without a request to the upstream and without a redirect', async () => {
  const { upstream, mirror } = await startScene()
  const outside = join(mirror.home, 'x')
  await mkdir(outside)
  await writeFile(join(outside, 'manifests'), 'not to be read')
  for (const path of hostilePaths) {
    const { text, statuses } = await rawHttp(mirror.url, rawGet(path))
    expect([400, 404], path).toContain(statuses[0])
    expect(statuses, path).toHaveLength(1)
    expect(text, path).toContain('{"errors":[{"code":')
    expect(text, path).not.toMatch(/^location:/im)
    expect(text, path).not.toContain('not to be read')
    expect(text, path).not.toContain('root:')
  }
  expect(upstream.requests).toEqual([])
  expect((await mirror.get('/v2/')).status).toBe(200)
})

describe('upload ids', () => {
  test.each(['x', '..%2f..%2fx', '%00', 'a'.repeat(400)])(
    'such as %s are refused by the cache as writes',
    async (id) => {
      const { mirror } = await startScene()
      for (const method of ['GET', 'PATCH', 'PUT', 'DELETE']) {
        expectError(await mirror.get(`${app}/blobs/uploads/${id}`, { method }), [400, 404, 405])
      }
    },
  )
})

/** smuggling has requests that two parsers could read in two ways. */
const smuggling: [string, string][] = [
  [
    'both a length and a chunked body',
    'Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n',
  ],
  ['two lengths', 'Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello'],
  ['a list of lengths', 'Content-Length: 5, 5\r\n\r\nhello'],
  ['a signed length', 'Content-Length: +5\r\n\r\nhello'],
  ['space before the colon', 'Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n'],
  ['two codings, chunked first', 'Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n'],
  ['bare line feeds', 'X: y\nHost: evil.example\n\n'],
  ['a folded header', 'X: a\r\n b\r\n\r\n'],
  ['a control character in a value', 'X: a\u0000b\r\n\r\n'],
  ['a header of 20 kB', `X: ${'a'.repeat(20_000)}\r\n\r\n`],
  ['a thousand headers of 50 bytes', `${'X: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n'.repeat(1000)}\r\n`],
  ['a header without a name', ': x\r\n\r\n'],
]

describe('the parser of requests:', () => {
  test.each(smuggling)('%s is refused and the connection closed', async (_, rest) => {
    const { upstream, mirror } = await startScene()
    const registry = await startTestRegistry()
    for (const url of [mirror.url, registry.url])
      for (const head of ['GET /v2/', 'POST /v2/', 'POST /v2/app/blobs/uploads/', 'PUT /v2/app/manifests/v1']) {
        const answer = await rawHttp(url, `${head} HTTP/1.1\r\nHost: localhost\r\n${rest}`)
        expect(answer.statuses.length, head).toBeLessThanOrEqual(1)
        expect([400, 405, 431], head).toContain(answer.statuses[0])
        expect(answer.closed, head).toBe(true)
        expect(answer.text, head).toContain('{"errors":[{"code":')
      }
    expect(upstream.requests).toEqual([])
    expect((await mirror.get('/v2/')).status).toBe(200)
    expect(await registry.status()).toMatchObject({ registry: { uploads: 0, manifests: 0 } })
  })

  test('input that is not HTTP is refused', async () => {
    const { mirror } = await startScene()
    for (const text of [
      '\u0016\u0003\u0001\u0002\u0000\u0001',
      'GET\r\n\r\n',
      'GET /v2/ HTTP/9.9\r\nHost: localhost\r\n\r\n',
    ]) {
      const answer = await rawHttp(mirror.url, text)
      expect(answer.closed).toBe(true)
      expect([400, 505]).toContain(answer.statuses[0])
    }
  })

  test('header names that are properties of every object do no harm', async () => {
    const { mirror } = await startScene()
    const extra = '__proto__: x\r\nconstructor: y\r\ntoString: z\r\n'
    expect((await rawHttp(mirror.url, rawGet('/v2/', extra))).statuses).toEqual([200])
    expect((await mirror.get('/v2/')).status).toBe(200)
  })

  test.each([
    ['of a given length', (inner: string) => `Content-Length: ${inner.length}`],
    ['in chunks', () => 'Transfer-Encoding: chunked'],
    ['in an unknown coding', () => 'Transfer-Encoding: xchunked'],
  ])('a body %s of a GET is not taken for the next request', async (_, header) => {
    const { mirror } = await startScene()
    const inner = 'GET /v2/_catalog HTTP/1.1\r\nHost: localhost\r\n\r\n'
    const request = `GET /v2/ HTTP/1.1\r\nHost: localhost\r\n${header(inner)}\r\n\r\n${inner}`
    const { statuses, text, closed } = await rawHttp(mirror.url, request)
    // Ignores a following 400, which a body that does not match its header may get.
    expect(statuses.filter((status) => status !== 400)).toEqual([200])
    expect(closed).toBe(true)
    expect(text).not.toContain('repositories')
  })

  test('several requests on a connection are answered in order', async () => {
    const { mirror } = await startScene()
    const { statuses } = await rawHttp(
      mirror.url,
      'GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\nGET /nope HTTP/1.1\r\nHost: localhost\r\n\r\n' +
        rawGet('/v2/_catalog'),
    )
    expect(statuses).toEqual([200, 404, 200])
  })

  test('a connection that pipelines too many requests is ended, and the next connection is answered', async () => {
    const { mirror, layer } = await startScene()
    await mirror.get(`${app}/blobs/${layer}`)
    const ahead = `GET ${app}/blobs/${layer} HTTP/1.1\r\nHost: localhost\r\n\r\n`
    const { statuses, closed } = await rawHttp(mirror.url, ahead.repeat(2000), 10_000)
    expect(statuses.length).toBeLessThan(2000)
    expect(closed).toBe(true)
    expect((await mirror.get('/v2/')).status).toBe(200)
  })

  test('twenty pipelined requests cause no warning', async () => {
    const { mirror, layer } = await startScene()
    await mirror.get(`${app}/blobs/${layer}`)
    const warnings: Error[] = []
    const onWarning = (warning: Error) => void warnings.push(warning)
    process.on('warning', onWarning)
    try {
      const ahead = `GET ${app}/blobs/${layer} HTTP/1.1\r\nHost: localhost\r\n\r\n`
      const { statuses } = await rawHttp(mirror.url, ahead.repeat(20) + rawGet('/v2/'))
      expect(statuses).toHaveLength(21)
    } finally {
      process.off('warning', onWarning)
    }
    expect(warnings).toEqual([])
  })
})

test('an unknown query parameter is ignored, not passed on', async () => {
  const { upstream, mirror, image } = await startScene()
  expectContent(await mirror.get(`${app}/manifests/v1?service=x&account=y&__proto__=z`), image.digest)
  expect(upstream.requests[0]!.path).toBe(`${app}/manifests/v1`)
})
