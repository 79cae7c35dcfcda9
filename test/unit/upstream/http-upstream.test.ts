import { createHash } from 'node:crypto'
import { createServer, type Socket } from 'node:net'
import { brotliCompressSync, deflateSync, gzipSync } from 'node:zlib'
import { describe, expect, onTestFinished, test } from 'vitest'
import { computeDigest, parseDigest } from '../../../src/oci/reference.ts'
import { mediaType } from '../../../src/oci/content.ts'
import type { LimitedError } from '../../../src/upstream/failures.ts'
import { toRequestError } from '../../../src/upstream/network-errors.ts'
import { failureOf, fakeClock, openUpstream, readAll } from '../../support/upstream/open-upstream.ts'
import { eventually, reply, serve } from '../../support/upstream/serve.ts'

const tag = { kind: 'tag', tag: 'v1' } as const
const anonymous = { access: 'anonymous' } as const
const manifest = JSON.stringify({ schemaVersion: 2, mediaType: mediaType.ociManifest })
const digest = computeDigest(Buffer.from(manifest))
const type = { 'content-type': `${mediaType.ociManifest}; charset=utf-8` }
const blob = createHash('sha512').update('seed').digest('hex').repeat(500)
const blobDigest = computeDigest(Buffer.from(blob))

describe('metadata requests', () => {
  test('have the form of the specification, and accept plain bytes only', async () => {
    const server = await serve((_, response) =>
      reply(response, 200, { ...type, 'docker-content-digest': digest }, manifest),
    )
    const upstream = openUpstream(`${server.url}/prefix/`)
    expect(await upstream.resolve('a/b', tag, anonymous)).toEqual({
      digest,
      mediaType: mediaType.ociManifest,
      size: manifest.length,
      identity: 'anonymous',
    })
    const fetched = await upstream.manifest('a/b', { kind: 'digest', digest }, anonymous)
    expect([fetched.mediaType, Buffer.from(fetched.bytes).toString()]).toEqual([mediaType.ociManifest, manifest])
    expect(server.log).toEqual(['HEAD /prefix/v2/a/b/manifests/v1', `GET /prefix/v2/a/b/manifests/${digest}`])
    expect(server.requests[1]!.headers).toMatchObject({
      'accept-encoding': 'identity',
      'user-agent': 'mirror/test',
      accept: expect.stringContaining(mediaType.dockerList),
    })
    expect(server.requests[1]!.headers.accept).not.toContain('v1+prettyjws')
  })

  test('give no digest when a HEAD has none or a malformed one', async () => {
    const server = await serve((_, response) => reply(response, 200, { ...type, 'docker-content-digest': 'sha256:no' }))
    expect((await openUpstream(server.url).resolve('a', tag, anonymous)).digest).toBeUndefined()
  })

  test('give lists with the query of their next page', async () => {
    const server = await serve((request, response) => {
      if (request.url!.includes('/referrers/')) return reply(response, 404)
      const link = '</elsewhere/v2/a/tags/list?n=2&last=b%2Bc>; rel="next"'
      reply(response, 200, { 'content-type': 'application/json', link, 'oci-filters-applied': 'x' }, '{"tags":[]}')
    })
    const upstream = openUpstream(server.url)
    const list = await upstream.tags('a', 'n=2&last=a%26b', anonymous)
    expect(list).toMatchObject({ next: 'n=2&last=b%2Bc', filtersApplied: 'x', identity: 'anonymous' })
    expect(await upstream.referrers('a', digest, 'artifactType=text%2Fx', anonymous)).toBeUndefined()
    expect(server.log).toEqual([
      'GET /v2/a/tags/list?n=2&last=a%26b',
      `GET /v2/a/referrers/${digest}?artifactType=text%2Fx`,
    ])
  })

  test.each([400, 404, 405, 410, 501])('treat a %i for the referrers list as a missing endpoint', async (status) => {
    const server = await serve((_, response) => reply(response, status))
    expect(await openUpstream(server.url).referrers('a', digest, '', anonymous)).toBeUndefined()
    expect(server.log).toHaveLength(1)
  })

  test.each([403, 416])('treat a %i for the referrers list as a failure', async (status) => {
    const server = await serve((_, response) => reply(response, status))
    await failureOf(openUpstream(server.url).referrers('a', digest, '', anonymous))
  })

  test.each([
    [404, 'absent', 404],
    [410, 'absent', 404],
    [400, 'invalid', 502],
    [401, 'denied', 401],
    [402, 'denied', 402],
    [403, 'denied', 403],
    [405, 'invalid', 502],
    [406, 'invalid', 502],
    [407, 'unavailable', 502],
    [409, 'invalid', 502],
    [412, 'denied', 412],
    [415, 'invalid', 502],
    [418, 'invalid', 502],
    [421, 'invalid', 502],
    [422, 'invalid', 502],
    [423, 'denied', 423],
    [424, 'invalid', 502],
    [426, 'invalid', 502],
    [428, 'invalid', 502],
    [431, 'invalid', 502],
    [451, 'denied', 451],
    [501, 'invalid', 502],
    [304, 'invalid', 502],
    [416, 'invalid', 502],
  ])('report a %i as %s without a retry', async (status, failure, answer) => {
    const server = await serve((_, response) => reply(response, status))
    const error = await failureOf(openUpstream(server.url).manifest('a', tag, anonymous))
    expect([error.failure, error.status]).toEqual([failure, answer])
    expect(server.log).toHaveLength(1)
  })
})

