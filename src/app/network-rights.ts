import type { Config } from '../config/config.ts'
import type { Endpoints } from '../admin/state.ts'

/**
 * What containers of Docker networks may do in the registry. At an address that `registry.listen` names they may write, whatever
 * `registry.networks` says, and with all addresses there, too; but a mirror that is in a container itself has all addresses, and
 * tells its host from other containers.
 */
export function networkRights(
  setting: Config['registry']['networks'],
  { registry, networks }: Pick<Endpoints, 'registry' | 'networks'>,
  isInContainer: boolean,
): 'read' | 'write' {
  const open = new Set([...(isInContainer ? [] : ['0.0.0.0', '[::]']), ...Object.values(networks).map(hostnameOf)])
  return setting === 'write' || registry.some((url) => open.has(hostnameOf(url))) ? 'write' : 'read'
}

function hostnameOf(url: string): string {
  return new URL(url).hostname
}
