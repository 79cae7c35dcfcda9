import type { ClientHome } from '../../clients/address.ts'
import type { Machine } from '../../clients/types.ts'

/** Containers of a Docker network, wherever their engine is. */
export function dockerNetworkHome({ platform }: Pick<Machine, 'platform'>, what: string, network: string): ClientHome {
  // Where Docker is never native.
  const inVm = platform === 'darwin' || platform === 'win32'
  return { in: 'network', what, network, ...(inVm && { hostName: 'host.docker.internal' }) }
}
