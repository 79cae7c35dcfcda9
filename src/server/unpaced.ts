import { readFileSync } from 'node:fs'
import type { Server } from 'node:http'
import type { Kernel } from './send/sendfile.ts'

/**
 * Has the connections that a listener takes on sent as fast as they are taken, where this machine paces what it sends (BBR
 * does). That is made for long ways: on one that does not leave the machine each timer costs more than the packet it holds
 * back. Undefined where nothing is paced, or nothing can be done about it.
 */
export function createUnpacing(kernel: Kernel | undefined): ((server: Server) => void) | undefined {
  if (!kernel || !isPaced()) return undefined
  return (server) => {
    const { _handle: handle } = server as { _handle?: { fd?: unknown } | null }
    // Always there, and allowed to everybody. A connection that has begun to pace would go on: hence the listener.
    if (typeof handle?.fd === 'number') kernel.setCongestionControl(handle.fd, 'reno')
  }
}

/** https://docs.kernel.org/networking/ip-sysctl.html#tcp-variables */
function isPaced(): boolean {
  try {
    return readFileSync('/proc/sys/net/ipv4/tcp_congestion_control', 'utf8').startsWith('bbr')
  } catch {
    return false // Hidden from us; what it is then stays as it is.
  }
}