describe('a failure of TLS', () => {
  test('says that a registry with plain HTTP does not speak TLS, and how to name it', async () => {
    const server = await serve((_, response) => reply(response, 200, type, manifest))
    const host = new URL(server.url).host
    const error = await failureOf(openUpstream(`https://${host}`).manifest('a', tag, anonymous))
    expect(error.message).toMatch(/^registry\.example \(127\.0\.0\.1:\d+\) does not speak TLS \(\w+\)\. If it speaks/)
    expect(error.message).toContain('its URL must begin with http://.')
    expect(error.message).not.toContain('certificate')
  })

  test.each([
    ['SELF_SIGNED_CERT_IN_CHAIN', 'presented a certificate that is not trusted', true],
    ['CERT_UNTRUSTED', 'presented a certificate that is not trusted', true],
    ['CERT_HAS_EXPIRED', 'presented a certificate that has expired', false],
    ['ERR_TLS_CERT_ALTNAME_INVALID', 'presented a certificate for another host name', false],
    ['ERR_SSL_WRONG_VERSION_NUMBER', 'does not speak TLS', false],
    ['ERR_SSL_PACKET_LENGTH_TOO_LONG', 'does not speak TLS', false],
    ['ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION', 'failed the TLS handshake', false],
    ['ERR_SSL_SSLV3_ALERT_HANDSHAKE_FAILURE', 'failed the TLS handshake', false],
    ['EPROTO', 'failed the TLS handshake', false],
  ])('with %s is described as "%s"', (code, why, namesAuthority) => {
    const failure = Object.assign(new Error('tls'), { code })
    const { message } = toRequestError({ host: 'r.example', target: 'r.example', isRedirected: false }, failure)
    expect(message).toContain(`r.example ${why} (${code})`)
    expect(message.includes('upstreams."r.example".ca')).toBe(namesAuthority)
  })
})

