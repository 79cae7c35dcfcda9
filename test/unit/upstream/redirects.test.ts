import { describe, expect, test } from 'vitest'
import { MirrorError } from '../../../src/lib/errors.ts'
import { computeDigest } from '../../../src/oci/reference.ts'
import { testCertificate } from '../../support/upstream/certificate.ts'
import { failureOf, openUpstream, readAll } from '../../support/upstream/open-upstream.ts'
import { reply, serve } from '../../support/upstream/serve.ts'

const digest = computeDigest(Buffer.from('blob'))
const tag = { kind: 'tag', tag: 'v1' } as const
const credentialed = { access: 'credentialed' } as const
const anonymous = { access: 'anonymous' } as const
const withPassword = {
  credentials: { from: 'password-env', username: 'ann', passwordEnv: 'PASSWORD' },
  env: { PASSWORD: 'hunter2' },
} as const

/** Serves a registry that needs a password, and then redirects all clients. */
const sendingTo = (location: string | ((url: string) => string), status = 307) =>
  serve((request, response) => {
    if (!request.headers.authorization) return reply(response, 401, { 'www-authenticate': 'Basic realm="x"' })
    reply(response, status, { location: typeof location === 'string' ? location : location(request.url!) })
  })

describe('redirects', () => {
  test.each([301, 302, 303, 307, 308])(
    'a %i to another port loses the Authorization and keeps the Range',
    async (status) => {
      const storage = await serve((_, response) => reply(response, 206, { 'content-range': 'bytes 2-3/4' }, 'ob'))
      const registry = await sendingTo(`${storage.url}/x?X-Amz-Signature=abc`, status)
      const upstream = openUpstream(registry.url, withPassword)
      const { body, identity } = await upstream.blob('a', digest, { ...credentialed, from: 2 })
      expect((await readAll(body)).toString()).toBe('ob')
      expect(identity).toMatch(/^credential-[0-9a-f]{32}$/)
      expect(registry.requests.at(-1)!.headers.authorization).toMatch(/^Basic /)
      expect(storage.requests[0]!.headers.authorization).toBeUndefined()
      expect(storage.requests[0]!.headers.range).toBe('bytes=2-')
    },
  )

  test('on the same origin keep the Authorization', async () => {
    const registry = await serve((request, response) => {
      if (!request.headers.authorization) return reply(response, 401, { 'www-authenticate': 'Basic realm="x"' })
      if (request.url === '/moved') return reply(response, 200, {}, 'blob')
      reply(response, 307, { location: '/moved' })
    })
    const { body } = await openUpstream(registry.url, withPassword).blob('a', digest, { ...credentialed, from: 0 })
    expect((await readAll(body)).toString()).toBe('blob')
  })

  test('do not restore the Authorization when they return to the origin', async () => {
    const seen: (string | undefined)[] = []
    const there = await serve((_, response) => reply(response, 307, { location: `${registry.url}/back` }))
    const registry = await serve((request, response) => {
      if (request.url === '/back') {
        seen.push(request.headers.authorization)
        return reply(response, 200, {}, 'blob')
      }
      if (!request.headers.authorization) return reply(response, 401, { 'www-authenticate': 'Basic realm="x"' })
      reply(response, 307, { location: there.url })
    })
    await openUpstream(registry.url, withPassword).statBlob('a', digest, credentialed)
    expect(seen).toEqual([undefined])
  })

  test.each([
    [5, true],
    [6, false],
  ])('of %i hops are followed or not: %s', async (hops, followed) => {
    const registry = await serve((request, response) => {
      const hop = Number(/hop=(\d)/.exec(request.url!)?.[1] ?? 0)
      if (hop === hops) return reply(response, 200, {}, 'blob')
      reply(response, 307, { location: `/x?hop=${hop + 1}` })
    })
    const asking = openUpstream(registry.url).statBlob('a', digest, anonymous)
    if (followed) expect((await asking).size).toBe(4)
    else expect(await failureOf(asking)).toMatchObject({ failure: 'invalid', status: 502 })
    expect(registry.log).toHaveLength(6)
  })

  test.each([
    'http://169.254.169.254/latest/meta-data',
    'http://[fe80::1]/',
    'file:///etc/passwd',
    'http://user:pw@127.0.0.1/',
  ])('to %s are refused without a connection', async (location) => {
    const registry = await sendingTo(location)
    const error = await failureOf(openUpstream(registry.url, withPassword).statBlob('a', digest, credentialed))
    expect([error.failure, error.status]).toEqual(['invalid', 502])
    expect(error.message).not.toContain('pw')
    expect(registry.log).toHaveLength(2)
  })

  test('to a name with a more private address are refused without a connection', async () => {
    const registry = await serve((_, response) => reply(response, 307, { location: 'http://metadata.test/' }))
    const upstream = openUpstream(registry.url, {
      lookup: (_host, _options, callback) => callback(null, [{ address: '169.254.169.254', family: 4 }]),
    })
    const error = await failureOf(upstream.statBlob('a', digest, anonymous))
    expect(error.failure).toBe('invalid')
    expect(error.message).toContain('metadata.test')
  })

  test('to a private address are refused, also over a kept connection, once the upstream has a public address', async () => {
    const storage = await serve((_, response) => reply(response, 200, {}, 'blob'))
    const registry = await serve((_, response) => reply(response, 307, { location: storage.url, connection: 'close' }))
    const addresses = [{ address: '127.0.0.1', family: 4 }]
    const upstream = openUpstream(`http://registry.test:${registry.port}`, {
      lookup: (_host, _options, callback) => callback(null, addresses),
    })
    expect((await upstream.statBlob('a', digest, anonymous)).size).toBe(4)
    addresses.push({ address: '9.9.9.9', family: 4 })
    const error = await failureOf(upstream.statBlob('a', digest, anonymous))
    expect([error.failure, error.status]).toEqual(['invalid', 502])
    expect(error.message).toContain('more private address')
    expect(registry.log).toHaveLength(2)
    expect(storage.log).toHaveLength(1)
  })

  test('from https to http are refused', async () => {
    const plain = await serve((_, response) => reply(response, 200, {}, 'blob'))
    const registry = await serve((_, response) => reply(response, 307, { location: plain.url }), testCertificate)
    const upstream = openUpstream(registry.url, { ca: testCertificate.cert })
    expect((await failureOf(upstream.statBlob('a', digest, anonymous))).failure).toBe('invalid')
    expect(plain.log).toEqual([])
  })

  test('with an expired link are retried with a new one from the registry', async () => {
    const storage = await serve((request, response) => reply(response, request.url === '/2' ? 200 : 403, {}, 'blob'))
    const registry = await serve((_, response) =>
      reply(response, 307, { location: `${storage.url}/${registry.log.length}` }),
    )
    const upstream = openUpstream(registry.url)
    expect((await readAll((await upstream.blob('a', digest, { ...anonymous, from: 0 })).body)).toString()).toBe('blob')
    expect(registry.log).toHaveLength(2)
  })

  test('to storage that stays broken fail as unavailable, and do not count as an outage of the registry', async () => {
    const storage = await serve((_, response) => reply(response, 500))
    const registry = await sendingTo(storage.url)
    const upstream = openUpstream(registry.url, withPassword)
    const error = await failureOf(upstream.blob('a', digest, { ...credentialed, from: 0 }))
    expect([error.failure, error.status]).toEqual(['unavailable', 502])
    expect(upstream.health().state).toBe('ok')
  })
})

