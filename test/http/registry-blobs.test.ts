import { describe, expect, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { expectContent, expectError } from '../support/expect-content.ts'
import { open } from '../support/get.ts'
import { noise } from '../support/noise.ts'
import { startTestRegistry } from '../support/registry.ts'

const bytes = noise(300_000, 1)
const digest = computeDigest(bytes)
const empty = Buffer.alloc(0)

describe('Pushing a blob monolithically: POST then PUT', () => {
  test('a session begins with 202, a Location and an empty Range', async () => {
    const registry = await startTestRegistry()
    const answer = await registry.ask('POST', '/v2/app/blobs/uploads/')
    expect(answer.status).toBe(202)
    expect(answer.headers.location).toMatch(/^\/v2\/app\/blobs\/uploads\/[0-9a-f]{32}$/)
    expect(answer.headers.range).toBe('0-0')
    expect(answer.headers['oci-chunk-min-length']).toBe('1048576')
  })

  test.each(['sha256', 'sha512'] as const)('PUT with the body publishes it under its %s digest', async (algorithm) => {
    const registry = await startTestRegistry()
    const wanted = computeDigest(bytes, algorithm)
    const answer = await registry.ask('PUT', `${await registry.begin('app')}?digest=${wanted}`, { body: bytes })
    expect(answer).toMatchObject({ status: 201, headers: { 'docker-content-digest': wanted } })
    expect(answer.headers.location).toBe(`/v2/app/blobs/${wanted}`)
    const got = await registry.get(answer.headers.location!)
    expect(got).toMatchObject({ status: 200, headers: { 'docker-content-digest': wanted } })
    expect(got.body.equals(bytes)).toBe(true)
  })

  test('the session is over after the PUT', async () => {
    const registry = await startTestRegistry()
    const location = await registry.begin('app')
    await registry.ask('PUT', `${location}?digest=${digest}`, { body: bytes })
    expectError(await registry.get(location), 404, 'BLOB_UPLOAD_UNKNOWN')
  })

  test('a wrong digest is refused with 400 and leaves nothing', async () => {
    const registry = await startTestRegistry()
    const other = computeDigest(Buffer.from('other'))
    const location = await registry.begin('app')
    expectError(await registry.ask('PUT', `${location}?digest=${other}`, { body: bytes }), 400, 'DIGEST_INVALID')
    expect((await registry.get(`/v2/app/blobs/${other}`)).status).toBe(404)
    expect((await registry.get(`/v2/app/blobs/${digest}`)).status).toBe(404)
    expect((await registry.status()).storage.pushedBytes).toBe(0)
  })

  test.each(['', '?digest=sha256:baddigeststring', '?digest=md5:abc'])(
    'PUT with the query "%s" is a 400, and the session lives on',
    async (query) => {
      const registry = await startTestRegistry()
      const location = await registry.begin('app')
      expectError(await registry.ask('PUT', `${location}${query}`, { body: bytes }), 400, 'DIGEST_INVALID')
      expect((await registry.ask('PUT', `${location}?digest=${digest}`, { body: bytes })).status).toBe(201)
    },
  )

  test('a blob of 0 bytes is accepted', async () => {
    const registry = await startTestRegistry()
    const none = computeDigest(empty)
    expect((await registry.ask('PUT', `${await registry.begin('app')}?digest=${none}`)).status).toBe(201)
    expect(await registry.get(`/v2/app/blobs/${none}`)).toMatchObject({
      status: 200,
      headers: { 'content-length': '0' },
    })
    expect((await registry.ask('POST', `/v2/b/blobs/uploads/?digest=${none}`)).status).toBe(201)
  })
})

describe('Pushing a blob monolithically: single POST', () => {
  test.each(['sha256', 'sha512'] as const)('POST with %s digest and body publishes it', async (algorithm) => {
    const registry = await startTestRegistry()
    const wanted = await registry.pushBlob('app', bytes, computeDigest(bytes, algorithm))
    expect((await registry.get(`/v2/app/blobs/${wanted}`)).body.equals(bytes)).toBe(true)
  })

  test('a wrong digest is refused with 400', async () => {
    const registry = await startTestRegistry()
    const wrong = computeDigest(empty)
    expectError(
      await registry.ask('POST', `/v2/app/blobs/uploads/?digest=${wrong}`, { body: bytes }),
      400,
      'DIGEST_INVALID',
    )
    expect((await registry.status()).registry.uploads).toBe(0)
  })

  test('a malformed digest is refused with 400', async () => {
    const registry = await startTestRegistry()
    expectError(
      await registry.ask('POST', '/v2/app/blobs/uploads/?digest=sha256:baddigeststring', { body: bytes }),
      400,
      'DIGEST_INVALID',
    )
  })
})

describe('Pushing a blob in chunks', () => {
  const range = (start: number, end: number) => ({ 'content-range': `${start}-${end - 1}` })

  test.each(['', '?digest-algorithm=sha512'])(
    'PATCH in order, then PUT without a body publishes the blob (POST %s)',
    async (query) => {
      const registry = await startTestRegistry()
      const wanted = computeDigest(bytes, query === '' ? 'sha256' : 'sha512')
      let location = await registry.begin('app', query)
      for (let at = 0; at < bytes.length; at += 100_000) {
        const answer = await registry.ask('PATCH', location, {
          body: bytes.subarray(at, at + 100_000),
          headers: range(at, at + 100_000),
        })
        expect(answer).toMatchObject({ status: 202, headers: { range: `0-${at + 99_999}` } })
        location = answer.headers.location!
      }
      expect((await registry.ask('PUT', `${location}?digest=${wanted}`)).status).toBe(201)
      expect((await registry.get(`/v2/app/blobs/${wanted}`)).body.equals(bytes)).toBe(true)
    },
  )

  test('the last chunk may come with the PUT', async () => {
    const registry = await startTestRegistry()
    const location = await registry.begin('app')
    await registry.ask('PATCH', location, { body: bytes.subarray(0, 200_000), headers: range(0, 200_000) })
    const answer = await registry.ask('PUT', `${location}?digest=${digest}`, {
      body: bytes.subarray(200_000),
      headers: range(200_000, 300_000),
    })
    expect(answer.status).toBe(201)
    expectContent(await registry.get(`/v2/app/blobs/${digest}`), digest)
  })

  test.each([
    ['PATCH', 'a gap', 100_001],
    ['PATCH', 'an overlap', 50_000],
    ['PATCH', 'the first chunk again', 0],
    ['PUT', 'a gap', 200_000],
    ['PUT', 'the first chunk again', 0],
  ])('%s with %s is a 416 with the stored Range, and the upload continues', async (method, _what, start) => {
    const registry = await startTestRegistry()
    const location = await registry.begin('app')
    await registry.ask('PATCH', location, { body: bytes.subarray(0, 100_000), headers: range(0, 100_000) })
    const query = method === 'PUT' ? `?digest=${digest}` : ''
    const refused = await registry.ask(method, `${location}${query}`, {
      body: bytes.subarray(start, start + 100_000),
      headers: range(start, start + 100_000),
    })
    expectError(refused, 416, 'BLOB_UPLOAD_INVALID')
    expect(refused.headers).toMatchObject({ range: '0-99999', location })
    const state = await registry.get(location)
    expect(state).toMatchObject({ status: 204, headers: { range: '0-99999', location } })
    const rest = await registry.ask('PUT', `${location}?digest=${digest}`, { body: bytes.subarray(100_000) })
    expect(rest.status).toBe(201)
  })

  test('a first chunk that does not begin at 0 is a 416', async () => {
    const registry = await startTestRegistry()
    const location = await registry.begin('app')
    const body = bytes.subarray(0, 100)
    expectError(await registry.ask('PATCH', location, { body, headers: range(100, 200) }), 416)
  })

  test.each(['x-y', '5-1', '0-', '0-98'])(
    'a Content-Range "%s" that is none, or not the body\'s, is a 400',
    async (text) => {
      const registry = await startTestRegistry()
      const location = await registry.begin('app')
      const headers = { 'content-range': text }
      expectError(await registry.ask('PATCH', location, { body: bytes.subarray(0, 100), headers }), 400)
      expect((await registry.get(location)).headers.range).toBe('0-0')
    },
  )

  test('a PATCH with Transfer-Encoding chunked and neither length nor range is accepted', async () => {
    const registry = await startTestRegistry()
    const location = await registry.begin('app')
    const headers = { 'transfer-encoding': 'chunked' }
    const answer = await registry.ask('PATCH', location, { body: bytes, headers })
    expect(answer).toMatchObject({ status: 202, headers: { range: '0-299999' } })
    expect((await registry.ask('PUT', `${location}?digest=${digest}`)).status).toBe(201)
  })

  test('a PATCH that breaks off keeps the bytes that arrived, and can be resumed', async () => {
    const registry = await startTestRegistry()
    const location = await registry.begin('app')
    const leave = new AbortController()
    const { request } = await import('node:http')
    const { port } = new URL(registry.url)
    const sent = request({ port, host: '127.0.0.1', method: 'PATCH', path: location, signal: leave.signal })
    sent.on('error', () => {})
    sent.write(bytes.subarray(0, 100_000))
    await expect.poll(async () => (await registry.get(location)).headers.range).toBe('0-99999')
    leave.abort()
    const headers = { 'content-range': '100000-299999' }
    await expect
      .poll(async () => (await registry.ask('PATCH', location, { body: bytes.subarray(100_000), headers })).status)
      .toBe(202)
    expect((await registry.ask('PUT', `${location}?digest=${digest}`)).status).toBe(201)
    expect(registry.log.filter((line) => line.startsWith('error'))).toEqual([])
  })

  test('one of two PATCHes at once is a 202, and the other a 409', async () => {
    const registry = await startTestRegistry()
    const location = await registry.begin('app')
    const { request } = await import('node:http')
    const { port } = new URL(registry.url)
    const first = request({ port, host: '127.0.0.1', method: 'PATCH', path: location })
    const answered = new Promise<number>((resolve) =>
      first.once('response', (response) => resolve(response.resume().statusCode!)),
    )
    first.write(bytes.subarray(0, 1000))
    await expect.poll(async () => (await registry.get(location)).headers.range).toBe('0-999')
    expectError(await registry.ask('PATCH', location, { body: bytes }), 409, 'BLOB_UPLOAD_INVALID')
    first.end(bytes.subarray(1000))
    expect(await answered).toBe(202)
    expect((await registry.ask('PUT', `${location}?digest=${digest}`)).status).toBe(201)
  })

  test('a body that stalls is ended, and the session stays', async () => {
    const registry = await startTestRegistry({ idle: 100 })
    const location = await registry.begin('app')
    const { request } = await import('node:http')
    const { port } = new URL(registry.url)
    const sent = request({ port, host: '127.0.0.1', method: 'PATCH', path: location })
    const failed = new Promise((resolve) => sent.once('error', resolve))
    sent.write(bytes.subarray(0, 2000))
    await failed
    expect(await registry.get(location)).toMatchObject({ status: 204, headers: { range: '0-1999' } })
  })
})

test('every request of a push is a line in the log', async () => {
  const registry = await startTestRegistry()
  await registry.ask('PUT', `${await registry.begin('app')}?digest=${digest}`, { body: bytes })
  const lines = registry.log.filter((line) => line.startsWith('info request'))
  expect(lines.map((line) => /"method":"(\w+)".*"status":(\d+)/.exec(line)!.slice(1))).toEqual([
    ['POST', '202'],
    ['PUT', '201'],
  ])
})

describe('Cancel a blob upload', () => {
  test('DELETE ends a session with 204, as kaniko probes', async () => {
    const registry = await startTestRegistry()
    const location = await registry.begin('app')
    await registry.ask('PATCH', location, { body: bytes })
    expect((await registry.ask('DELETE', location)).status).toBe(204)
    expectError(await registry.get(location), 404, 'BLOB_UPLOAD_UNKNOWN')
    expectError(await registry.ask('DELETE', location), 404, 'BLOB_UPLOAD_UNKNOWN')
    expect((await registry.status()).registry.uploads).toBe(0)
  })

  test.each(['GET', 'PATCH', 'PUT', 'DELETE'])('%s of another repository’s session is a 404', async (method) => {
    const registry = await startTestRegistry()
    const location = await registry.begin('app')
    const elsewhere = location.replace('/app/', '/other/')
    expectError(await registry.ask(method, `${elsewhere}?digest=${digest}`), 404, 'BLOB_UPLOAD_UNKNOWN')
    expect((await registry.get(location)).status).toBe(204)
  })

  test('the number of open sessions is limited, and empty ones yield to new ones', async () => {
    const registry = await startTestRegistry()
    const first = await registry.begin('app')
    for (let at = 0; at < 2000; at += 100) await Promise.all(Array.from({ length: 100 }, () => registry.begin('app')))
    expect((await registry.status()).registry.uploads).toBeLessThanOrEqual(512)
    expectError(await registry.get(first), 404, 'BLOB_UPLOAD_UNKNOWN')
  })

  test('a session does not exist after a restart, and leaves nothing', async () => {
    const registry = await startTestRegistry()
    const location = await registry.begin('app')
    await registry.ask('PATCH', location, { body: bytes })
    await registry.close()
    const again = await startTestRegistry({ home: registry.home })
    expectError(await again.ask('PATCH', location, { body: bytes }), 404, 'BLOB_UPLOAD_UNKNOWN')
    expect((await again.status()).storage.pushedBytes).toBe(0)
  })
})

describe('Mounting a blob from another repository', () => {
  test.each(['&from=a', '', '&from=a&origin=127.0.0.1%3A5000'])('with mount%s is a 201', async (from) => {
    const registry = await startTestRegistry()
    await registry.pushBlob('a', bytes)
    expect((await registry.get(`/v2/b/blobs/${digest}`)).status).toBe(404)
    const answer = await registry.ask('POST', `/v2/b/blobs/uploads/?mount=${digest}${from}`)
    expect(answer).toMatchObject({ status: 201, headers: { 'docker-content-digest': digest } })
    expectContent(await registry.get(answer.headers.location!), digest)
  })

  test('that the named repository does not have begins an upload', async () => {
    const registry = await startTestRegistry()
    await registry.pushBlob('a', bytes)
    const answer = await registry.ask('POST', `/v2/b/blobs/uploads/?mount=${digest}&from=c`)
    expect(answer.status).toBe(202)
    expect((await registry.ask('PUT', `${answer.headers.location}?digest=${digest}`, { body: bytes })).status).toBe(201)
  })
})

describe('Pulling blobs', () => {
  test('HEAD gives the length and no body', async () => {
    const registry = await startTestRegistry()
    await registry.pushBlob('app', bytes)
    const answer = await registry.ask('HEAD', `/v2/app/blobs/${digest}`)
    expect(answer).toMatchObject({ status: 200, headers: { 'content-length': '300000' } })
    expect(answer.headers['cache-status']).toBeUndefined()
  })

  test.each([
    ['bytes=0-99', 206, 'bytes 0-99/300000', 100],
    ['bytes=299900-400000', 206, 'bytes 299900-299999/300000', 100],
    ['bytes=-5', 206, 'bytes 299995-299999/300000', 5],
    ['bytes=400000-500000', 416, 'bytes */300000', undefined],
    ['bytes=500-0', 416, 'bytes */300000', undefined],
  ])('Range %s is a %i with the right length', async (range, status, contentRange, length) => {
    const registry = await startTestRegistry()
    await registry.pushBlob('app', bytes)
    const answer = await registry.get(`/v2/app/blobs/${digest}`, { range })
    expect(answer).toMatchObject({ status, complete: true, headers: { 'content-range': contentRange } })
    expect(answer.headers['content-length']).toBe(String(length ?? answer.body.length))
  })

  test('a malformed digest is a 400, an unknown one a 404', async () => {
    const registry = await startTestRegistry()
    await registry.pushBlob('app', bytes)
    expectError(await registry.get('/v2/app/blobs/sha256:baddigeststring'), 400, 'DIGEST_INVALID')
    expectError(await registry.get(`/v2/app/blobs/${computeDigest(empty)}`), 404, 'BLOB_UNKNOWN')
  })
})

describe('Deleting blobs', () => {
  test('is immediate, and only in the repository that was named', async () => {
    const registry = await startTestRegistry()
    await registry.pushBlob('a', bytes)
    await registry.pushBlob('b', bytes)
    expect((await registry.ask('DELETE', `/v2/a/blobs/${digest}`)).status).toBe(202)
    expect((await registry.get(`/v2/a/blobs/${digest}`)).status).toBe(404)
    expect((await registry.ask('DELETE', `/v2/a/blobs/${digest}`)).status).toBe(404)
    expectContent(await registry.get(`/v2/b/blobs/${digest}`), digest)
    await registry.ask('DELETE', `/v2/b/blobs/${digest}`)
    expect((await registry.status()).storage.pushedBytes).toBe(0)
  })

  test('what was deleted stays deleted after a restart, what was pushed stays pushed', async () => {
    const registry = await startTestRegistry()
    await registry.pushBlob('a', bytes)
    await registry.pushBlob('b', bytes)
    await registry.ask('DELETE', `/v2/a/blobs/${digest}`)
    await registry.close()
    const again = await startTestRegistry({ home: registry.home })
    expect((await again.get(`/v2/a/blobs/${digest}`)).status).toBe(404)
    expectContent(await again.get(`/v2/b/blobs/${digest}`), digest)
  })
})

test('a push that would use the disk’s reserve is a 507 with the reason', async () => {
  const registry = await startTestRegistry({ minFree: Number.MAX_SAFE_INTEGER })
  const answer = await registry.ask('POST', `/v2/app/blobs/uploads/?digest=${digest}`, { body: bytes })
  expectError(answer, 507, 'DENIED')
  expect((await registry.get(`/v2/app/blobs/${digest}`)).status).toBe(404)
})

test('several requests share a connection, also before and after a refused push', async () => {
  const registry = await startTestRegistry()
  const { Agent, request } = await import('node:http')
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  const { port } = new URL(registry.url)
  const send = (method: string, path: string, body?: Buffer) =>
    new Promise<number>((resolve, reject) => {
      const sent = request({ agent, port, host: '127.0.0.1', method, path }, (response) =>
        response.resume().once('end', () => resolve(response.statusCode!)),
      )
      sent.once('error', reject).end(body)
    })
  expect(await send('PATCH', '/v2/app/blobs/uploads/none', bytes)).toBe(404)
  expect(await send('POST', `/v2/app/blobs/uploads/?digest=${digest}`, bytes)).toBe(201)
  expect(await send('HEAD', `/v2/app/blobs/${digest}`)).toBe(200)
  agent.destroy()
})

test('a page in a browser cannot push', async () => {
  const registry = await startTestRegistry()
  const headers = { origin: 'https://evil.example' }
  expectError(await registry.ask('POST', '/v2/app/blobs/uploads/', { headers }), 403, 'DENIED')
  const foreign = await open(registry.url, '/v2/', { headers: { host: 'evil.example' } })
  expect(foreign.resume().statusCode).toBe(421)
})
