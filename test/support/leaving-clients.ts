import { setMaxListeners } from 'node:events'
import { onTestFinished } from 'vitest'

export interface LeavingClients {
  /** For each request of theirs. */
  readonly signal: AbortSignal
  leave(): void
}

/** Clients that leave together, with their requests unanswered: when the test says so, or when it ends. */
export function leavingClients(): LeavingClients {
  const leaving = new AbortController()
  setMaxListeners(0, leaving.signal)
  const leave = () => leaving.abort(new Error('the clients leave'))
  onTestFinished(leave)
  return { signal: leaving.signal, leave }
}