describe('storage that cannot be reached', () => {
  test('because its port is closed does not count as an outage of the registry', async () => {
    const storage = await serve(() => {})
    await storage.close()
    const registry = await sendingTo(storage.url)
    const upstream = openUpstream(registry.url, withPassword)
    const error = await failureOf(upstream.statBlob('a', digest, credentialed))
    expect([error.failure, error.status]).toEqual(['unavailable', 502])
    expect(upstream.health().state).toBe('ok')
  })

  test('because it does not answer in time does not count as an outage of the registry', async () => {
    const storage = await serve(() => {})
    const registry = await sendingTo(storage.url)
    const timeouts = { connect: 1000, headers: 100, idle: 1000 }
    const upstream = openUpstream(registry.url, { ...withPassword, timeouts })
    const error = await failureOf(upstream.statBlob('a', digest, credentialed))
    expect([error.failure, error.status]).toEqual(['unavailable', 504])
    expect(upstream.health().state).toBe('ok')
  })

  test('counts as an outage when the redirect stays on the registry’s origin', async () => {
    const registry = await serve((request, response) => {
      if (request.url === '/moved') return
      reply(response, 307, { location: '/moved' })
    })
    const upstream = openUpstream(registry.url, { timeouts: { connect: 1000, headers: 100, idle: 1000 } })
    await failureOf(upstream.statBlob('a', digest, anonymous))
    expect(upstream.health().state).toBe('failing')
  })
})

describe('an upstream that was not configured by name', () => {
  test.each(['127.0.0.1', 'localhost'])('is not contacted at %s', async (hostname) => {
    const server = await serve((_, response) => reply(response, 200))
    const upstream = openUpstream(`http://${hostname}:${server.port}`, { allowPrivate: false })
    const error = await failureOf(upstream.resolve('a', tag, anonymous))
    expect(error.failure).toBe('invalid')
    expect(error.message).toContain('configured by name')
    expect(server.connections).toBe(0)
  })
})

describe('a custom CA', () => {
  test('is trusted for its upstream', async () => {
    const server = await serve((_, response) => reply(response, 200, {}, 'blob'), testCertificate)
    const { size } = await openUpstream(server.url, { ca: testCertificate.cert }).statBlob('a', digest, anonymous)
    expect(size).toBe(4)
  })

  test('is named as the remedy when a certificate is not trusted', async () => {
    const server = await serve((_, response) => reply(response, 200), testCertificate)
    const error = await failureOf(openUpstream(server.url).statBlob('a', digest, anonymous))
    expect(error.failure).toBe('unavailable')
    expect(error.message).toContain('upstreams."registry.example".ca')
  })

  test.each(['', 'no PEM', '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----'])('%j is refused', (ca) => {
    expect(() => openUpstream('https://registry.example', { ca })).toThrow(MirrorError)
  })
})
