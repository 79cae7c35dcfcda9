import { hostname, type NetworkInterfaceInfo, networkInterfaces } from 'node:os'

/**
 * Lists the names by which virtual machines and containers reach their host. Client configurations use them, and the mirror accepts
 * each of them as Host: only the user's own tools can make such a name mean another machine.
 */
export const hostAliases = [
  // Docker Desktop; on Linux with `--add-host host.docker.internal:host-gateway`.
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

/** Is the name of the mirror's container, and its DNS name on the container's networks. */
export const mirrorName = 'mirror'

/**
 * Is the other DNS name, which client configurations use: kind adds `.svc` to the NO_PROXY of its nodes, so that they use no proxy.
 * https://github.com/kubernetes-sigs/kind (pkg/cluster/internal/providers/docker/provision.go, getProxyEnv)
 */
export const mirrorServiceName = 'mirror.svc'

/** Lists the names that always mean the mirror or its host. */
export const mirrorHostNames: readonly string[] = ['localhost', ...hostAliases, mirrorName, mirrorServiceName]

/** Returns the host name of this machine, and its multicast DNS name (`NAME.local`), in lower case. */
export function getMachineNames(): string[] {
  const name = hostname().toLowerCase()
  return [...new Set([name, `${name.split('.')[0]}.local`])]
}

/**
 * Returns the addresses of this machine's network interfaces. Throws a system error when no descriptor is free. The result is not
 * cached, because the list decides which clients may write, and a cached one would lack networks that were joined since.
 */
export function getNetworkInterfaces(): NetworkInterfaceInfo[] {
  return Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? [])
}

/** Converts an IPv4-mapped IPv6 address (`::ffff:10.0.0.1`) to plain IPv4, and removes an IPv6 zone. */
export function normalizeAddress(address: string): string {
  if (!address.includes(':')) return address
  return address
    .toLowerCase()
    .replace(/^::ffff:(?=\d+\.)/, '')
    .replace(/%.*$/, '')
}

/** Checks whether the text is a literal loopback address. */
export function isLoopbackAddress(address: string): boolean {
  const plain = normalizeAddress(address)
  // Load `node:net` here, because few commands need it and it slows the start of all.
  return plain === '::1' || (process.getBuiltinModule('node:net').isIP(plain) === 4 && plain.startsWith('127.'))
}
