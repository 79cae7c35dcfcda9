import { describe, expect, test } from 'vitest'
import { MirrorError } from '../../../src/lib/errors.ts'
import { redact } from '../../../src/lib/logger.ts'
import { computeDigest } from '../../../src/oci/reference.ts'
import { getProxyWarnings, readProxies } from '../../../src/upstream/proxy.ts'
import { testCertificate } from '../../support/upstream/certificate.ts'
import { failureOf, openUpstream, readAll } from '../../support/upstream/open-upstream.ts'
import { serveHttpProxy, serveSocksProxy } from '../../support/proxies.ts'
import { reply, serve } from '../../support/upstream/serve.ts'

const digest = computeDigest(Buffer.from('blob'))
const anonymous = { access: 'anonymous' } as const
const blobs = () => serve((_, response) => reply(response, 200, {}, 'blob'))
const secureBlobs = () => serve((_, response) => reply(response, 200, {}, 'blob'), testCertificate)

/** Returns the name of the proxy for a URL. */
const proxyFor = (url: string, env: Record<string, string>) => readProxies(env).find(new URL(url))?.name

describe('the proxy variables', () => {
  const [a, b, c, d] = ['http://a:1', 'http://b:2', 'http://c:3', 'http://d:4']
  test.each<[Record<string, string>, string | undefined, string | undefined]>([
    [{}, undefined, undefined],
    [{ http_proxy: a }, a, undefined],
    [{ HTTP_PROXY: a }, undefined, undefined],
    [{ https_proxy: a }, undefined, a],
    [{ HTTPS_PROXY: a }, undefined, a],
    [{ https_proxy: a, HTTPS_PROXY: b }, undefined, a],
    [{ https_proxy: '', HTTPS_PROXY: b }, undefined, b],
    [{ all_proxy: a }, a, a],
    [{ ALL_PROXY: a }, a, a],
    [{ all_proxy: a, ALL_PROXY: b }, a, a],
    [{ http_proxy: a, HTTPS_PROXY: b, all_proxy: c, ALL_PROXY: d }, a, b],
    [{ HTTP_PROXY: a, ALL_PROXY: b }, b, b],
    [{ http_proxy: a, ALL_PROXY: b }, a, b],
    [{ http_proxy: '  ' }, undefined, undefined],
    [{ http_proxy: a, no_proxy: '*' }, undefined, undefined],
    [{ http_proxy: a, NO_PROXY: 'registry.test' }, undefined, undefined],
    [{ http_proxy: a, no_proxy: 'other.test', NO_PROXY: 'registry.test' }, a, undefined],
  ])('are read as curl reads them: %j', (env, http, https) => {
    expect([proxyFor('http://registry.test/', env), proxyFor('https://registry.test/', env)]).toEqual([http, https])
  })

  test.each([
    ['proxy', 'http://proxy:80'],
    ['proxy:3128', 'http://proxy:3128'],
    ['HTTP://proxy:3128/', 'http://proxy:3128'],
    ['https://proxy', 'https://proxy:443'],
    ['socks5://proxy', 'socks5://proxy:1080'],
    ['socks5h://user:pw@proxy:9050', 'socks5h://proxy:9050'],
    ['socks4a://proxy', 'socks4a://proxy:1080'],
    ['http://[::1]:3128', 'http://[::1]:3128'],
  ])('a proxy may be written as %s', (all_proxy, name) => {
    expect(proxyFor('http://registry.test/', { all_proxy })).toBe(name)
  })

  test.each(['ftp://proxy', 'http://', 'proxy:99999', 'http://a b', 'http://user:%zz@proxy'])(
    '%s is refused',
    (value) => {
      for (const variable of ['http_proxy', 'HTTPS_PROXY', 'ALL_PROXY']) {
        expect(() => readProxies({ [variable]: value })).toThrow(new RegExp(`The proxy in ${variable}`))
        expect(() => openUpstream('http://registry.test', { env: { [variable]: value } })).toThrow(MirrorError)
      }
    },
  )

  test('an invalid proxy is not quoted in the error, and an invalid proxy that is not needed is no error', () => {
    expect(() => readProxies({ http_proxy: 'ftp://me:hush@proxy' })).not.toThrow(/hush/)
    readProxies({ http_proxy: 'http://a', https_proxy: 'http://b', all_proxy: 'nonsense://c' })
  })

  test('HTTP_PROXY alone gives a warning that it is not used', () => {
    expect(getProxyWarnings({ HTTP_PROXY: 'x' })).toEqual([expect.stringContaining('set http_proxy (and https_proxy')])
    expect(getProxyWarnings({ HTTP_PROXY: 'x', HTTPS_PROXY: 'x' })).toEqual([expect.stringMatching(/set http_proxy$/)])
    expect(getProxyWarnings({ HTTP_PROXY: 'x', http_proxy: 'x' })).toEqual([])
    expect(getProxyWarnings({ HTTP_PROXY: 'x', ALL_PROXY: 'x' })).toEqual([])
  })

  test('a password in the URL of a proxy is redacted wherever it is shown', () => {
    for (const scheme of ['http', 'https', 'socks4', 'socks4a', 'socks5', 'socks5h', 'SOCKS5H'])
      expect(redact(`via ${scheme}://me:hush@proxy:1`)).toBe(`via ${scheme}://…@proxy:1`)
  })
})

