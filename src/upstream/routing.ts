import type { Repository } from '../oci/route.ts'

/** A repository of an upstream, as that upstream spells it. */
export interface UpstreamRepository {
  readonly host: string
  readonly name: string
}

export interface RoutingOptions {
  /** The hosts of the `upstreams` section. */
  readonly configured: { has(host: string): boolean }
  /** Asked when a request names no registry. */
  readonly defaultUpstream: string
}

/** Registries that may be asked without an entry in the configuration. */
export const builtInUpstreams: ReadonlySet<string> = new Set([
  'docker.io',
  'ghcr.io',
  'gcr.io',
  'us.gcr.io',
  'eu.gcr.io',
  'asia.gcr.io',
  'mirror.gcr.io',
  'quay.io',
  'registry.k8s.io',
  'k8s.gcr.io',
  'mcr.microsoft.com',
  'public.ecr.aws',
  'registry.gitlab.com',
  'nvcr.io',
  'docker.elastic.co',
  'registry.access.redhat.com',
  'registry.redhat.io',
  'cgr.dev',
])

/** Says which upstream a request means; undefined when that one may not be asked. */
export function createRouting({
  configured,
  defaultUpstream,
}: RoutingOptions): (repository: Repository) => UpstreamRepository | undefined {
  return ({ registry, name, byNamespace }) => {
    const host = registry ?? defaultUpstream
    const allowed =
      host === defaultUpstream ||
      configured.has(host) ||
      builtInUpstreams.has(host) ||
      // Google makes a host per region; only a client that names any registry by itself gets at them.
      (byNamespace && /^[a-z0-9-]+\.pkg\.dev$/.test(host))
    if (!allowed) return undefined
    return { host, name: host === 'docker.io' && !name.includes('/') ? `library/${name}` : name }
  }
}
