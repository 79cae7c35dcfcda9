import { localRegistryName } from './node-hosts.ts'

/**
 * How images of the registry for pushes are called where there are no folders to say otherwise: on its own machine, and in a
 * virtual machine on it, by `localhost` and its port, elsewhere by its address.
 */
export function registryName(registry: string): string {
  const near = /^(localhost|127\..*|\[::1\]|.*\.internal)$/.test(new URL(registry).hostname)
  return near ? localRegistryName(registry) : hostInNames(registry)
}

/** The host of an address as it stands in the name of an image: with a port where only that tells it from a repository. */
export function hostInNames(address: string): string {
  const { host, protocol } = new URL(address)
  const bare = !/[.:]/.test(host) && host !== 'localhost'
  return bare ? `${host}:${protocol === 'http:' ? 80 : 443}` : host
}