describe('a host in no_proxy', () => {
  const isDirect = (host: string, no_proxy: string) =>
    proxyFor(`http://${host}/`, { http_proxy: 'http://127.0.0.1:3128', no_proxy }) === undefined

  // Copies the table of curl's own test, tests/unit/unit1614.c.
  const long = `${'127.0.0.1.'.repeat(12)}127`
  test.each<[string, string, boolean]>([
    ['www.example.com', 'localhost .example.com .example.de', true],
    ['www.example.com', 'localhost,.example.com,.example.de', true],
    ['www.example.com.', 'localhost,.example.com,.example.de', true],
    ['example.com', 'localhost,.example.com,.example.de', true],
    ['example.com.', 'localhost,.example.com,.example.de', true],
    ['www.example.com', 'localhost,.example.com.,.example.de', true],
    ['www.example.com', 'localhost,www.example.com.,.example.de', true],
    ['example.com', 'localhost,example.com,.example.de', true],
    ['example.com.', 'localhost,example.com,.example.de', true],
    ['nexample.com', 'localhost,example.com,.example.de', false],
    ['www.example.com', 'localhost,example.com,.example.de', true],
    ['127.0.0.1', '127.0.0.1,localhost', true],
    ['127.0.0.1', '127.0.0.1,localhost,', true],
    ['127.0.0.1', '127.0.0.1/8,localhost,', true],
    ['127.0.0.1', '127.0.0.1/28,localhost,', true],
    ['127.0.0.1', '127.0.0.1/31,localhost,', true],
    ['127.0.0.1', 'localhost,127.0.0.1', true],
    ['127.0.0.1', `localhost,${long}`, false],
    ['localhost', 'localhost,127.0.0.1', true],
    ['localhost', '127.0.0.1,localhost', true],
    ['foobar', 'barfoo', false],
    ['foobar', 'foobar', true],
    ['192.168.0.1', 'foobar', false],
    ['192.168.0.1', '192.168.0.0/16', true],
    ['192.168.0.1', '192.168.0.0/24', true],
    ['192.168.0.1', '192.168.0.0/32', false],
    ['192.168.0.1', '192.168.0.0', false],
    ['192.168.1.1', '192.168.0.0/24', false],
    ['192.168.1.1', 'foo, bar, 192.168.0.0/24', false],
    ['192.168.1.1', 'foo, bar, 192.168.0.0/16', true],
    ['[::1]', 'foo, bar, 192.168.0.0/16', false],
    ['[::1]', 'foo, bar, ::1/64', true],
    ['bar', 'foo, bar, ::1/64', true],
    ['BAr', 'foo, bar, ::1/64', true],
    ['BAr', 'foo,,,,,              bar, ::1/64', true],
    ['www.example.com', 'foo, .example.com', true],
    ['www.example.com', 'www2.example.com, .example.net', false],
    ['example.com', '.example.com, .example.net', true],
    ['nonexample.com', '.example.com, .example.net', false],
    // Copies rows of its tables of CIDR blocks.
    ['192.160.0.1', '192.160.0.1/33', false],
    ['192.160.0.1', '192.160.0.1/32', true],
    ['192.160.0.1', '192.160.0.1/26', true],
    ['192.160.0.1', '192.160.0.1/12', true],
    ['192.160.0.1', '10.0.0.1/8', false],
    ['192.160.0.1', '10.0.0.1/32', false],
    ['[::1]', '::1', true],
    ['[::1]', '0:0::1/128', true],
    ['[::1]', '0:0::1/129', false],
    ['[fe80::ab47:4396:55c9:8474]', 'fe80::ab47:4396:55c9:8474/64', true],
  ])("is connected to directly as in curl's table: %s with %j: %j", (host, list, direct) => {
    expect(isDirect(host, list)).toBe(direct)
  })

  test.each<[string, string, boolean]>([
    ['registry.test:5000', 'registry.test:5000', true],
    ['registry.test:5000', 'registry.test:5001', false],
    ['registry.test', 'registry.test:80', true],
    ['registry.test', 'registry.test:443', false],
    ['a.registry.test:5000', '.registry.test:5000', true],
    ['10.1.2.3:5000', '10.1.2.3:5000', true],
    ['10.1.2.3:5000', '10.0.0.0/8:5000', true],
    ['10.1.2.3:5001', '10.0.0.0/8:5000', false],
    ['[fd00::1]:5000', '[fd00::1]:5000', true],
    ['[fd00::1]:5000', '[fd00::1]:5001', false],
    ['[fd00::1]:5000', '[fd00::1]', true],
    ['[fd00::1]', 'fd00::/8', true],
    ['[fd00::1]', '[fd00::]/8', true],
    ['[::ffff:10.1.2.3]', '10.0.0.0/8', true],
    ['10.1.2.3', '0.0.0.0/0', true],
    ['10.1.2.3', '10.0.0.0/x', false],
    ['10.1.2.3', '3', false],
    ['registry.test', '*.test', true],
    ['registry.test', 'foo,*', true],
    ['registry.test', '*', true],
    ['registry.test', '.', false],
    ['registry.test', 'est', false],
  ])('is connected to directly, also by port and CIDR block: %s with %j: %j', (host, list, direct) => {
    expect(isDirect(host, list)).toBe(direct)
  })

  test.each<[string, string | undefined]>([
    ['http://localhost:5000/', undefined],
    ['http://registry.localhost/', undefined],
    ['http://127.0.0.1:5000/', undefined],
    ['http://127.8.0.1:5000/', undefined],
    ['http://[::1]:5000/', undefined],
    ['http://10.0.0.1:5000/', 'http://proxy.test:3128'],
  ])('need not be one that a proxy on another machine cannot reach: %s goes through %j', (url, name) => {
    expect(proxyFor(url, { http_proxy: 'proxy.test:3128' })).toBe(name)
    expect(proxyFor(url, { http_proxy: '127.0.0.1:3128' })).toBe('http://127.0.0.1:3128')
  })
})

