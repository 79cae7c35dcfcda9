import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { computeDigest } from '../../../src/oci/reference.ts'
import type { HttpUpstreamOptions } from '../../../src/upstream/http-upstream.ts'
import { failureOf, fakeClock, openUpstream } from '../../support/upstream/open-upstream.ts'
import { eventually, reply, serve, type Served } from '../../support/upstream/serve.ts'

const tag = { kind: 'tag', tag: 'v1' } as const
const digest = computeDigest(Buffer.from('x'))
const anonymous = { access: 'anonymous' } as const
const credentialed = { access: 'credentialed' } as const
const basic = (pair: string) => `Basic ${Buffer.from(pair).toString('base64')}`
const withPassword = (password = 'right') =>
  ({
    credentials: { from: 'password-env', username: 'ann', passwordEnv: 'PASSWORD' },
    env: { PASSWORD: password },
  }) satisfies Partial<HttpUpstreamOptions>

interface RegistryOptions {
  readonly realm?: (self: Served) => string
  readonly token?: (request: IncomingMessage, response: ServerResponse, count: number) => void
  readonly accepts?: (token: string, name: string) => boolean
}

/** Serves a registry with a token endpoint at `/token`; tokens are named after their number and scope. */
async function serveRegistry(options: RegistryOptions = {}) {
  let tokens = 0
  const server: Served = await serve((request, response) => {
    if (request.url!.startsWith('/token')) {
      tokens += 1
      if (options.token) return options.token(request, response, tokens)
      return sendToken(request, response, tokens)
    }
    const name = /^\/v2\/(.+)\/(?:manifests|blobs)\//.exec(request.url!)![1]!
    const token = /^Bearer (.+)$/.exec(request.headers.authorization ?? '')?.[1]
    const accepts = options.accepts ?? ((token, name) => token.endsWith(`:repository:${name}:pull`))
    if (token !== undefined && accepts(token, name)) return reply(response, 200, {}, '{}')
    const realm = options.realm?.(server) ?? `${server.url}/token`
    reply(response, 401, {
      'www-authenticate': `Bearer realm="${realm}",service="it",scope="repository:other:pull,push"`,
    })
  })
  const count = (what: 'token' | 'v2') => server.log.filter((line) => line.includes(` /${what}`)).length
  return { server, count }
}

function sendToken(request: IncomingMessage, response: ServerResponse, count: number, extra: object = {}): void {
  const scope = new URL(request.url!, 'http://x').searchParams.get('scope')
  reply(response, 200, {}, JSON.stringify({ token: `${count}:${scope}`, expires_in: 300, ...extra }))
}

