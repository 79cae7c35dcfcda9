import type { SessionReport } from '../../src/admin/activity.ts'
import { secret } from './state.ts'

/** Names the entry of the browser's storage, which is of this origin with its port, for the secret of the session. */
const storedSecret = 'mirror-session'

/** Reads JSON from the admin listener. Throws an Error with the mirror's message. */
export function getJson<T>(path: string): Promise<T> {
  return request(path, { method: 'GET' })
}

/** Sends a change. Throws an Error with the mirror's message. */
export function change<T>(path: string, body: object = {}): Promise<T> {
  const headers = { 'content-type': 'application/json', 'x-mirror-session': secret.value ?? '' }
  return request(path, { method: 'POST', headers, body: JSON.stringify(body) })
}

/** Begins a session with the ticket in the address, or finds the one that this browser has. Returns why a ticket was refused. */
export async function openSession(): Promise<string | undefined> {
  const ticket = /^#ticket=(.+)$/.exec(location.hash)?.[1]
  // Remove the ticket at once, so that it stays in no history.
  if (ticket !== undefined) history.replaceState(null, '', location.pathname)
  let refusal: string | undefined
  let session: SessionReport = { active: false }
  if (ticket !== undefined) {
    try {
      session = await change('/api/session', { ticket })
    } catch (error) {
      refusal = describe(error)
    }
  }
  if (!session.active) session = await getJson<SessionReport>('/api/session').catch(() => session)
  if (session.secret !== undefined) localStorage.setItem(storedSecret, session.secret)
  if (!session.active) localStorage.removeItem(storedSecret)
  secret.value = session.active ? (localStorage.getItem(storedSecret) ?? undefined) : undefined
  return refusal
}

export function describe(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

async function request<T>(path: string, init: RequestInit): Promise<T> {
  const response = await fetch(path, { ...init, signal: AbortSignal.timeout(60_000) }).catch(() => {
    throw new Error('The mirror does not answer.')
  })
  const body = (await response.json().catch(() => ({}))) as {
    readonly errors?: readonly { readonly message?: string }[]
  }
  if (response.ok) return body as T
  // The session ends with a restart of the mirror, for example.
  if (response.status === 401 && secret.value !== undefined) {
    secret.value = undefined
    throw new Error('The session has ended. Run: mirror dashboard')
  }
  throw new Error(body.errors?.[0]?.message ?? `The mirror answered with ${response.status}.`)
}
