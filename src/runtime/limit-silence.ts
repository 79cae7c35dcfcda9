import type { Duplex } from 'node:stream'

/**
 * Has a connection that is no socket tell of its silence, as one does whose time-out is set; ms. `restart` begins the time again after
 * it has told.
 */
export function limitSilence(connection: Duplex, timeoutMs: number): { restart(): void } {
  const timer = setTimeout(() => connection.emit('timeout'), timeoutMs).unref()
  connection.on('data', () => timer.refresh())
  connection.once('close', () => clearTimeout(timer))
  return { restart: () => void timer.refresh() }
}