describe('tokens', () => {
  test('are fetched by one request for 50 parallel cold requests', async () => {
    const { server, count } = await serveRegistry()
    const upstream = openUpstream(server.url)
    await Promise.all(Array.from({ length: 50 }, () => upstream.manifest('a', tag, anonymous)))
    expect(count('token')).toBe(1)
  })

  test('have the scope of one repository and pull only, and are kept', async () => {
    const { server, count } = await serveRegistry()
    const upstream = openUpstream(server.url)
    for (let i = 0; i < 5; i++) await upstream.manifest('a/b', tag, anonymous)
    expect([count('token'), count('v2')]).toEqual([1, 6])
    expect(server.log[1]).toBe('GET /token?service=it&scope=repository%3Aa%2Fb%3Apull')
    expect(server.requests[1]!.headers.authorization).toBeUndefined()
  })

  test('for another repository are fetched without a second 401', async () => {
    const { server } = await serveRegistry()
    const upstream = openUpstream(server.url)
    await upstream.manifest('a', tag, anonymous)
    await upstream.manifest('b', tag, anonymous)
    expect(server.log.slice(3).map((line) => line.split('?')[0])).toEqual(['GET /token', 'GET /v2/b/manifests/v1'])
  })

  test('are renewed ten seconds before they expire', async () => {
    const clock = fakeClock()
    const { server, count } = await serveRegistry()
    const upstream = openUpstream(server.url, { clock })
    await upstream.manifest('a', tag, anonymous)
    clock.pass(289_000)
    await upstream.manifest('a', tag, anonymous)
    expect(count('token')).toBe(1)
    clock.pass(1000)
    await upstream.manifest('a', tag, anonymous)
    expect(count('token')).toBe(2)
  })

  test.each([
    ['absent', undefined, 50_000],
    ['shorter than the margin', 8, 4000],
  ])('are kept for the right time when expires_in is %s', async (_, expires_in, goodFor) => {
    const clock = fakeClock()
    const { server, count } = await serveRegistry({
      token: (request, response, n) => sendToken(request, response, n, { expires_in }),
    })
    const upstream = openUpstream(server.url, { clock })
    await upstream.manifest('a', tag, anonymous)
    clock.pass(goodFor - 1)
    await upstream.manifest('a', tag, anonymous)
    expect(count('token')).toBe(1)
    clock.pass(1)
    await upstream.manifest('a', tag, anonymous)
    expect(count('token')).toBe(2)
  })

  test('that expire early are dropped and replaced by one request', async () => {
    let oldest = 1
    const { server, count } = await serveRegistry({ accepts: (token) => Number.parseInt(token, 10) >= oldest })
    const upstream = openUpstream(server.url)
    await upstream.manifest('a', tag, anonymous)
    oldest = 2
    await Promise.all(Array.from({ length: 20 }, () => upstream.manifest('a', tag, anonymous)))
    expect(count('token')).toBe(2)
  })

  test('that are refused although they are new are not requested again and again', async () => {
    const { server, count } = await serveRegistry({ accepts: () => false })
    const error = await failureOf(openUpstream(server.url).manifest('a', tag, anonymous))
    expect([error.failure, error.status]).toEqual(['denied', 401])
    expect([count('token'), count('v2')]).toEqual([1, 2])
  })

  test('of one repository are left out when they make another repository name another realm', async () => {
    const other = await serve((request, response) => sendToken(request, response, 7))
    const server: Served = await serve((request, response) => {
      const { authorization } = request.headers
      const isA = request.url!.includes('/a/')
      if (request.url!.startsWith('/token')) {
        const refuse = request.url!.includes('b%3Apull')
        return refuse ? reply(response, 403) : sendToken(request, response, 1)
      }
      if (authorization === (isA ? 'Bearer 1:repository:a:pull' : 'Bearer 7:repository:b:pull')) {
        return reply(response, 200, {}, '{}')
      }
      const realm = isA ? `${server.url}/token` : `${other.url}/token`
      reply(response, 401, { 'www-authenticate': `Bearer realm="${realm}",service="it"` })
    })
    const upstream = openUpstream(server.url)
    await upstream.manifest('a', tag, anonymous)
    await upstream.manifest('b', tag, anonymous)
    expect(other.log).toHaveLength(1)
  })

  test('may have the name access_token in the response', async () => {
    const { server } = await serveRegistry({
      token: (_, response) => reply(response, 200, {}, '{"access_token":"1:repository:a:pull"}'),
    })
    await openUpstream(server.url).manifest('a', tag, anonymous)
  })

  test('requested by several callers are fetched to the end when one of them aborts', async () => {
    const waiting: (() => void)[] = []
    const { server, count } = await serveRegistry({
      token: (request, response, n) => void waiting.push(() => sendToken(request, response, n)),
    })
    const upstream = openUpstream(server.url)
    const abort = new AbortController()
    const leaving = upstream.manifest('a', tag, { ...anonymous, signal: abort.signal })
    const staying = upstream.manifest('a', tag, anonymous)
    await eventually(() => count('token') === 1 && count('v2') === 2)
    abort.abort(new Error('enough'))
    await expect(leaving).rejects.toThrow('enough')
    waiting.pop()!()
    await staying
    expect(count('token')).toBe(1)
  })
})

describe('a token endpoint that fails', () => {
  test('with 503 is retried', async () => {
    const { server } = await serveRegistry({
      token: (request, response, n) => (n < 3 ? reply(response, 503) : sendToken(request, response, n)),
    })
    await openUpstream(server.url).manifest('a', tag, anonymous)
  })

  test.each<[number, string, string, number]>([
    [500, '', 'unavailable', 502],
    [401, '', 'denied', 401],
    [403, '', 'denied', 403],
    [404, '', 'invalid', 502],
    [200, '<html>welcome</html>', 'invalid', 502],
    [200, '{"token":"with\\nline"}', 'invalid', 502],
  ])('with %i %j is reported as %j', async (status, body, failure, answer) => {
    const { server } = await serveRegistry({ token: (_, response) => reply(response, status, {}, body) })
    const error = await failureOf(openUpstream(server.url).manifest('a', tag, anonymous))
    expect([error.failure, error.status]).toEqual([failure, answer])
  })

  test('with 429 gets no request before Retry-After', async () => {
    const { server, count } = await serveRegistry({
      token: (_, response) => reply(response, 429, { 'retry-after': 7 }),
    })
    const upstream = openUpstream(server.url)
    expect(await failureOf(upstream.manifest('a', tag, anonymous))).toMatchObject({
      failure: 'limited',
      retryAfterSeconds: 7,
    })
    await failureOf(upstream.manifest('b', tag, anonymous))
    expect(count('token')).toBe(1)
  })

  test('for 50 requests at once counts as one failure', async () => {
    const waiting: (() => void)[] = []
    const { server, count } = await serveRegistry({
      token: (_, response) => void waiting.push(() => reply(response, 503)),
    })
    const upstream = openUpstream(server.url)
    const asking = Array.from({ length: 50 }, () => failureOf(upstream.manifest('a', tag, anonymous)))
    for (let wave = 1; wave <= 3; wave++) {
      await eventually(() => waiting.length === 1 && count('v2') === 50 * wave)
      waiting.pop()!()
    }
    await Promise.all(asking)
    expect([count('token'), upstream.health().state]).toEqual([3, 'failing'])
  })
})

