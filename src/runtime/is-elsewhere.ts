import { ownInterfaces } from '../lib/network.ts'
import { isLoopbackAddress } from '../server/request-guard.ts'
import type { DockerEndpoint } from '../docker/endpoint.ts'

/**
 * Whether an engine is another machine's: the ports that it publishes, and the folders that it mounts, are not this one's. ssh
 * leads away also where it is called localhost, which is how virtual machines are reached.
 */
export function isElsewhere(endpoint: DockerEndpoint): boolean {
  if (endpoint.kind !== 'tcp') return endpoint.kind === 'ssh'
  const { host } = endpoint
  return !(host === 'localhost' || isLoopbackAddress(host) || ownInterfaces().some(({ address }) => address === host))
}
