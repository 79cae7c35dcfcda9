import type { Duplex } from 'node:stream'

/** Has a connection that is no socket tell of its silence, as one does whose time-out is set; ms. */
export function limitSilence(connection: Duplex, timeoutMs: number): void {
  const timer = setTimeout(() => connection.emit('timeout'), timeoutMs).unref()
  connection.on('data', () => timer.refresh())
  connection.once('close', () => clearTimeout(timer))
}