describe('an HTTP proxy', () => {
  test.each(['http_proxy', 'ALL_PROXY'])('from %s is used for http', async (variable) => {
    const server = await blobs()
    const proxy = await serveHttpProxy({ to: `127.0.0.1:${server.port}` })
    const upstream = openUpstream('http://registry.test:5000', { env: { [variable]: proxy.host } })
    expect((await upstream.statBlob('a', digest, anonymous)).size).toBe(4)
    expect(proxy.log).toEqual([`HEAD http://registry.test:5000/v2/a/blobs/${digest}`])
  })

  test.each(['https_proxy', 'HTTPS_PROXY', 'all_proxy'])('from %s is used as a tunnel for https', async (variable) => {
    const server = await secureBlobs()
    const proxy = await serveHttpProxy({ to: `127.0.0.1:${server.port}` })
    const env = { [variable]: `http://${proxy.host}` }
    const upstream = openUpstream('https://localhost:5000', { env, ca: testCertificate.cert })
    const { body } = await upstream.blob('a', digest, { ...anonymous, from: 0 })
    expect((await readAll(body)).toString()).toBe('blob')
    expect(proxy.log).toEqual(['CONNECT localhost:5000'])
    const other = openUpstream('https://localhost.test', { env, ca: testCertificate.cert })
    expect((await failureOf(other.statBlob('a', digest, anonymous))).message).toContain('ERR_TLS_CERT_ALTNAME_INVALID')
  })

  test('is given its user name and password, and the upstream is not', async () => {
    const server = await blobs()
    const proxy = await serveHttpProxy({ to: `127.0.0.1:${server.port}`, login: 'me:hu@sh' })
    const env = { http_proxy: `http://me:hu%40sh@${proxy.host}` }
    await openUpstream('http://registry.test', { env }).statBlob('a', digest, anonymous)
    expect(server.requests[0]!.headers['proxy-authorization']).toBeUndefined()
    const nameless = await serveHttpProxy({ to: `127.0.0.1:${server.port}`, login: 'me:' })
    const only = { http_proxy: `http://me@${nameless.host}` }
    await openUpstream('http://registry.test', { env: only }).statBlob('a', digest, anonymous)
  })

  test.each(['http', 'https'])('that refuses the password for %s is named, without the password', async (scheme) => {
    const server = await blobs()
    const proxy = await serveHttpProxy({ to: `127.0.0.1:${server.port}`, login: 'me:right' })
    const env = { ALL_PROXY: `http://me:wrong-one@${proxy.host}` }
    const error = await failureOf(openUpstream(`${scheme}://registry.test`, { env }).statBlob('a', digest, anonymous))
    expect([error.failure, error.status]).toEqual(['unavailable', 502])
    expect(error.message).toMatch(/proxy.* 407|proxy.*\(407\)/)
    expect(error.message).not.toContain('wrong-one')
    expect(proxy.log).toHaveLength(1)
  })

  test('that refuses to connect is named', async () => {
    const proxy = await serveHttpProxy({ to: '127.0.0.1:1', refuse: 403 })
    const env = { ALL_PROXY: proxy.host }
    const { message } = await failureOf(openUpstream('https://registry.test', { env }).statBlob('a', digest, anonymous))
    expect(message).toBe(`The proxy http://${proxy.host} refuses to connect to registry.example (registry.test) (403).`)
  })

  test('that cannot be reached is named', async () => {
    const gone = await blobs()
    await gone.close()
    const env = { http_proxy: `me:hush@127.0.0.1:${gone.port}` }
    const { message } = await failureOf(openUpstream('http://registry.test', { env }).statBlob('a', digest, anonymous))
    expect(message).toBe(
      `registry.example (registry.test), through the proxy http://127.0.0.1:${gone.port}, refused the connection.`,
    )
  })

  test('is not used for hosts in no_proxy, also by CIDR block and port', async () => {
    const server = await blobs()
    const proxy = await serveHttpProxy({ to: `127.0.0.1:${server.port}` })
    for (const no_proxy of ['127.0.0.0/8', `127.0.0.1:${server.port}`, '*']) {
      const env = { http_proxy: proxy.host, no_proxy }
      await openUpstream(server.url, { env }).statBlob('a', digest, anonymous)
    }
    expect(proxy.log).toEqual([])
    const env = { http_proxy: proxy.host, no_proxy: '10.0.0.0/8,127.0.0.1:1' }
    await openUpstream(server.url, { env }).statBlob('a', digest, anonymous)
    expect(proxy.log).toHaveLength(1)
  })

  test('is used or not for each redirect separately', async () => {
    const storage = await blobs()
    const registry = await serve((_, response) => reply(response, 307, { location: `${storage.url}/x` }))
    const proxy = await serveHttpProxy({ to: `127.0.0.1:${storage.port}` })
    const env = { http_proxy: proxy.host, no_proxy: `127.0.0.1:${registry.port}` }
    await openUpstream(registry.url, { env }).statBlob('a', digest, anonymous)
    expect(proxy.log).toEqual([`HEAD ${storage.url}/x`])
  })
})

