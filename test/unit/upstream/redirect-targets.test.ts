import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { describe, expect, onTestFinished, test } from 'vitest'
import { systemClock } from '../../../src/lib/time.ts'
import { computeDigest } from '../../../src/oci/reference.ts'
import { mediaType } from '../../../src/oci/content.ts'
import { createAddressGuard } from '../../../src/upstream/trust.ts'
import type { TransportResponse } from '../../../src/upstream/transport.ts'
import { readProxies } from '../../../src/upstream/proxy.ts'
import { createRedirectTargets } from '../../../src/upstream/auth.ts'
import type { HttpUpstream } from '../../../src/upstream/http-upstream.ts'
import { failureOf, fakeClock, openUpstream, readAll } from '../../support/upstream/open-upstream.ts'
import { reply, serve, type Served } from '../../support/upstream/serve.ts'

const tag = { kind: 'tag', tag: 'v1' } as const
const digest = computeDigest(Buffer.from('blob'))
const anonymous = { access: 'anonymous' } as const
const credentialed = { access: 'credentialed' } as const
const withPassword = {
  credentials: { from: 'password-env', username: 'ann', passwordEnv: 'PASSWORD' },
  env: { PASSWORD: 'hunter2' },
} as const
type Respond = (request: IncomingMessage, response: ServerResponse) => void

interface BackOptions {
  /** Parameters of the challenge after its realm. */
  readonly parameters?: string
  readonly realm?: string
  readonly token?: Respond
  readonly answer?: Respond
  readonly accepts?: (token: string) => boolean
}

/** Serves a registry that needs its own token, named after the requested scope. */
async function serveBack(options: BackOptions = {}): Promise<Served & { tokens(): string[] }> {
  const accepts = options.accepts ?? ((token) => token === 'repository:org/app:pull')
  const back = await serve((request, response) => {
    if (request.url!.startsWith('/token')) {
      if (options.token) return options.token(request, response)
      const scope = new URL(request.url!, 'http://x').searchParams.get('scope')
      return reply(response, 200, {}, JSON.stringify({ token: scope, expires_in: 300 }))
    }
    const token = /^Bearer (.+)$/.exec(request.headers.authorization ?? '')?.[1]
    if (token === undefined || !accepts(token)) {
      const realm = options.realm ?? `${back.url}/token`
      const parameters = options.parameters ?? 'service="back",scope="repository:org/app:pull"'
      return reply(response, 401, { 'www-authenticate': `Bearer realm="${realm}",${parameters}` })
    }
    if (options.answer) return options.answer(request, response)
    if (request.url!.includes('/blobs/')) return reply(response, 200, {}, 'blob')
    reply(response, 200, { 'content-type': mediaType.ociManifest, 'docker-content-digest': digest }, '{}')
  })
  return Object.assign(back, { tokens: () => back.log.filter((line) => line.includes('/token')) })
}

/** Serves a name in front of another registry, which has another name of the repository. */
const serveFront = (to: () => string, status = 302) =>
  serve((request, response) => {
    if (!request.url!.startsWith('/v2/app/')) return reply(response, 404)
    reply(response, status, { location: to() + request.url!.replace('/v2/app/', '/v2/org/app/') })
  })

const questions: [string, (upstream: HttpUpstream) => Promise<unknown>][] = [
  ['HEAD of a manifest', (upstream) => upstream.resolve('app', tag, anonymous)],
  ['GET of a manifest', (upstream) => upstream.manifest('app', tag, anonymous)],
  ['HEAD of a blob', (upstream) => upstream.statBlob('app', digest, anonymous)],
  [
    'GET of a blob',
    async (upstream) => {
      const { body } = await upstream.blob('app', digest, { ...anonymous, from: 0 })
      expect((await readAll(body)).toString()).toBe('blob')
    },
  ],
  ['list of tags', (upstream) => upstream.tags('app', '', anonymous)],
  ['list of referrers', (upstream) => upstream.referrers('app', digest, '', anonymous)],
]

