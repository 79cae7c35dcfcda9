import { isIPv6 } from 'node:net'
import { basename } from 'node:path'
import { type Config, type ListenAddress, renderConfig } from '../../config/config.ts'
import { machineNames } from '../../lib/network.ts'
import { parseRegistryHost } from '../../oci/reference.ts'
import type { ContainerPorts } from '../../daemon/container/spec.ts'
import type { PublishedPort } from '../../docker/engine.ts'
import { isLoopbackAddress } from '../../server/request-guard.ts'

/** What a mirror in a container is told: a mirror.yaml, and the files it names. */
export interface ContainerConfig {
  /** As JSON, which is YAML. */
  readonly text: string
  /** Files of this machine by their names beside that mirror.yaml. */
  readonly files: Readonly<Record<string, string>>
}

/** On the container's own addresses, IPv4 and IPv6, on the ports that are configured; free ones become the usual ones. */
export function containerPorts({ cache, registry, admin }: Config): ContainerPorts {
  return {
    cache: portOf(cache.listen, 5055),
    registry: registry.enabled ? portOf(registry.listen, 5001) : undefined,
    admin: portOf(admin.listen, 5056),
  }
}

function portOf([first]: ListenAddress[], usual: number): PublishedPort {
  const outside = first?.port ?? 0
  return { inside: outside === 0 ? usual : outside, outside }
}

/**
 * The same configuration for the inside of a container: other addresses, files that were handed over, no networks to look
 * for, and credentials only for the registries whose credentials are handed over.
 */
export function containerConfig(config: Config, ports: ContainerPorts, handedOver: readonly string[]): ContainerConfig {
  const files: Record<string, string> = {}
  /** A name of its own for each file; two may be called `ca.pem`. */
  const handed = (path: string) => {
    const known = Object.keys(files).find((name) => files[name] === path)
    const name = known ?? `${Object.keys(files).length}-${basename(path).replaceAll(/[^\w.-]/g, '_')}`
    files[name] = path
    return `./${name}`
  }
  const { cache, registry, tls } = config
  const inside = renderConfig({
    ...config,
    cache: { ...cache, listen: everywhere(ports.cache.inside) },
    registry: {
      ...registry,
      listen: everywhere(ports.registry?.inside ?? 5001),
      auth: registry.auth && { htpasswd: handed(registry.auth.htpasswd) },
    },
    admin: { listen: everywhere(ports.admin.inside) },
    networks: [],
    allowedHosts: namesOutside(config),
    upstreams: Object.fromEntries(
      Object.entries(config.upstreams).map(([host, upstream]) => [
        host,
        {
          ...upstream,
          ca: upstream.ca === undefined ? undefined : handed(upstream.ca),
          credentials: { from: handedOver.includes(host) ? 'docker-config' : 'anonymous' },
        },
      ]),
    ),
    // Its authority is for clients' configuration, which is written here.
    tls: tls && { cert: handed(tls.cert), key: handed(tls.key), ca: undefined },
  })
  const lent = Object.fromEntries(handedOver.map((host) => [host, { credentials: 'docker-config' }]))
  const document = { ...inside, upstreams: { ...lent, ...inside.upstreams } }
  return { text: `${JSON.stringify(document, null, 2)}\n`, files }
}

/** IPv4 comes in there, too. */
const everywhere = (port: number) => [{ host: '::', port }]

/** A container does not know by which names and addresses clients reach the machine that it runs on. */
function namesOutside({ allowedHosts, cache, registry, admin }: Config): string[] {
  const listening = [cache, registry, admin].flatMap(({ listen }) => listen.map(({ host }) => host))
  const outside = [...machineNames(), ...listening].filter((host) => isUnknownInside(host) && isName(host))
  return [...new Set([...allowedHosts, ...outside])]
}

function isUnknownInside(host: string): boolean {
  return host !== '0.0.0.0' && host !== '::' && !isLoopbackAddress(host)
}

/** A machine may have a name that no configuration takes. */
function isName(host: string): boolean {
  return parseRegistryHost(isIPv6(host) ? `[${host}]` : host) !== undefined
}
