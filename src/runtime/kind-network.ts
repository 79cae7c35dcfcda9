import { createHash } from 'node:crypto'
import { DockerError, type DockerNetworks } from './container-engine.ts'

/** The network kind would use: `kind`, or what this variable names. https://github.com/kubernetes-sigs/kind */
export function kindNetworkName(env: Readonly<Record<string, string | undefined>>): string {
  return env['KIND_EXPERIMENTAL_DOCKER_NETWORK'] || 'kind'
}

/** Networks by their real names: `kind` means the one that kind uses. */
export function networkNames(names: readonly string[], env: Readonly<Record<string, string | undefined>>): string[] {
  return [...new Set(names.map((name) => (name === 'kind' ? kindNetworkName(env) : name)))]
}

const attempts = 5

/**
 * Makes kind's network as kind itself makes it (pkg/cluster/internal/providers/docker/network.go): masquerading, with the MTU
 * of the engine's own bridge and an IPv6 subnet that follows from the name; IPv4 alone where there is no IPv6. kind takes a
 * network of its name as it is, so one without IPv6 would stay so.
 */
export async function makeKindNetwork(networks: DockerNetworks, name: string): Promise<void> {
  const mtu = (await networks.find('bridge'))?.options['com.docker.network.driver.mtu']
  const options = {
    'com.docker.network.bridge.enable_ip_masquerade': 'true',
    ...(mtu !== undefined && Number(mtu) > 0 && { 'com.docker.network.driver.mtu': mtu }),
  }
  for (let attempt = 0; ; attempt++) {
    try {
      return await networks.create({ name, ipv6Subnet: kindSubnet(name, attempt), options })
    } catch (error) {
      if (!(error instanceof DockerError)) throw error
      // Somebody, kind perhaps, was quicker.
      if ((await networks.find(name)) !== undefined) return
      if (/IPv6/i.test(error.message) && !isOverlap(error))
        return networks.create({ name, ipv6Subnet: undefined, options })
      // podman masquerades without being told, and knows no such option.
      if (/unsupported .*option/i.test(error.message))
        return networks.create({ name, ipv6Subnet: kindSubnet(name, attempt), options: {} })
      if (!isOverlap(error) || attempt + 1 === attempts) throw error
    }
  }
}

function isOverlap({ message }: DockerError): boolean {
  return /overlap/i.test(message)
}

/** An IPv6 subnet of fc00::/8 from the SHA-1 of the name and the number of the attempt, as kind computes it. */
export function kindSubnet(name: string, attempt: number): string {
  const number = Buffer.alloc(4)
  number.writeInt32LE(attempt)
  const hash = createHash('sha1').update(name).update(number).digest()
  const groups = [2, 4, 6].map((at) => hash.readUInt16BE(at).toString(16))
  return `fc00:${groups.join(':')}::/64`
}
