import { setMaxListeners } from 'node:events'
import { onTestFinished } from 'vitest'

export interface LeavingClients {
  /** The signal for each of their requests. */
  readonly signal: AbortSignal
  leave(): void
}

/** Creates a signal for clients that leave together before their responses end: on `leave`, or when the test ends. */
export function leavingClients(): LeavingClients {
  const leaving = new AbortController()
  setMaxListeners(0, leaving.signal)
  const leave = () => leaving.abort(new Error('the clients leave'))
  onTestFinished(leave)
  return { signal: leaving.signal, leave }
}
