import { expect } from 'vitest'
import type { SessionReport } from '../../src/admin/activity.ts'
import type { TicketReport } from '../../src/admin/api.ts'
import { type Answer, get } from './get.ts'
import type { TestMirror } from './mirror.ts'

export type Headers = Readonly<Record<string, string>>

/** The headers with which a browser sends a request of the page. */
export const sameOrigin = { 'sec-fetch-site': 'same-origin', 'sec-fetch-mode': 'cors', 'sec-fetch-dest': 'empty' }

export function parse({ body }: Pick<Answer, 'body'>): unknown {
  return JSON.parse(body.toString())
}

export async function fetchTicket(mirror: TestMirror): Promise<string> {
  const answer = await mirror.post('/api/session/ticket', {})
  expect(answer.status).toBe(200)
  return (parse(answer) as TicketReport).ticket
}

/** Asks for a session as the page does. */
export function beginSession(mirror: TestMirror, ticket: string, headers: Headers = {}): Promise<Answer> {
  return get(mirror.adminUrl, '/api/session', {
    method: 'POST',
    headers: { origin: mirror.adminUrl, 'content-type': 'application/json', ...sameOrigin, ...headers },
    body: JSON.stringify({ ticket }),
  })
}

/** Begins a session, and returns the headers of its changes. `own`: headers of a page at another address. */
export async function startSession(mirror: TestMirror, own: Headers = {}) {
  const answer = await beginSession(mirror, await fetchTicket(mirror), own)
  expect(answer.status).toBe(200)
  const [cookie] = answer.headers['set-cookie']!
  const { secret } = parse(answer) as SessionReport
  const headers = {
    cookie: cookie!.split(';')[0]!,
    'x-mirror-session': secret!,
    origin: mirror.adminUrl,
    'content-type': 'application/json',
    ...sameOrigin,
    ...own,
  }
  return { cookie: cookie!, secret: secret!, headers }
}