describe('a credential', () => {
  test('is sent to the realm of its own registry only, and its tokens to the registry only', async () => {
    const { server, count } = await serveRegistry({
      token: (request, response, n) => {
        if (request.headers.authorization === undefined) return reply(response, 401)
        expect(request.headers.authorization).toBe(basic('ann:right'))
        expect(request.url).toContain('account=ann')
        sendToken(request, response, n)
      },
    })
    const upstream = openUpstream(server.url, withPassword())
    expect((await upstream.manifest('a', tag, credentialed)).identity).toMatch(/^credential-[0-9a-f]{32}$/)
    expect(await upstream.identity('credentialed')).toMatch(/^credential-[0-9a-f]{32}$/)
    expect(await upstream.identity('anonymous')).toBe('anonymous')
    expect((await failureOf(upstream.manifest('a', tag, anonymous))).failure).toBe('denied')
    expect(count('token')).toBe(2)
  })

  test('is never sent to a foreign realm, and the error names the setting that allows it', async () => {
    const thief = await serve((request, response) => sendToken(request, response, 1))
    const { server } = await serveRegistry({ realm: () => `${thief.url}/token` })
    const error = await failureOf(openUpstream(server.url, withPassword()).manifest('a', tag, credentialed))
    expect([error.failure, error.status]).toEqual(['denied', 401])
    expect(error.message).toContain(`add 127.0.0.1:${thief.port} to upstreams."registry.example".tokenHosts`)
    expect(thief.connections).toBe(0)
  })

  test('is sent to a realm that the user named', async () => {
    const other = await serve((request, response) => sendToken(request, response, 1))
    const { server } = await serveRegistry({ realm: () => `${other.url}/token` })
    const tokenHosts = [`127.0.0.1:${other.port}`]
    await openUpstream(server.url, { ...withPassword(), tokenHosts }).manifest('a', tag, credentialed)
    expect(other.requests[0]!.headers.authorization).toBe(basic('ann:right'))
  })

  test('is not sent along a redirect of the token endpoint', async () => {
    const thief = await serve((_, response) => reply(response, 200, {}, '{"token":"1:repository:a:pull"}'))
    const { server } = await serveRegistry({ token: (_, response) => reply(response, 307, { location: thief.url }) })
    await openUpstream(server.url, withPassword()).manifest('a', tag, credentialed)
    expect(thief.requests[0]!.headers.authorization).toBeUndefined()
  })

  test('that is refused is neither replaced by an anonymous request nor shown', async () => {
    const { server } = await serveRegistry({
      token: (request, response, n) =>
        request.headers.authorization ? reply(response, 401, {}, 'no hunter2') : sendToken(request, response, n),
    })
    const error = await failureOf(openUpstream(server.url, withPassword('hunter2')).manifest('a', tag, credentialed))
    expect(error.failure).toBe('denied')
    expect(error.message).not.toContain('hunter2')
    expect(server.log.filter((line) => line.includes('/token'))).toHaveLength(1)
  })

  test('that cannot be read is not replaced by an anonymous request', async () => {
    const { server } = await serveRegistry()
    const upstream = openUpstream(server.url, { ...withPassword(), env: {} })
    expect((await failureOf(upstream.manifest('a', tag, credentialed))).failure).toBe('unavailable')
    expect(server.log).toEqual([])
  })

  test('from a helper is renewed when it is refused', async () => {
    const clock = fakeClock()
    let secret = 'old'
    const { server } = await serveRegistry({
      token: (request, response, n) =>
        request.headers.authorization === basic('AWS:new') ? sendToken(request, response, n) : reply(response, 401),
    })
    const folder = await mkdtemp(join(tmpdir(), 'mirror-auth-'))
    onTestFinished(() => rm(folder, { recursive: true }))
    const dockerConfig = join(folder, 'config.json')
    await writeFile(dockerConfig, '{"credsStore":"it"}')
    const upstream = openUpstream(server.url, {
      clock,
      credentials: { from: 'docker-config' },
      dockerConfig,
      runCommand: async () => ({
        exitCode: 0,
        stdout: JSON.stringify({ Username: 'AWS', Secret: secret }),
        stderr: '',
      }),
    })
    const before = await upstream.identity('credentialed')
    clock.pass(60_000)
    secret = 'new'
    const { identity } = await upstream.manifest('a', tag, credentialed)
    expect(identity).not.toBe(before)
    expect(await upstream.identity('credentialed')).toBe(identity)
  })

  test('that is an identity token is posted, and never redirected', async () => {
    const bodies: string[] = []
    const post = (location?: string) => (request: IncomingMessage, response: ServerResponse) => {
      expect(request.method).toBe('POST')
      request.on('data', (chunk: Buffer) => bodies.push(chunk.toString()))
      request.on('end', () => {
        if (location) reply(response, 307, { location })
        else reply(response, 200, {}, '{"access_token":"1:repository:a:pull"}')
      })
    }
    const token = {
      credentials: { from: 'password-env', username: '<token>', passwordEnv: 'PASSWORD' },
      env: { PASSWORD: 'refresh' },
    } as const
    const good = await serveRegistry({ token: post() })
    const fetched = await openUpstream(good.server.url, token).manifest('a', tag, credentialed)
    expect(fetched.identity).toMatch(/^credential-[0-9a-f]{32}$/)
    expect(Object.fromEntries(new URLSearchParams(bodies[0]))).toEqual({
      grant_type: 'refresh_token',
      service: 'it',
      scope: 'repository:a:pull',
      client_id: 'dev-mirror',
      refresh_token: 'refresh',
    })
    const thief = await serve((_, response) => reply(response, 200))
    const bad = await serveRegistry({ token: post(thief.url) })
    expect((await failureOf(openUpstream(bad.server.url, token).manifest('a', tag, credentialed))).failure).toBe(
      'invalid',
    )
    expect(thief.log).toEqual([])
  })

  test("that is the registry's own token is sent as it is, and to the registry only", async () => {
    const realm = await serve((_, response) => reply(response, 200, {}, '{"token":"none"}'))
    const server = await serve((request, response) => {
      if (request.headers.authorization === 'Bearer own') return reply(response, 200)
      reply(response, 401, { 'www-authenticate': `Bearer realm="${realm.url}/token",service="it"` })
    })
    const open = async (registrytoken: string) => {
      const folder = await mkdtemp(join(tmpdir(), 'mirror-auth-'))
      onTestFinished(() => rm(folder, { recursive: true }))
      const dockerConfig = join(folder, 'config.json')
      await writeFile(dockerConfig, JSON.stringify({ auths: { 'registry.example': { registrytoken } } }))
      return openUpstream(server.url, { credentials: { from: 'docker-config' }, dockerConfig })
    }
    const { identity } = await (await open('own')).statBlob('a', digest, credentialed)
    expect(identity).toMatch(/^credential-[0-9a-f]{32}$/)
    expect((await failureOf((await open('wrong')).statBlob('a', digest, credentialed))).status).toBe(401)
    expect(realm.log).toEqual([])
  })

  test('answers a Basic challenge, and is sent at once the second time', async () => {
    const server = await serve((request, response) => {
      if (request.headers.authorization === basic('ann:right')) return reply(response, 200)
      reply(response, 401, { 'www-authenticate': 'Basic realm="it"' })
    })
    const upstream = openUpstream(server.url, withPassword())
    await upstream.statBlob('a', digest, credentialed)
    await upstream.statBlob('b', digest, credentialed)
    expect(server.log).toHaveLength(3)
    expect((await failureOf(upstream.statBlob('a', digest, anonymous))).status).toBe(401)
    const wrong = openUpstream(server.url, withPassword('wrong'))
    expect((await failureOf(wrong.statBlob('a', digest, credentialed))).status).toBe(401)
  })

  test('is not limited by the rate limit of another identity', async () => {
    const server = await serve((request, response) => {
      if (request.headers.authorization) return reply(response, 200)
      if (request.url!.includes('/private/')) return reply(response, 401, { 'www-authenticate': 'Basic realm="it"' })
      reply(response, 429, {}, 'slow down')
    })
    const upstream = openUpstream(server.url, withPassword())
    await upstream.statBlob('private', digest, credentialed)
    expect((await failureOf(upstream.statBlob('a', digest, anonymous))).failure).toBe('limited')
    await upstream.statBlob('a', digest, credentialed)
  })
})

