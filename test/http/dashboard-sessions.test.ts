import { readFile } from 'node:fs/promises'
import { networkInterfaces } from 'node:os'
import { describe, expect, test } from 'vitest'
import { beginSession, fetchTicket, type Headers, parse, sameOrigin, startSession } from '../support/dashboard.ts'
import { expectError } from '../support/expect-content.ts'
import { type Answer, get } from '../support/get.ts'
import { startTestMirror, type TestMirror } from '../support/mirror.ts'

const hasIpv6 = Object.values(networkInterfaces()).some((addresses) =>
  addresses?.some(({ address }) => address === '::1'),
)

function prune(mirror: TestMirror, headers: Headers): Promise<Answer> {
  return get(mirror.adminUrl, '/api/cache/prune', { method: 'POST', headers, body: '{"dryRun":true}' })
}

function without(headers: Headers, ...names: string[]): Headers {
  return Object.fromEntries(Object.entries(headers).filter(([name]) => !names.includes(name)))
}

describe('a ticket', () => {
  test('begins one session, which may change something', async () => {
    const mirror = await startTestMirror()
    const ticket = await fetchTicket(mirror)
    const begun = await beginSession(mirror, ticket)
    expect(parse(begun)).toEqual({ active: true, secret: expect.stringMatching(/^[\w-]{43}$/) })
    expect(begun.headers['cache-control']).toBe('no-store')
    expect(begun.headers['set-cookie']).toEqual([
      expect.stringMatching(
        /^mirror-session-[0-9a-f]{16}=[\w-]{43}; HttpOnly; SameSite=Strict; Path=\/; Max-Age=43200$/,
      ),
    ])
    expectError(await beginSession(mirror, ticket), 401, 'UNAUTHORIZED')
    expect((await prune(mirror, (await startSession(mirror)).headers)).status).toBe(200)
  })

  test('that is used a second time ends the session, because somebody else may have been the first', async () => {
    const mirror = await startTestMirror()
    const ticket = await fetchTicket(mirror)
    const first = await beginSession(mirror, ticket)
    const cookie = first.headers['set-cookie']![0]!.split(';')[0]!
    const describeIt = async () => parse(await get(mirror.adminUrl, '/api/session', { headers: { cookie } }))
    expect(await describeIt()).toMatchObject({ active: true })
    const second = await beginSession(mirror, ticket)
    expectError(second, 401)
    expect(second.body.toString()).toContain('mirror dashboard')
    expect(await describeIt()).toEqual({ active: false })
  })

  test('is given only for the token, and to no page', async () => {
    const mirror = await startTestMirror()
    const ask = async (headers: Headers) =>
      (await get(mirror.adminUrl, '/api/session/ticket', { method: 'POST', headers })).status
    expect(await ask({})).toBe(401)
    expect(await ask({ authorization: 'Bearer wrong' })).toBe(401)
    expect(await ask((await startSession(mirror)).headers)).toBe(403)
    const token = (await readFile(mirror.paths.tokenFile, 'utf8')).trim()
    expect(await ask({ authorization: `Bearer ${token}`, origin: mirror.adminUrl })).toBe(403)
    expect(await ask({ authorization: `Bearer ${token}` })).toBe(200)
  })

  test('begins one session at most when several pages send it at once', async () => {
    const mirror = await startTestMirror()
    const ticket = await fetchTicket(mirror)
    const answers = await Promise.all(Array.from({ length: 8 }, () => beginSession(mirror, ticket)))
    const begun = answers.filter(({ status }) => status === 200)
    expect(begun).toHaveLength(1)
    const cookie = begun[0]!.headers['set-cookie']![0]!.split(';')[0]!
    expect(parse(await get(mirror.adminUrl, '/api/session', { headers: { cookie } }))).toEqual({ active: false })
  })

  test('is refused from another origin, without an origin, as a form, and when it is no ticket', async () => {
    const mirror = await startTestMirror()
    const ticket = await fetchTicket(mirror)
    const other = `http://localhost:${new URL(mirror.adminUrl).port}`
    for (const origin of ['http://localhost:3000', 'null', other, 'https://evil.example'])
      expectError(await beginSession(mirror, ticket, { origin }), 403)
    for (const site of ['cross-site', 'same-site', 'none'])
      expectError(await beginSession(mirror, ticket, { 'sec-fetch-site': site }), 403)
    expectError(await beginSession(mirror, ticket, { host: 'evil.example' }), 421)
    expectError(await beginSession(mirror, ticket, { 'content-type': 'text/plain' }), 415)
    expectError(
      await get(mirror.adminUrl, '/api/session', {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ ticket }),
      }),
      403,
    )
    expectError(await beginSession(mirror, ''), 401)
    // None of these requests has used the ticket.
    expect((await beginSession(mirror, ticket)).status).toBe(200)
  })

  test('yields to newer ones: five are valid at a time', async () => {
    const mirror = await startTestMirror()
    const tickets = []
    for (let count = 0; count < 6; count++) tickets.push(await fetchTicket(mirror))
    expectError(await beginSession(mirror, tickets[0]!), 401)
    expect((await beginSession(mirror, tickets[1]!)).status).toBe(200)
  })
})

