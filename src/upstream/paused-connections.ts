import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { Socket } from 'node:net'

/** https://github.com/nodejs/undici/blob/v7.30.2/docs/docs/api/DiagnosticsChannel.md#undiciclientconnected */
const connected = 'undici:client:connected'

/**
 * Has every connection of undici go on when it ends, or breaks, while it waits for a slow reader. undici 7 asserts there that it
 * does not wait, in a listener of its own: with an answer that is the connection's last, the process would end. May be called
 * again. https://github.com/nodejs/undici/issues/5360, mended in 8, which Node 20 does not run.
 */
export function resumePausedAtEnd(): void {
  unsubscribe(connected, watch)
  subscribe(connected, watch)
}

function watch(message: unknown): void {
  const { socket } = message as { socket: Socket }
  for (const event of ['end', 'error', 'close']) socket.prependListener(event, unpause)
}

function unpause(this: Socket): void {
  const key = Object.getOwnPropertySymbols(this).find(({ description }) => description === 'parser')
  const parser = key && (this as unknown as Record<symbol, { paused?: boolean; resume(): void } | null>)[key]
  if (!parser?.paused) return
  // Brings what was held back, of which there is no more than one chunk; nothing, where the connection broke.
  parser.resume()
  parser.paused = false
}