describe('a registry that redirects to another registry', () => {
  test.each(questions)('serves a %s, with a token of the other registry', async (_, ask) => {
    const back = await serveBack()
    const front = await serveFront(() => back.url)
    await ask(openUpstream(front.url))
    expect(back.tokens()).toEqual(['GET /token?service=back&scope=repository%3Aorg%2Fapp%3Apull'])
    expect(back.requests.at(-1)!.headers.authorization).toBe('Bearer repository:org/app:pull')
    expect(front.requests.map(({ headers }) => headers.authorization)).toEqual([undefined])
  })

  test.each([301, 302, 303, 307, 308])('may do so with a %i', async (status) => {
    const back = await serveBack()
    const front = await serveFront(() => back.url, status)
    await openUpstream(front.url).manifest('app', tag, anonymous)
  })

  test('costs one token per repository, and no challenge after the first', async () => {
    const back = await serveBack()
    const front = await serveFront(() => back.url)
    const upstream = openUpstream(front.url)
    for (let asked = 0; asked < 4; asked++) await upstream.manifest('app', tag, anonymous)
    expect(back.tokens()).toHaveLength(1)
    expect(back.log.filter((line) => line.includes('/v2/'))).toHaveLength(5)
  })

  test('costs one token for concurrent requests', async () => {
    const back = await serveBack()
    const front = await serveFront(() => back.url)
    const upstream = openUpstream(front.url)
    await Promise.all(Array.from({ length: 20 }, () => upstream.manifest('app', tag, anonymous)))
    expect(back.tokens()).toHaveLength(1)
  })

  test('has an expired token replaced once', async () => {
    const clock = fakeClock()
    let good = 1
    const back: Awaited<ReturnType<typeof serveBack>> = await serveBack({
      accepts: (token) => token === `t${good}`,
      token: (_, response) => reply(response, 200, {}, `{"token":"t${back.tokens().length}","expires_in":300}`),
    })
    const front = await serveFront(() => back.url)
    const upstream = openUpstream(front.url, { clock })
    await upstream.manifest('app', tag, anonymous)
    clock.pass(1000)
    good = 2
    await upstream.manifest('app', tag, anonymous)
    expect(back.tokens()).toHaveLength(2)
    clock.pass(1000)
    good = 0
    const error = await failureOf(upstream.manifest('app', tag, anonymous))
    expect([error.failure, error.status]).toEqual(['denied', 401])
    expect(back.tokens()).toHaveLength(3)
  })

  test.each(['service="back"', 'service="back",scope=""', `service="back",scope="${'x'.repeat(2000)}"`])(
    'has its repository there for the scope, where the challenge is %j',
    async (parameters) => {
      const back = await serveBack({ parameters })
      const front = await serveFront(() => back.url)
      await openUpstream(front.url).manifest('app', tag, anonymous)
      expect(decodeURIComponent(back.tokens()[0]!)).toContain('scope=repository:org/app:pull')
    },
  )

  test('keeps the tokens of two targets apart, although both come from one realm', async () => {
    let issued = 0
    const realm = await serve((_, response) => reply(response, 200, {}, `{"token":"t${++issued}","expires_in":300}`))
    const one = await serveBack({ realm: `${realm.url}/token`, accepts: (token) => token === 't1' })
    const two = await serveBack({ realm: `${realm.url}/token`, accepts: (token) => token === 't2' })
    let to = one
    const front = await serveFront(() => to.url)
    const upstream = openUpstream(front.url)
    await upstream.manifest('app', tag, anonymous)
    to = two
    await upstream.manifest('app', tag, anonymous)
    expect(realm.log).toHaveLength(2)
  })

  test('shares its credential neither with the target, nor with its realm, nor with their redirects', async () => {
    const storage = await serve((_, response) => reply(response, 200, {}, 'blob'))
    const back = await serveBack({
      answer: (_, response) => reply(response, 307, { location: `${storage.url}/bucket?X-Amz-Signature=abc` }),
    })
    const front = await serve((request, response) => {
      if (!request.headers.authorization) return reply(response, 401, { 'www-authenticate': 'Basic realm="x"' })
      reply(response, 307, { location: `${back.url}/v2/org/app/blobs/${digest}` })
    })
    const upstream = openUpstream(front.url, withPassword)
    const { body, identity } = await upstream.blob('app', digest, { ...credentialed, from: 0 })
    expect((await readAll(body)).toString()).toBe('blob')
    expect(identity).toMatch(/^credential-[0-9a-f]{32}$/)
    const elsewhere = [...back.requests, ...storage.requests].map(({ headers }) => headers.authorization)
    expect(elsewhere).toEqual([undefined, undefined, 'Bearer repository:org/app:pull', undefined])
  })

  test('gets no password sent to the target, whatever challenge it sends', async () => {
    const back = await serve((_, response) => reply(response, 401, { 'www-authenticate': 'Basic realm="x"' }))
    const front = await serveFront(() => back.url)
    const error = await failureOf(openUpstream(front.url, withPassword).manifest('app', tag, credentialed))
    expect([error.failure, error.status]).toEqual(['denied', 401])
    expect(back.requests.map(({ headers }) => headers.authorization)).toEqual([undefined])
  })

  test('is followed to a third registry, which requires a token too', async () => {
    const last = await serveBack()
    const middle = await serveBack({
      answer: (request, response) => reply(response, 307, { location: last.url + request.url! }),
    })
    const front = await serveFront(() => middle.url)
    await openUpstream(front.url).manifest('app', tag, anonymous)
    expect([middle.tokens().length, last.tokens().length]).toEqual([1, 1])
  })

  test('passes on the error of the target', async () => {
    const say = (status: number, message: string) => (_: IncomingMessage, response: ServerResponse) =>
      reply(response, status, { 'retry-after': 7 }, JSON.stringify({ errors: [{ message }] }))
    for (const [status, failure, answered] of [
      [403, 'denied', 403],
      [404, 'absent', 404],
      [412, 'denied', 412],
      [429, 'limited', 429],
    ] as const) {
      const back = await serveBack({ answer: say(status, 'because of the policy') })
      const front = await serveFront(() => back.url)
      const error = await failureOf(openUpstream(front.url).manifest('app', tag, anonymous))
      expect([error.failure, error.status]).toEqual([failure, answered])
      expect(error.message).toContain(`(redirected to 127.0.0.1:${back.port})`)
      expect(error.message).toContain('because of the policy')
      expect(front.log).toHaveLength(1)
    }
  })

  test('passes on that the target refuses an anonymous token', async () => {
    const back = await serveBack({
      token: (_, response) => reply(response, 403, {}, '{"errors":[{"code":"DENIED","message":"private package"}]}'),
    })
    const front = await serveFront(() => back.url)
    const error = await failureOf(openUpstream(front.url).manifest('app', tag, anonymous))
    expect([error.failure, error.status]).toEqual(['denied', 403])
    expect(error.message).toContain('gives no token without a credential: private package')
    expect(front.log).toHaveLength(1)
  })

  test('does not count as down when the target is down', async () => {
    const back = await serveBack({ answer: (_, response) => reply(response, 503) })
    const front = await serveFront(() => back.url)
    const upstream = openUpstream(front.url)
    expect((await failureOf(upstream.manifest('app', tag, anonymous))).failure).toBe('unavailable')
    expect(upstream.health().state).toBe('ok')
  })
})

