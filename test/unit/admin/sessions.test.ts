import type { IncomingMessage } from 'node:http'
import { expect, test } from 'vitest'
import { Sessions } from '../../../src/admin/dashboard/sessions.ts'

const origin = 'http://127.0.0.1:5056'
const minute = 60_000
const hour = 60 * minute

function createTestSessions() {
  const time = { now: 1000 }
  const sessions = new Sessions({ token: 'a'.repeat(64), clock: { monotonic: () => time.now } })
  const begin = (ticket: string) => {
    const { report, cookie } = sessions.begin(fakeRequest({ origin }), ticket)
    return { cookie: cookie!.split(';')[0]!, 'x-mirror-session': report.secret!, origin }
  }
  return { sessions, begin, pass: (ms: number) => void (time.now += ms) }
}

/** Makes as much of a request as the sessions read. */
function fakeRequest(headers: Record<string, string> = {}, remoteAddress = '127.0.0.1'): IncomingMessage {
  return { headers: { host: '127.0.0.1:5056', ...headers }, socket: { remoteAddress } } as unknown as IncomingMessage
}

test('a ticket expires after a minute', () => {
  const { sessions, begin, pass } = createTestSessions()
  const [first, second] = [sessions.createTicket(), sessions.createTicket()]
  expect(first.expiresInSeconds).toBe(60)
  pass(minute - 1)
  expect(begin(first.ticket)).toBeDefined()
  pass(1)
  expect(() => begin(second.ticket)).toThrow('is older than a minute')
})

test('a session ends after 12 hours without a request, and each request renews it', () => {
  const { sessions, begin, pass } = createTestSessions()
  const headers = begin(sessions.createTicket().ticket)
  for (let hours = 0; hours < 33; hours += 11) {
    pass(11 * hour)
    expect(sessions.checkChange(fakeRequest(headers))).toBe('session')
  }
  pass(12 * hour)
  expect(() => sessions.checkChange(fakeRequest(headers))).toThrow('needs the token')
  expect(sessions.describe(fakeRequest(headers)).report).toEqual({ active: false })
})

test('a read from another machine needs the token or a session, and one from this machine needs nothing', () => {
  const { sessions, begin } = createTestSessions()
  const gateway = '172.17.0.1'
  const { cookie } = begin(sessions.createTicket().ticket)
  for (const own of ['127.0.0.1', '::1', '::ffff:127.0.0.1']) sessions.checkRead(fakeRequest({}, own))
  sessions.checkRead(fakeRequest({ authorization: `Bearer ${'a'.repeat(64)}` }, gateway))
  sessions.checkRead(fakeRequest({ cookie }, gateway))
  for (const headers of [{}, { authorization: `Bearer ${'b'.repeat(64)}` }, { cookie: `${cookie}x` }])
    expect(() => sessions.checkRead(fakeRequest(headers, gateway))).toThrow('needs the token')
})

test('a read that a session allows is allowed no longer than the session lasts', () => {
  const { sessions, begin, pass } = createTestSessions()
  const gateway = '172.17.0.1'
  const own = sessions.checkRead(fakeRequest())
  const token = sessions.checkRead(fakeRequest({ authorization: `Bearer ${'a'.repeat(64)}` }, gateway))
  const headers = begin(sessions.createTicket().ticket)
  const read = sessions.checkRead(fakeRequest(headers, gateway))
  pass(11 * hour)
  sessions.describe(fakeRequest(headers))
  pass(11 * hour)
  expect([read(), own(), token()]).toEqual([true, true, true])
  pass(hour)
  expect(read()).toBe(false)

  const ended = begin(sessions.createTicket().ticket)
  const readAgain = sessions.checkRead(fakeRequest(ended, gateway))
  sessions.end(fakeRequest(ended))
  expect([readAgain(), own(), token()]).toEqual([false, true, true])

  const { ticket } = sessions.createTicket()
  const stolen = sessions.checkRead(fakeRequest(begin(ticket), gateway))
  expect(() => begin(ticket)).toThrow('has been used')
  expect(stolen()).toBe(false)
})

test('the cookie of a page behind an HTTPS proxy is sent over HTTPS only', () => {
  const { sessions } = createTestSessions()
  const host = 'mirror.corp.example'
  const { cookie } = sessions.begin(fakeRequest({ host, origin: `https://${host}` }), sessions.createTicket().ticket)
  expect(cookie).toMatch(/; Secure$/)
})