describe('a session', () => {
  test('is described to its own page, but tells nobody its secret again: a server on another port gets the cookie, too', async () => {
    const mirror = await startTestMirror()
    const describeIt = (headers: Headers) => get(mirror.adminUrl, '/api/session', { headers })
    expect(parse(await describeIt({}))).toEqual({ active: false })
    const { headers, cookie } = await startSession(mirror)
    const answer = await describeIt({ cookie: headers.cookie })
    expect(parse(answer)).toEqual({ active: true })
    expect(answer.headers['set-cookie']).toEqual([cookie])
    expectError(await describeIt({ cookie: headers.cookie, 'sec-fetch-site': 'same-site' }), 403)
    expectError(await describeIt({ cookie: headers.cookie, 'sec-fetch-site': 'cross-site' }), 403)
  })

  test('changes nothing without its cookie, its secret and the exact origin of its page', async () => {
    const mirror = await startTestMirror()
    const { headers } = await startSession(mirror)
    const other = `http://localhost:${new URL(mirror.adminUrl).port}`
    const refused: [string, Headers, number][] = [
      ['no cookie', without(headers, 'cookie'), 401],
      ['another cookie', { ...headers, cookie: `${headers.cookie}x` }, 401],
      ['no secret', without(headers, 'x-mirror-session'), 403],
      ['another secret', { ...headers, 'x-mirror-session': headers['x-mirror-session'].toUpperCase() }, 403],
      ['no origin', without(headers, 'origin'), 403],
      ['the origin of another port', { ...headers, origin: 'http://127.0.0.1:3000' }, 403],
      ['the origin of another name', { ...headers, origin: other, host: other.slice('http://'.length) }, 403],
      ['the same site', { ...headers, 'sec-fetch-site': 'same-site' }, 403],
      ['another site', { ...headers, 'sec-fetch-site': 'cross-site' }, 403],
      ['the address bar', { ...headers, 'sec-fetch-site': 'none' }, 403],
      ['another Host', { ...headers, host: 'evil.example', origin: 'http://evil.example' }, 421],
    ]
    for (const [what, given, code] of refused) expect([what, (await prune(mirror, given)).status]).toEqual([what, code])
    // Browsers of some years ago do not send where a request comes from.
    const old = without(headers, ...Object.keys(sameOrigin))
    expect((await prune(mirror, old)).status).toBe(200)
  })

  const addresses: [name: string, adminHost: string, forwarded?: string][] = [
    ['a forwarded port of SSH', '127.0.0.1', 'localhost:8888'],
  ]
  if (hasIpv6) addresses.push(['the other loopback address', '::1'])
  test.each(addresses)(
    'is given to the page at %s, and is good for no other address',
    async (_, adminHost, forwarded) => {
      const mirror = await startTestMirror({ adminHost })
      const host = forwarded ?? new URL(mirror.adminUrl).host
      const own = { host, origin: `http://${host}` }
      const { headers } = await startSession(mirror, own)
      expect((await prune(mirror, headers)).status).toBe(200)
      const other = `127.0.0.1:${new URL(mirror.adminUrl).port}`
      expectError(await prune(mirror, { ...headers, host: other, origin: `http://${other}` }), 403)
    },
  )

  test('is of no use to another mirror, whose cookie has another name', async () => {
    const [one, other] = [await startTestMirror(), await startTestMirror()]
    const { headers } = await startSession(one)
    const { headers: others } = await startSession(other)
    expect(others.cookie.split('=')[0]).not.toBe(headers.cookie.split('=')[0])
    expect((await prune(other, { ...headers, origin: other.adminUrl })).status).toBe(401)
    // Browsers send both cookies to both mirrors, because a cookie belongs to a host with all of its ports.
    const cookie = `${others.cookie}; ${headers.cookie}`
    expect((await prune(one, { ...headers, cookie })).status).toBe(200)
    expect((await prune(other, { ...others, cookie })).status).toBe(200)
  })

  test('is found beside a cookie of the same name that another program has set', async () => {
    const mirror = await startTestMirror()
    const { headers } = await startSession(mirror)
    const name = headers.cookie.split('=')[0]!
    expect((await prune(mirror, { ...headers, cookie: `${name}=planted; ${headers.cookie}` })).status).toBe(200)
  })

  test('may neither stop the mirror nor do anything else that is for commands only', async () => {
    const mirror = await startTestMirror()
    const { headers } = await startSession(mirror)
    for (const path of ['/api/stop', '/api/session/ticket', '/api/canary', '/api/canary/end'])
      expectError(await get(mirror.adminUrl, path, { method: 'POST', headers }), 403, 'DENIED')
    expectError(await get(mirror.adminUrl, '/api/nothing', { method: 'POST', headers }), 404)
    expectError(await get(mirror.adminUrl, '/api/cache/rm', { method: 'DELETE', headers }), 404)
    expect((await mirror.status()).running).toBe(true)
  })

  test('ends when its page asks for that, and with the mirror', async () => {
    const mirror = await startTestMirror()
    const { headers } = await startSession(mirror)
    const end = (given: Headers) => get(mirror.adminUrl, '/api/session', { method: 'DELETE', headers: given })
    expectError(await end(without(headers, 'x-mirror-session')), 403)
    const ended = await end(headers)
    expect([ended.status, parse(ended)]).toEqual([200, { active: false }])
    expect(ended.headers['set-cookie']).toEqual([expect.stringContaining('Max-Age=0')])
    expectError(await prune(mirror, headers), 401)
    expectError(await end(headers), 401)

    const { headers: second } = await startSession(mirror)
    await mirror.close()
    const next = await startTestMirror({ home: mirror.home })
    expectError(await prune(next, { ...second, origin: next.adminUrl }), 401)
  })

  test('yields to newer ones: twenty pages have one at a time', async () => {
    const mirror = await startTestMirror()
    const sessions = []
    for (let count = 0; count < 21; count++) sessions.push(await startSession(mirror))
    expectError(await prune(mirror, sessions[0]!.headers), 401)
    expect((await prune(mirror, sessions[1]!.headers)).status).toBe(200)
  })

  test('accepts no method but GET, POST and DELETE', async () => {
    const mirror = await startTestMirror()
    const answer = await get(mirror.adminUrl, '/api/session', { method: 'PUT' })
    expectError(answer, 405)
    expect(answer.headers['allow']).toBe('GET, POST, DELETE')
  })
})