describe('storage that a registry redirects to', () => {
  test.each([
    ['that is no registry by its path', '/bucket/blob'],
    ["of a registry's own layout", '/docker/registry/v2/blobs/sha256/ab/abcd/data'],
    ['with a signed link', `/v2/org/app/blobs/${digest}?X-Goog-Signature=abc`],
  ])('%s gets no token, and its 401 is an outage', async (_, path) => {
    const storage: Served = await serve((_request, response) =>
      reply(response, 401, { 'www-authenticate': `Bearer realm="${storage.url}/token"` }),
    )
    const front = await serve((_request, response) => reply(response, 307, { location: storage.url + path }))
    const error = await failureOf(openUpstream(front.url).statBlob('app', digest, anonymous))
    expect([error.failure, error.status]).toEqual(['unavailable', 502])
    expect(storage.log.filter((line) => line.includes('/token'))).toEqual([])
  })
})

describe('the realm of a registry that was redirected to', () => {
  test('may be on another host', async () => {
    const realm = await serve((_, response) => reply(response, 200, {}, '{"token":"repository:org/app:pull"}'))
    const back = await serveBack({ realm: `${realm.url}/token` })
    const front = await serveFront(() => back.url)
    await openUpstream(front.url, withPassword).manifest('app', tag, credentialed)
    expect(realm.requests.map(({ headers }) => headers.authorization)).toEqual([undefined])
  })

  test.each(['http://169.254.169.254/token', 'http://metadata.test/token'])('may not be %s', async (realm) => {
    const back = await serveBack({ realm })
    const front = await serveFront(() => back.url)
    const upstream = openUpstream(front.url, {
      lookup: (_host, _options, callback) => callback(null, [{ address: '169.254.169.254', family: 4 }]),
    })
    expect((await failureOf(upstream.manifest('app', tag, anonymous))).failure).toBe('invalid')
  })

  /** Opens the targets of an upstream on this machine, which may redirect to any address of it. */
  function openTargets() {
    const lookup = (_host: string, _options: object, callback: (error: null, addresses: []) => void) =>
      callback(null, [])
    const guard = createAddressGuard({
      host: 'registry.example',
      url: new URL('http://127.0.0.1:1'),
      allowPrivate: true,
      tokenHosts: [],
      lookup,
    })
    const targets = createRedirectTargets({
      host: 'registry.example',
      timeouts: { connect: 1000, headers: 1000, idle: 1000 },
      guard,
      proxies: readProxies({}),
      certificates: undefined,
      userAgent: 'test',
      tokenHosts: [],
      clock: systemClock,
    })
    onTestFinished(() => targets.close())
    return targets
  }
  const challengedBy = (realm: string) => async (): Promise<TransportResponse> => ({
    status: 401,
    redirectHost: 'x',
    isStorage: false,
    header: (name) => (name === 'www-authenticate' ? `Bearer realm="${realm}"` : undefined),
    body: (async function* () {})(),
    discard() {},
  })

  test('may not be more private than that registry, although the upstream is as private', async () => {
    const server = createServer((_, response) => response.end('{"token":"x"}'))
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    onTestFinished(() => server.close().closeAllConnections())
    const realm = `http://127.0.0.1:${(server.address() as { port: number }).port}/token`
    const near = new URL('http://127.0.0.2/v2/a/manifests/v1')
    const far = new URL('http://203.0.113.1/v2/a/manifests/v1')
    expect((await openTargets().send(near, undefined, challengedBy(realm))).status).toBe(401)
    const error = await failureOf(openTargets().send(far, undefined, challengedBy(realm)))
    expect(error).toMatchObject({ failure: 'invalid', message: expect.stringContaining('more private address') })
  })

  test.each([
    ['its own', 'back.test'],
    ['another one', 'realm.test'],
  ])('may be as private as that registry, where all of them have names: %s', async (_, name) => {
    const back: Awaited<ReturnType<typeof serveBack>> = await serveBack({
      get realm() {
        return back.url.replace('127.0.0.1', name) + '/token'
      },
    })
    const front = await serveFront(() => back.url.replace('127.0.0.1', 'back.test'))
    const upstream = openUpstream(front.url.replace('127.0.0.1', 'front.test'), {
      lookup: (_host, _options, callback) => callback(null, [{ address: '127.0.0.1', family: 4 }]),
    })
    await upstream.manifest('app', tag, anonymous)
    expect(back.tokens()).toHaveLength(1)
  })

  test('is not contacted over http for a registry with TLS', async () => {
    const url = new URL('https://203.0.113.1/v2/a/manifests/v1')
    const answer = await openTargets().send(url, undefined, challengedBy('http://203.0.113.1/token'))
    expect(answer.status).toBe(401)
  })
})
