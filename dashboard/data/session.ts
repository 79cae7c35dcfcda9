import type { SessionReport } from '../../src/admin/activity.ts'
import { connection, secret } from './state.ts'

/** Names the entry of the browser's storage, which is of this origin with its port, for the secret of the session. */
const storedSecret = 'mirror-session'
/** Begins a session with POST, and describes it with GET. */
const sessionPath = '/api/session'

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
  let session: SessionReport | undefined
  if (ticket !== undefined) {
    try {
      session = await change(sessionPath, { ticket })
    } catch (error) {
      refusal = describe(error)
    }
  }
  session ??= await getJson<SessionReport>(sessionPath).catch(() => undefined)
  // Keep what is known when the mirror does not answer.
  if (!session) return refusal
  if (session.secret !== undefined) localStorage.setItem(storedSecret, session.secret)
  if (!session.active) localStorage.removeItem(storedSecret)
  secret.value = localStorage.getItem(storedSecret) ?? undefined
  return refusal
}

/** Ends the session of this browser. Throws an Error with the mirror's message. */
export async function endSession(): Promise<void> {
  await request(sessionPath, { method: 'DELETE', headers: { 'x-mirror-session': secret.value ?? '' } })
  localStorage.removeItem(storedSecret)
  secret.value = undefined
}

/** Calls `onChange` when another tab has begun or ended the session. */
export function watchSession(onChange: () => void): void {
  addEventListener('storage', ({ key, newValue }) => {
    if (key !== storedSecret) return
    secret.value = newValue ?? undefined
    onChange()
  })
}

export function describe(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

async function request<T>(path: string, init: RequestInit): Promise<T> {
  const sent = secret.value
  const response = await fetch(path, { ...init, signal: AbortSignal.timeout(60_000) }).catch(() => {
    throw new Error('The mirror does not answer.')
  })
  const body = (await response.json().catch(() => ({}))) as {
    readonly errors?: readonly { readonly message?: string }[]
  }
  if (response.ok) return body as T
  // Neither a request from before the session began nor a refused ticket tells anything about the session.
  if (response.status === 401 && secret.value === sent && path !== sessionPath) {
    if (init.method === 'GET') connection.value = 'locked'
    secret.value = undefined
    // The session ends with a restart of the mirror, for example.
    if (sent !== undefined) throw new Error('The session has ended. Run: mirror dashboard')
  }
  throw new Error(body.errors?.[0]?.message ?? `The mirror answered with ${response.status}.`)
}
