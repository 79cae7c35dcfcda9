import { isIP } from 'node:net'
import { hostname, type NetworkInterfaceInfo, networkInterfaces } from 'node:os'

/**
 * Names by which virtual machines and containers call the machine that they run on. Clients are given these, and the mirror
 * answers to each of them; nobody but the user's own tools can make such a name mean another machine.
 */
export const hostAliases = [
  // Docker Desktop; elsewhere by `--add-host host.docker.internal:host-gateway`.
  'host.docker.internal',
  'gateway.docker.internal',
  // podman, podman machine.
  'host.containers.internal',
  'host.minikube.internal',
  'host.k3d.internal',
  // Lima, Colima, Rancher Desktop.
  'host.lima.internal',
  'host.rancher-desktop.internal',
  // OrbStack.
  'host.orb.internal',
  'host.internal',
] as const
export type HostAlias = (typeof hostAliases)[number]

/** The name of the mirror's container, and one by which the containers of its networks know it. */
export const mirrorName = 'mirror'

/**
 * The other one, which clients are given: kind adds `.svc` to the NO_PROXY of its nodes, so that they ask no proxy for it.
 * https://github.com/kubernetes-sigs/kind (pkg/cluster/internal/providers/docker/provision.go, getProxyEnv)
 */
export const mirrorServiceName = 'mirror.svc'

/** Names that always mean the mirror, or the machine that it runs on. */
export const ownNames: readonly string[] = ['localhost', ...hostAliases, mirrorName, mirrorServiceName]

/** What this machine calls itself, and what others in its network call it by multicast DNS. */
export function machineNames(): string[] {
  const name = hostname().toLowerCase()
  return [...new Set([name, `${name.split('.')[0]}.local`])]
}

/**
 * The addresses of this machine's network interfaces. Throws the system's error, because the list takes a descriptor. No answer
 * is kept for that case: it would lack the networks that were joined since, and the list decides who may write.
 */
export function ownInterfaces(): NetworkInterfaceInfo[] {
  return Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? [])
}

/** An IPv4 address that came mapped into IPv6 (`::ffff:10.0.0.1`) as plain IPv4; a zone is dropped. */
export function plainAddress(address: string): string {
  if (!address.includes(':')) return address
  return address
    .toLowerCase()
    .replace(/^::ffff:(?=\d+\.)/, '')
    .replace(/%.*$/, '')
}

/** Whether the text is a literal loopback address. */
export function isLoopbackAddress(address: string): boolean {
  const plain = plainAddress(address)
  return plain === '::1' || (isIP(plain) === 4 && plain.startsWith('127.'))
}
