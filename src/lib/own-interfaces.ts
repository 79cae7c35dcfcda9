import { networkInterfaces, type NetworkInterfaceInfo } from 'node:os'

/**
 * The addresses of this machine's network interfaces. Throws the system's error, because the list takes a descriptor. No answer
 * is kept for that case: it would lack the networks that were joined since, and the list decides who may write.
 */
export function ownInterfaces(): NetworkInterfaceInfo[] {
  return Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? [])
}