describe('a SOCKS proxy', () => {
  const lookup = {
    lookup: (_: string, __: object, done: (e: null, a: { address: string; family: number }[]) => void) =>
      done(null, [{ address: '127.0.0.1', family: 4 }]),
  }

  test.each([
    ['socks5h', 'socks5 name registry.test:5000'],
    ['socks5', 'socks5 address 127.0.0.1:5000'],
    ['socks', 'socks5 address 127.0.0.1:5000'],
    ['socks4', 'socks4 address 127.0.0.1:5000'],
    ['socks4a', 'socks4 name registry.test:5000'],
  ])('of scheme %s is asked for %j', async (scheme, asked) => {
    const server = await blobs()
    const proxy = await serveSocksProxy({ to: `127.0.0.1:${server.port}` })
    const env = { ALL_PROXY: `${scheme}://${proxy.host}` }
    const upstream = openUpstream('http://registry.test:5000', { env, ...lookup })
    const { body } = await upstream.blob('a', digest, { ...anonymous, from: 0 })
    expect((await readAll(body)).toString()).toBe('blob')
    await upstream.statBlob('a', digest, anonymous)
    expect(new Set(proxy.log)).toEqual(new Set([asked]))
  })

  test('carries TLS to the registry, whose certificate is checked', async () => {
    const server = await secureBlobs()
    const proxy = await serveSocksProxy({ to: `127.0.0.1:${server.port}` })
    const env = { https_proxy: `socks5h://${proxy.host}` }
    const upstream = openUpstream('https://localhost', { env, ca: testCertificate.cert })
    expect((await upstream.statBlob('a', digest, anonymous)).size).toBe(4)
    expect(proxy.log).toEqual(['socks5 name localhost:443'])
    const other = openUpstream('https://localhost.test', { env, ca: testCertificate.cert })
    expect((await failureOf(other.statBlob('a', digest, anonymous))).message).toContain('ERR_TLS_CERT_ALTNAME_INVALID')
  })

  test('is asked for an IPv6 address', async () => {
    const server = await blobs()
    const proxy = await serveSocksProxy({ to: `127.0.0.1:${server.port}` })
    const env = { all_proxy: `socks5://${proxy.host}` }
    await openUpstream('http://[2001:db8::1]', { env }).statBlob('a', digest, anonymous)
    expect(proxy.log).toEqual(['socks5 address [20010db8000000000000000000000001]:80'])
  })

  test('is given its user name and password', async () => {
    const server = await blobs()
    const proxy = await serveSocksProxy({ to: `127.0.0.1:${server.port}`, login: 'me:hu@sh' })
    const env = { all_proxy: `socks5h://me:hu%40sh@${proxy.host}` }
    await openUpstream('http://registry.test', { env }).statBlob('a', digest, anonymous)
    const wrong = { all_proxy: `socks5h://me:wrong-one@${proxy.host}` }
    const error = await failureOf(openUpstream('http://registry.test', { env: wrong }).statBlob('a', digest, anonymous))
    expect(error.message).toContain(`through the proxy socks5h://${proxy.host},`)
    expect(error.message).toContain('refused the user name and password')
    expect(error.message).not.toContain('wrong-one')
  })

  test.each([
    [3, 'cannot be reached'],
    [4, 'cannot be reached'],
    [5, 'refused the connection'],
  ])('that answers %i makes the error say that the upstream %s', async (refuse, why) => {
    const proxy = await serveSocksProxy({ to: '127.0.0.1:1', refuse })
    const env = { all_proxy: `socks5h://${proxy.host}` }
    const error = await failureOf(openUpstream('http://registry.test', { env }).statBlob('a', digest, anonymous))
    expect([error.failure, error.status]).toEqual(['unavailable', 502])
    expect(error.message).toContain(why)
  })

  test('that does not answer causes a timeout', async () => {
    const proxy = await serveSocksProxy({ to: '127.0.0.1:1' })
    const silent = await serve(() => {})
    const env = { all_proxy: `socks5h://127.0.0.1:${silent.port}` }
    const timeouts = { connect: 100, headers: 1000, idle: 1000 }
    const upstream = openUpstream('http://registry.test', { env, timeouts })
    const error = await failureOf(upstream.statBlob('a', digest, anonymous))
    expect(error.failure).toBe('unavailable')
    expect(proxy.log).toEqual([])
  })

  test('gets no address that is more private than the upstream may be', async () => {
    const server = await blobs()
    const proxy = await serveSocksProxy({ to: `127.0.0.1:${server.port}` })
    const env = { all_proxy: `socks5://${proxy.host}` }
    const upstream = openUpstream('http://registry.test', { env, ...lookup, allowPrivate: false })
    expect((await failureOf(upstream.statBlob('a', digest, anonymous))).failure).toBe('invalid')
    expect(proxy.log).toEqual([])
  })
})
