import type { ClientReport } from './clients.ts'

/** Describes a client of this machine whose files mirror has written. */
export interface ConfiguredClient {
  /** Holds the name that `mirror configure` knows: `docker`, `kind`. */
  readonly client: string
  /** Names the place: a file, a cluster, a daemon. */
  readonly title: string
  /** Gives the time of the first write (ISO 8601). */
  readonly since: string
}

export interface ConfiguredClientReport extends ConfiguredClient {
  /** Gives the time at which a program of this client last used the mirror (ISO 8601); absent when none did since. */
  readonly lastSeen?: string
}

/** Maps the clients that `mirror configure` knows to the products of the user agents that they send. */
const products: Readonly<Record<string, readonly string[]>> = {
  docker: ['docker', 'buildkit', 'containerd'],
  podman: ['containers', 'podman', 'buildah', 'skopeo', 'libpod'],
  containerd: ['containerd', 'nerdctl'],
  kind: ['containerd'],
  k3d: ['containerd', 'k3s'],
  k3s: ['containerd', 'k3s'],
  minikube: ['containerd', 'docker', 'cri-o'],
  buildkit: ['buildkit'],
}

/** Reports whether a client can be told by its user agent at all. */
export function hasKnownProducts(client: string): boolean {
  return Object.hasOwn(products, client)
}

/** Lists the configured clients that a program may be, by its user agent alone: `containerd` of a kind node is one of kind. */
export function findConfiguredFor({ product }: Pick<ClientReport, 'product'>, configured: readonly ConfiguredClient[]) {
  const names = configured.map(({ client }) => client).filter((client) => isProductOf(client, product))
  return [...new Set(names)].toSorted()
}

/** Adds the time of the last use to each configured client. A program that was seen only before the first write does not count. */
export function describeConfigured(
  configured: readonly ConfiguredClient[],
  seen: readonly Pick<ClientReport, 'product' | 'lastSeen'>[],
): ConfiguredClientReport[] {
  return configured.map(({ client, title, since }) => {
    const times = seen.filter(({ product }) => isProductOf(client, product)).map(({ lastSeen }) => lastSeen)
    const lastSeen = times
      .filter((time) => time >= since)
      .toSorted()
      .at(-1)
    return { client, title, since, ...(lastSeen !== undefined && { lastSeen }) }
  })
}

function isProductOf(client: string, product: string): boolean {
  return hasKnownProducts(client) && products[client]!.includes(product.toLowerCase())
}
