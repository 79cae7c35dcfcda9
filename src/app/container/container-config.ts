import { basename } from 'node:path'
import type { Config, ListenAddress } from '../../config/config.ts'
import type { ContainerPorts } from '../../runtime/container-spec.ts'
import type { PublishedPort } from '../../runtime/docker-containers.ts'

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
  const inside = {
    cache: {
      ...cache,
      listen: everywhere(ports.cache.inside),
      maxSize: bytes(cache.maxSize),
      minFree: bytes(cache.minFree),
      maxAge: milliseconds(cache.maxAge),
      tagFreshness: milliseconds(cache.tagFreshness),
      prefetch: {
        ...cache.prefetch,
        rangeBytes: bytes(cache.prefetch.rangeBytes),
        rangeMinSize: bytes(cache.prefetch.rangeMinSize),
      },
      timeouts: mapValues(cache.timeouts, milliseconds),
    },
    registry: {
      enabled: registry.enabled,
      listen: everywhere(ports.registry?.inside ?? 5001),
      deletes: registry.deletes,
      ...(registry.auth && { auth: { htpasswd: handed(registry.auth.htpasswd) } }),
    },
    admin: { listen: everywhere(ports.admin.inside) },
    networks: [],
    allowedHosts: config.allowedHosts,
    log: config.log,
    upstreams: mapEntries(allUpstreams(config, handedOver), (host, upstream) => ({
      ...(upstream && { url: upstream.url, tokenHosts: upstream.tokenHosts }),
      ...(upstream?.ca !== undefined && { ca: handed(upstream.ca) }),
      ...(upstream?.tagFreshness !== undefined && { tagFreshness: milliseconds(upstream.tagFreshness) }),
      credentials: handedOver.includes(host) ? 'docker-config' : 'anonymous',
    })),
    defaultUpstream: config.defaultUpstream,
    ...(tls && { tls: { cert: handed(tls.cert), key: handed(tls.key) } }),
  }
  return { text: `${JSON.stringify(inside, null, 2)}\n`, files }
}

function allUpstreams(
  { upstreams }: Config,
  handedOver: readonly string[],
): Record<string, Config['upstreams'][string] | undefined> {
  return { ...Object.fromEntries(handedOver.map((host) => [host, undefined])), ...upstreams }
}

const everywhere = (port: number) => [`[::]:${port}`]
const bytes = (size: number) => `${size}B`
const milliseconds = (duration: number) => `${duration}ms`

function mapValues<T, U>(record: Readonly<Record<string, T>>, change: (value: T) => U): Record<string, U> {
  return mapEntries(record, (_, value) => change(value))
}

function mapEntries<T, U>(
  record: Readonly<Record<string, T>>,
  change: (key: string, value: T) => U,
): Record<string, U> {
  return Object.fromEntries(Object.entries(record).map(([key, value]) => [key, change(key, value)]))
}