describe('a private repository that the registry hides from anonymous requests', () => {
  type Scheme = 'basic' | 'bearer'
  interface Hiding {
    readonly scheme?: Scheme
    /** The status without a credential, instead of the content. */
    readonly status?: number
    /** True when `/v2/` needs no credential. */
    readonly open?: boolean
    readonly password?: string
  }

  /** Refuses requests without a credential, and sends a challenge for `/v2/` only. */
  async function serveHiding({ scheme = 'bearer', status = 404, open = false, password = 'right' }: Hiding = {}) {
    const server: Served = await serve((request, response) => {
      const { authorization } = request.headers
      const isAnn = authorization === basic(`ann:${password}`)
      if (request.url!.startsWith('/token'))
        return isAnn ? sendToken(request, response, 1) : reply(response, 401, {}, '{"details":"wrong password"}')
      const passes = (scheme === 'basic' || open) && isAnn ? true : authorization?.startsWith('Bearer 1:') === true
      if (request.url === '/v2/') {
        const challenge = scheme === 'basic' ? 'Basic realm="it"' : `Bearer realm="${server.url}/token",service="it"`
        return open || passes ? reply(response, 200, {}, '{}') : reply(response, 401, { 'www-authenticate': challenge })
      }
      if (authorization?.startsWith('Basic') && !passes) return reply(response, 401)
      if (!passes) return reply(response, status, {}, '{"errors":[{"code":"NAME_UNKNOWN"}]}')
      if (request.url!.includes('/absent')) return reply(response, 404)
      reply(response, 200, { 'docker-content-digest': digest }, '{}')
    })
    const pings = () => server.log.filter((line) => line === 'GET /v2/').length
    return { server, pings }
  }

  test.each<[string, (upstream: ReturnType<typeof openUpstream>) => Promise<unknown>]>([
    ['HEAD of a manifest', (upstream) => upstream.resolve('a', tag, credentialed)],
    ['GET of a manifest', (upstream) => upstream.manifest('a', tag, credentialed)],
    ['HEAD of a blob', (upstream) => upstream.statBlob('a', digest, credentialed)],
    ['GET of a blob', (upstream) => upstream.blob('a', digest, { ...credentialed, from: 0 })],
    ['list of tags', (upstream) => upstream.tags('a', '', credentialed)],
    [
      'list of referrers',
      async (upstream) => expect(await upstream.referrers('a', digest, '', credentialed)).toBeDefined(),
    ],
  ])('is shown to the credential: %s', async (_, ask) => {
    for (const scheme of ['basic', 'bearer'] as const) {
      for (const status of [401, 403, 404]) {
        const { server, pings } = await serveHiding({ scheme, status })
        await ask(openUpstream(server.url, withPassword()))
        expect(pings()).toBe(1)
      }
    }
  })

  test.each(['basic', 'bearer'] as const)(
    'costs one ping for all requests, and none from then on (%s)',
    async (scheme) => {
      const { server, pings } = await serveHiding({ scheme })
      const upstream = openUpstream(server.url, withPassword())
      await Promise.all(Array.from({ length: 10 }, (_, at) => upstream.manifest(`a${at}`, tag, credentialed)))
      expect(pings()).toBe(1)
      const asked = server.log.length
      await upstream.manifest('a0', tag, credentialed)
      expect(server.log.length).toBe(asked + 1)
    },
  )

  test.each([401, 403, 404])('is shown to the credential when /v2/ needs no login either (%i)', async (status) => {
    const { server, pings } = await serveHiding({ status, open: true })
    const upstream = openUpstream(server.url, withPassword())
    await upstream.manifest('a', tag, credentialed)
    await upstream.manifest('b', tag, credentialed)
    expect([pings(), server.log.length]).toEqual([1, 4])
  })

  test.each([
    ['basic', false],
    ['bearer', false],
    ['bearer', true],
  ] as const)('is refused to a wrong credential, and not reported as absent (%s, open: %s)', async (scheme, open) => {
    const { server } = await serveHiding({ scheme, open })
    const upstream = openUpstream(server.url, withPassword('wrong'))
    for (let asked = 0; asked < 2; asked++) {
      const error = await failureOf(upstream.manifest('a', tag, credentialed))
      expect([error.failure, error.status]).toEqual(['denied', 401])
      expect(error.message).toContain('refused the credential')
    }
  })

  test('is absent when the registry hides it from the credential too', async () => {
    for (const options of [{ scheme: 'basic' }, { scheme: 'bearer' }, { open: true }] as const) {
      const { server } = await serveHiding(options)
      const absent = { kind: 'tag', tag: 'absent' } as const
      const error = await failureOf(openUpstream(server.url, withPassword()).manifest('a', absent, credentialed))
      expect([error.failure, error.status]).toEqual(['absent', 404])
    }
  })

  test('costs no ping without a credential', async () => {
    const { server } = await serveHiding()
    for (const upstream of [openUpstream(server.url), openUpstream(server.url, withPassword())])
      expect((await failureOf(upstream.manifest('a', tag, anonymous))).failure).toBe('absent')
    expect(server.log).toEqual(['GET /v2/a/manifests/v1', 'GET /v2/a/manifests/v1'])
  })

  test('is not reported absent when the ping fails', async () => {
    const server = await serve((request, response) => reply(response, request.url === '/v2/' ? 503 : 404))
    const error = await failureOf(openUpstream(server.url, withPassword()).manifest('a', tag, credentialed))
    expect([error.failure, error.status]).toEqual(['unavailable', 502])
  })

  test('has no credential sent to the target of a redirect of /v2/', async () => {
    const other = await serve((_, response) => reply(response, 401, { 'www-authenticate': 'Basic realm="x"' }))
    const server = await serve((request, response) => {
      if (request.url === '/v2/') return reply(response, 307, { location: `${other.url}/v2/` })
      reply(response, request.headers.authorization === basic('ann:right') ? 200 : 404)
    })
    await openUpstream(server.url, withPassword()).statBlob('a', digest, credentialed)
    expect(other.requests.map(({ headers }) => headers.authorization)).toEqual([undefined])
  })

  test('has no credential sent to a foreign realm', async () => {
    const thief = await serve((request, response) => sendToken(request, response, 1))
    const server = await serve((request, response) => {
      if (request.url !== '/v2/') return reply(response, 404)
      reply(response, 401, { 'www-authenticate': `Bearer realm="${thief.url}/token"` })
    })
    const error = await failureOf(openUpstream(server.url, withPassword()).manifest('a', tag, credentialed))
    expect(error.message).toContain('tokenHosts')
    expect(thief.connections).toBe(0)
  })

  test('is shown again when an expired token is refused without a challenge', async () => {
    let good = 1
    const server: Served = await serve((request, response) => {
      if (request.url!.startsWith('/token')) return reply(response, 200, {}, `{"token":"t${good}","expires_in":300}`)
      if (request.headers.authorization === `Bearer t${good}`) return reply(response, 200, {}, '{}')
      if (request.url !== '/v2/') return reply(response, request.headers.authorization ? 401 : 404)
      reply(response, 401, { 'www-authenticate': `Bearer realm="${server.url}/token"` })
    })
    const clock = fakeClock()
    const upstream = openUpstream(server.url, { ...withPassword(), clock })
    await upstream.manifest('a', tag, credentialed)
    clock.pass(1000)
    good = 2
    await upstream.manifest('a', tag, credentialed)
  })
})

describe('an anonymous token request', () => {
  test('may be sent to a foreign realm', async () => {
    const other = await serve((request, response) => sendToken(request, response, 1))
    const { server } = await serveRegistry({ realm: () => `${other.url}/token?account=x` })
    await openUpstream(server.url, withPassword()).manifest('a', tag, anonymous)
    expect(other.log).toEqual(['GET /token?account=x&service=it&scope=repository%3Aa%3Apull'])
    expect(other.requests[0]!.headers.authorization).toBeUndefined()
  })

  test.each(['http://169.254.169.254/token', 'http://metadata.test/token'])('may not be sent to %s', async (realm) => {
    const { server } = await serveRegistry({ realm: () => realm })
    const upstream = openUpstream(server.url, {
      lookup: (_host, _options, callback) => callback(null, [{ address: '169.254.169.254', family: 4 }]),
    })
    const error = await failureOf(upstream.manifest('a', tag, anonymous))
    expect([error.failure, error.status]).toEqual(['invalid', 502])
    expect(server.log).toHaveLength(1)
  })
})
