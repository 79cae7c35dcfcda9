import { isLoopback } from './is-loopback.ts'
import { localRegistryName } from './node-hosts.ts'

/** How virtual machines call the one they run on. Other names in `.internal` are a company's own. */
const hostInVm = /^host\.(docker|containers|minikube|lima|k3d|orb|rancher-desktop)\.internal$/

/**
 * How images of the registry for pushes are called where there are no folders to say otherwise: on its own machine, and in a
 * virtual machine on it, by `localhost` and its port, elsewhere by its address.
 */
export function registryName(registry: string): string {
  const isNear = isLoopback(registry) || hostInVm.test(new URL(registry).hostname)
  return isNear ? localRegistryName(registry) : hostInNames(registry)
}

/** The host of an address as it stands in the name of an image: with a port where only that tells it from a repository. */
export function hostInNames(address: string): string {
  const { host, protocol } = new URL(address)
  const bare = !/[.:]/.test(host) && host !== 'localhost'
  return bare ? `${host}:${protocol === 'http:' ? 80 : 443}` : host
}
