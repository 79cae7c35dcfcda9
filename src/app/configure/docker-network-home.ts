import type { ClientHome } from '../../clients/client-address.ts'
import type { Machine } from './client-adapter.ts'

/** Containers of a Docker network, wherever their engine is. */
export function dockerNetworkHome({ platform }: Pick<Machine, 'platform'>, what: string, network: string): ClientHome {
  // Where Docker is never native.
  const inVm = platform === 'darwin' || platform === 'win32'
  return { in: 'network', what, network, ...(inVm && { hostName: 'host.docker.internal' }) }
}

/** The network of kind's clusters. */
export function kindNetwork(env: Machine['env']): string {
  return env['KIND_EXPERIMENTAL_DOCKER_NETWORK'] || 'kind'
}