describe('an upstream that fails', () => {
  test('gets three attempts: 503, 503, 200', async () => {
    const server = await serve((_, response) => {
      if (server.log.length < 3) reply(response, 503)
      else reply(response, 200, type, manifest)
    })
    const upstream = openUpstream(server.url)
    await upstream.manifest('a', tag, anonymous)
    expect(server.log).toHaveLength(3)
    expect(upstream.health().state).toBe('ok')
  })

  test('gets a retry when it resets the connection, or cuts a manifest short', async () => {
    const server = await serve((request, response) => {
      if (server.log.length === 1) return void request.socket.resetAndDestroy()
      if (server.log.length === 2) {
        response.writeHead(200, { ...type, 'content-length': manifest.length })
        response.write(manifest.slice(0, 5))
        return void setTimeout(() => request.socket.destroy(), 20)
      }
      reply(response, 200, type, manifest)
    })
    const upstream = openUpstream(server.url)
    expect((await upstream.manifest('a', tag, anonymous)).bytes).toHaveLength(manifest.length)
    expect(server.log).toHaveLength(3)
  })

  test('fails with 502 when all attempts fail, and then gets no repetition of the request', async () => {
    const server = await serve((_, response) => reply(response, 500))
    const upstream = openUpstream(server.url)
    const first = await failureOf(upstream.manifest('a', tag, anonymous))
    expect([first.failure, first.status, server.log.length]).toEqual(['unavailable', 502, 3])
    expect(upstream.health().state).toBe('failing')
    const second = await failureOf(upstream.manifest('a', tag, anonymous))
    const third = await failureOf(upstream.manifest('a', tag, anonymous))
    expect([second.status, third.status, server.log.length]).toEqual([503, 503, 5])
    expect(third.retryAfterSeconds).toBeGreaterThan(25)
    expect(upstream.health().state).toBe('failing')
    await failureOf(upstream.manifest('b', tag, anonymous))
    expect(server.log.length).toBe(8)
  })

  test('fails with 502 when the port is closed', async () => {
    const server = await serve(() => {})
    await server.close()
    const error = await failureOf(openUpstream(server.url).resolve('a', tag, anonymous))
    expect([error.failure, error.status]).toEqual(['unavailable', 502])
    expect(error.message).toContain('refused the connection')
  })

  test('fails with 502 and names the host that could not be resolved', async () => {
    const error = await failureOf(openUpstream('http://nowhere.invalid').resolve('a', tag, anonymous))
    expect([error.failure, error.status]).toEqual(['unavailable', 502])
    expect(error.message).toMatch(
      / cannot be reached: the name nowhere\.invalid could not be resolved \(offline, or DNS\)\.$/,
    )
  })

  test('fails with 504 when it does not answer in time', async () => {
    const server = await serve(() => {})
    const upstream = openUpstream(server.url, { timeouts: { connect: 1000, headers: 100, idle: 1000 } })
    const error = await failureOf(upstream.resolve('a', tag, anonymous))
    expect([error.failure, error.status]).toEqual(['unavailable', 504])
  })

  test('gets no retry after ten seconds', async () => {
    const clock = fakeClock()
    const server = await serve((_, response) => {
      clock.pass(9900)
      reply(response, 503)
    })
    await failureOf(openUpstream(server.url, { clock, random: () => 0.5 }).resolve('a', tag, anonymous))
    expect(server.log).toHaveLength(1)
  })

  test('by not speaking HTTP is unavailable', async () => {
    const sockets: Socket[] = []
    const server = createServer((socket) => {
      sockets.push(socket)
      socket.on('error', () => {}).end('SSH-2.0-it\r\n')
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    onTestFinished(() => void server.close())
    const { port } = server.address() as { port: number }
    const error = await failureOf(openUpstream(`http://127.0.0.1:${port}`).resolve('a', tag, anonymous))
    expect([error.failure, error.status]).toEqual(['unavailable', 502])
  })

  test('rejects an aborted request with the reason of the abort', async () => {
    const server = await serve(() => {})
    const abort = new AbortController()
    const asking = openUpstream(server.url).resolve('a', tag, { ...anonymous, signal: abort.signal })
    await eventually(() => server.log.length === 1)
    abort.abort(new Error('enough'))
    await expect(asking).rejects.toThrow('enough')
    await eventually(() => server.sockets.size === 0)
  })

  test('has its requests and connections ended by close()', async () => {
    const server = await serve((request, response) => {
      if (request.method === 'HEAD') reply(response, 200)
    })
    const upstream = openUpstream(server.url)
    await upstream.resolve('a', tag, anonymous)
    const hanging = failureOf(upstream.manifest('a', tag, anonymous))
    await eventually(() => server.log.length === 2)
    await upstream.close()
    expect((await hanging).failure).toBe('unavailable')
    await eventually(() => server.sockets.size === 0)
  })
})

describe('rate limits', () => {
  test('are remembered until Retry-After, for the limited identity', async () => {
    const clock = fakeClock()
    let limited = true
    const server = await serve((request, response) => {
      if (limited && !request.headers.authorization)
        return reply(response, 429, { 'retry-after': 20 }, 'Too Many Requests')
      reply(response, 200, type, manifest)
    })
    const upstream = openUpstream(server.url, { clock })
    const error = await failureOf(upstream.manifest('a', tag, anonymous))
    expect([error.failure, error.status, error.retryAfterSeconds]).toEqual(['limited', 429, 20])
    clock.pass(5000)
    expect((await failureOf(upstream.resolve('b', tag, anonymous))).retryAfterSeconds).toBe(15)
    expect((await failureOf(upstream.statBlob('b', digest, anonymous))).failure).toBe('limited')
    expect(server.log).toHaveLength(1)
    expect(upstream.health().state).toBe('ok')
    limited = false
    clock.pass(15_000)
    await upstream.manifest('a', tag, anonymous)
    expect(server.log).toHaveLength(2)
  })

  test.each([
    ['an announced end', { 'retry-after': '7200' }, 7_200_000],
    ['no announced end', {}, undefined],
  ])('keep %s during the wait', async (_, headers, announcedMs) => {
    const clock = fakeClock()
    const server = await serve((_, response) => reply(response, 429, headers))
    const upstream = openUpstream(server.url, { clock })
    const ask = async () => (await failureOf(upstream.resolve('a', tag, anonymous))) as LimitedError
    expect((await ask()).limit.announcedMs).toBe(announcedMs)
    clock.pass(50_000)
    expect((await ask()).limit.announcedMs).toBe(announcedMs && announcedMs - 50_000)
    expect(server.log).toHaveLength(1)
  })

  test('are not extended by requests during the wait', async () => {
    const clock = fakeClock()
    // Advances the time while an answer is created.
    const ticking = { ...clock, monotonic: () => (clock.pass(10), clock.monotonic()) }
    const server = await serve((_, response) => {
      if (server.log.length === 1) reply(response, 429, { 'retry-after': 20 })
      else reply(response, 200, type, manifest)
    })
    const upstream = openUpstream(server.url, { clock: ticking })
    await failureOf(upstream.manifest('a', tag, anonymous))
    const end = clock.monotonic() + 20_000
    for (let asked = 0; asked < 50; asked++) await failureOf(upstream.manifest('a', tag, anonymous))
    clock.pass(end - clock.monotonic())
    await upstream.manifest('a', tag, anonymous)
    expect(server.log).toHaveLength(2)
  })

  test('of the pull quota do not apply to HEADs and blobs', async () => {
    const server = await serve((request, response) => {
      const quota = { 'ratelimit-limit': '100;w=21600', 'ratelimit-remaining': '0;w=21600' }
      const spends = request.method === 'GET' && request.url!.includes('/manifests/')
      reply(response, spends ? 429 : 200, quota, spends ? 'You have reached your pull rate limit.' : '')
    })
    const upstream = openUpstream(server.url)
    await failureOf(upstream.manifest('a', tag, anonymous))
    await failureOf(upstream.manifest('a', { kind: 'digest', digest }, anonymous))
    await upstream.resolve('a', tag, anonymous)
    await upstream.statBlob('a', digest, anonymous)
    expect(server.log.map((line) => line.split(' ')[0])).toEqual(['GET', 'HEAD', 'HEAD'])
    expect(upstream.health().rateLimit).toMatchObject({ limit: 100, remaining: 0, windowSeconds: 21600 })
  })

  test('of less than a second are waited for', async () => {
    const body = '{"errors":[{"code":"TOOMANYREQUESTS","message":"retry-after: 880.123µs, allowed: 44000/minute"}]}'
    const server = await serve((_, response) => {
      if (server.log.length < 3) reply(response, 429, {}, body)
      else reply(response, 200, type, manifest)
    })
    await openUpstream(server.url).manifest('a', tag, anonymous)
    expect(server.log).toHaveLength(3)
  })
})

describe('large responses:', () => {
  test('a manifest over 4 MiB is refused by its length, and its connection dropped', async () => {
    const server = await serve((_, response) => {
      response.writeHead(200, { ...type, 'content-length': 4 * 1024 * 1024 + 1 })
      response.write('{')
    })
    const error = await failureOf(openUpstream(server.url).manifest('a', tag, anonymous))
    expect([error.failure, error.status, server.log.length]).toEqual(['invalid', 502, 1])
    await eventually(() => server.sockets.size === 0)
  })

  test('an endless manifest is refused at 4 MiB', async () => {
    let sent = 0
    const server = await serve((_, response) => {
      response.writeHead(200, type)
      const more = () => {
        while (!response.destroyed && response.write(Buffer.alloc(65_536, 32))) sent += 65_536
      }
      response.on('drain', more)
      more()
    })
    const error = await failureOf(openUpstream(server.url).manifest('a', tag, anonymous))
    expect([error.failure, error.status]).toEqual(['invalid', 502])
    await eventually(() => server.sockets.size === 0)
    expect(sent).toBeLessThan(32 * 1024 * 1024)
  })

  test('a manifest that unpacks to more than 4 MiB is refused', async () => {
    const packed = gzipSync(Buffer.alloc(64 * 1024 * 1024, 32))
    const server = await serve((_, response) => reply(response, 200, { ...type, 'content-encoding': 'gzip' }, packed))
    expect((await failureOf(openUpstream(server.url).manifest('a', tag, anonymous))).failure).toBe('invalid')
  })
})

describe('encoded responses:', () => {
  test.each([
    ['gzip', gzipSync(manifest)],
    ['deflate', deflateSync(manifest)],
    ['br', brotliCompressSync(manifest)],
    ['gzip', Buffer.from(manifest)],
    ['zstd', Buffer.from(manifest)],
  ])('a manifest labelled %s is decoded', async (encoding, body) => {
    const server = await serve((_, response) => reply(response, 200, { ...type, 'content-encoding': encoding }, body))
    const { bytes } = await openUpstream(server.url).manifest('a', tag, anonymous)
    expect(Buffer.from(bytes).toString()).toBe(manifest)
  })

  test('a manifest that cannot be decoded is invalid', async () => {
    const server = await serve((_, response) =>
      reply(response, 200, { ...type, 'content-encoding': 'gzip' }, 'no gzip'),
    )
    expect((await failureOf(openUpstream(server.url).manifest('a', tag, anonymous))).failure).toBe('invalid')
  })

  test('a blob is decoded, and resumed from its beginning', async () => {
    const packed = gzipSync(blob)
    const server = await serve((request, response) => {
      const start = Number(/bytes=(\d+)-/.exec(request.headers.range ?? '')?.[1] ?? 0)
      const head = { 'content-encoding': 'gzip' }
      if (start === 0) return reply(response, 200, head, packed)
      const range = `bytes ${start}-${packed.length - 1}/${packed.length}`
      reply(response, 206, { ...head, 'content-range': range }, packed.subarray(start))
    })
    const upstream = openUpstream(server.url)
    const whole = await upstream.blob('a', blobDigest, { ...anonymous, from: 0, expectedSize: blob.length })
    expect(whole.size).toBe(blob.length)
    expect((await readAll(whole.body)).toString()).toBe(blob)
    const rest = await upstream.blob('a', blobDigest, { ...anonymous, from: 1000, expectedSize: blob.length })
    expect((await readAll(rest.body)).toString()).toBe(blob.slice(1000))
    expect(server.requests.map(({ headers }) => headers.range)).toEqual([undefined, 'bytes=1000-', undefined])
  })

  test('a blob that is labelled but not encoded is passed through', async () => {
    const layer = gzipSync(blob)
    const server = await serve((_, response) => reply(response, 200, { 'content-encoding': 'gzip' }, layer))
    const options = { ...anonymous, from: 0, expectedSize: layer.length }
    const { body, size } = await openUpstream(server.url).blob('a', blobDigest, options)
    expect(size).toBe(layer.length)
    expect((await readAll(body)).equals(layer)).toBe(true)
  })

  test('an encoded blob that is reset fails like any other, and one that is abandoned leaves no connection', async () => {
    const packed = gzipSync(blob, { level: 0 })
    const server = await serve((request, response) => {
      response.writeHead(200, { 'content-encoding': 'gzip', 'content-length': packed.length })
      response.write(packed.subarray(0, 40_000))
      if (server.log.length === 1) setTimeout(() => request.socket.resetAndDestroy(), 50)
    })
    const upstream = openUpstream(server.url)
    const cut = await upstream.blob('a', blobDigest, { ...anonymous, from: 0 })
    expect(await failureOf(readAll(cut.body))).toMatchObject({ failure: 'unavailable', status: 502 })
    const left = await upstream.blob('a', blobDigest, { ...anonymous, from: 0 })
    for await (const chunk of left.body) if (chunk.length > 0) break
    await eventually(() => server.sockets.size === 0, 1500)
  })

  test('a blob that cannot be decoded is invalid, and leaves no connection', async () => {
    const server = await serve((_, response) => {
      response.writeHead(200, { 'content-encoding': 'gzip' })
      response.write('this is no gzip')
    })
    const { body } = await openUpstream(server.url).blob('a', blobDigest, { ...anonymous, from: 0 })
    expect((await failureOf(readAll(body))).failure).toBe('invalid')
    await eventually(() => server.sockets.size === 0)
  })
})

describe('blobs', () => {
  test('keep their upstream busy until the end of the body, or until the reader leaves', async () => {
    const big = Buffer.alloc(4 * 1024 * 1024)
    const server = await serve((_, response) => reply(response, 200, { 'content-length': String(big.length) }, big))
    const upstream = openUpstream(server.url)
    expect(upstream.isIdle()).toBe(true)
    const read = await upstream.blob('a', blobDigest, { ...anonymous, from: 0 })
    expect(upstream.isIdle()).toBe(false)
    await readAll(read.body)
    await expect.poll(() => upstream.isIdle()).toBe(true)
    const left = await upstream.blob('a', blobDigest, { ...anonymous, from: 0 })
    expect(upstream.isIdle()).toBe(false)
    await left.body[Symbol.asyncIterator]().return?.()
    await expect.poll(() => upstream.isIdle()).toBe(true)
  })

  const ranged = (served: number | undefined, total: number | '*' = blob.length) =>
    serve((request, response) => {
      const start = Number(/bytes=(\d+)-/.exec(request.headers.range ?? '')?.[1] ?? 0)
      if (start === 0 || served === undefined) return reply(response, 200, {}, blob)
      const range = `bytes ${served}-${blob.length - 1}/${total}`
      reply(response, 206, { 'content-range': range }, blob.slice(served))
    })

  test('arrive whole, with their size', async () => {
    const server = await ranged(undefined)
    const upstream = openUpstream(server.url)
    expect(await upstream.statBlob('a', blobDigest, anonymous)).toEqual({ size: blob.length, identity: 'anonymous' })
    const { size, body } = await upstream.blob('a', blobDigest, { ...anonymous, from: 0 })
    expect(size).toBe(blob.length)
    expect((await readAll(body)).toString()).toBe(blob)
  })

  test.each([
    ['by Range', 777, blob.length],
    ['by Range without a total', 777, '*' as const],
    ['by skipping when the upstream ignores Range', undefined, blob.length],
  ])('arrive from a given byte on, %s', async (_, served, total) => {
    const server = await ranged(served, total)
    const { size, body } = await openUpstream(server.url).blob('a', blobDigest, { ...anonymous, from: 777 })
    expect(size).toBe(blob.length)
    expect((await readAll(body)).toString()).toBe(blob.slice(777))
  })

  test('are refused in a part that was not requested', async () => {
    const server = await ranged(778)
    const error = await failureOf(openUpstream(server.url).blob('a', blobDigest, { ...anonymous, from: 777 }))
    expect([error.failure, error.status]).toEqual(['invalid', 502])
  })

  test.each<[string, (socket: Socket) => void, number]>([
    ['reset', (socket) => socket.resetAndDestroy(), 502],
    ['cut short', (socket) => socket.destroy(), 502],
    ['stalled', () => {}, 504],
  ])('that are %s fail in their body, and do not count as an outage', async (_, end, status) => {
    const server = await serve((request, response) => {
      response.writeHead(200, { 'content-length': blob.length })
      response.write(blob.slice(0, 1000))
      setTimeout(() => end(request.socket), 20)
    })
    const upstream = openUpstream(server.url, { timeouts: { connect: 1000, headers: 1000, idle: 100 } })
    const { body } = await upstream.blob('a', blobDigest, { ...anonymous, from: 0 })
    const error = await failureOf(readAll(body))
    expect([error.failure, error.status]).toEqual(['unavailable', status])
    expect(upstream.health().state).toBe('ok')
    await eventually(() => server.sockets.size === 0)
  })

  test('that are not read to the end leave no connection', async () => {
    const server = await serve((_, response) => {
      response.writeHead(200, { 'content-length': 1e9 })
      response.write(blob)
    })
    const { body } = await openUpstream(server.url).blob('a', blobDigest, { ...anonymous, from: 0 })
    for await (const chunk of body) if (chunk.length > 0) break
    await eventually(() => server.sockets.size === 0)
  })

  test.each<[string, (body: AsyncIterable<Uint8Array>, abort: AbortController) => unknown]>([
    ['released', (body) => body[Symbol.asyncIterator]().return?.()],
    ['called off', (_, abort) => abort.abort()],
  ])('that are %s before they are read do not block the next', async (_, end) => {
    const server = await serve((_, response) => {
      if (server.log.length > 40) return reply(response, 200, {}, blob)
      response.writeHead(200, { 'content-length': 1e9 })
      response.write(blob)
    })
    // Sets a long idle timeout, because the deadline of a body would free the connections too.
    const upstream = openUpstream(server.url, { timeouts: { connect: 1000, headers: 1000, idle: 60_000 } })
    for (let opened = 0; opened < 40; opened++) {
      const abort = new AbortController()
      const { body } = await upstream.blob('a', blobDigest, { ...anonymous, from: 0, signal: abort.signal })
      await end(body, abort)
    }
    await eventually(() => server.sockets.size === 0)
    const { body } = await upstream.blob('a', blobDigest, { ...anonymous, from: 0 })
    expect((await readAll(body)).toString()).toBe(blob)
  })

  test('that are released before they arrive leave no connection', async () => {
    const server = await serve((_, response) => {
      response.writeHead(200, { 'content-length': 10 })
      response.flushHeaders()
    })
    const upstream = openUpstream(server.url, { timeouts: { connect: 1000, headers: 1000, idle: 60_000 } })
    const { body } = await upstream.blob('a', blobDigest, { ...anonymous, from: 0 })
    await body[Symbol.asyncIterator]().return?.()
    await eventually(() => server.sockets.size === 0)
  })

  test('that are released while the upstream stalls end at once, and stay ended', async () => {
    const server = await serve((_, response) => {
      response.writeHead(200, { 'content-length': blob.length })
      response.flushHeaders()
    })
    const upstream = openUpstream(server.url, { timeouts: { connect: 1000, headers: 1000, idle: 60_000 } })
    const { body } = await upstream.blob('a', blobDigest, { ...anonymous, from: 0 })
    const iterator = body[Symbol.asyncIterator]()
    const reading = failureOf(iterator.next())
    await iterator.return?.()
    expect((await reading).failure).toBe('unavailable')
    expect(await iterator.next()).toEqual({ done: true, value: undefined })
    await eventually(() => server.sockets.size === 0)
  })

  test('do not block metadata requests', async () => {
    const server = await serve((request, response) => {
      if (request.method === 'HEAD') return reply(response, 200, type)
      response.writeHead(200, { 'content-length': blob.length })
      response.write('x')
    })
    const upstream = openUpstream(server.url)
    const bodies = await Promise.all(
      Array.from({ length: 16 }, () => upstream.blob('a', blobDigest, { ...anonymous, from: 0 })),
    )
    await upstream.resolve('a', tag, anonymous)
    expect(server.connections).toBe(17)
    expect(bodies).toHaveLength(16)
  })

  test('with a sha512 digest are requested like any other', async () => {
    const server = await ranged(undefined)
    const long = parseDigest(`sha512:${'a'.repeat(128)}`)!
    await readAll((await openUpstream(server.url).blob('a', long, { ...anonymous, from: 0 })).body)
    expect(server.log).toEqual([`GET /v2/a/blobs/${long}`])
  })
})
