import type { Endpoints } from '../admin/state.ts'

/** An address that clients may have been told, and what it is now; undefined when nobody answers there any more. */
export interface MovedAddress {
  /** `cache`, `registry`, or a network's name. */
  readonly of: string
  readonly from: string
  /** Whose address that is, where it is another machine's: the engine of that mirror. */
  readonly on?: string
  readonly to: string | undefined
}

/** The addresses of a mirror that its successor does not have: clients that were told have to be configured again. */
export function movedAddresses(
  before: Endpoints | undefined,
  now: Endpoints,
  machines: { readonly before?: string | undefined; readonly now?: string | undefined } = {},
): MovedAddress[] {
  if (before === undefined) return []
  // Whoever was told is on the machine that it has left.
  if (machines.before !== machines.now) return allOf(before, machines.before)
  const networks = Object.entries(before.networks).flatMap(([network, url]) =>
    url === now.networks[network] ? [] : [{ of: network, from: url, to: now.networks[network] }],
  )
  return [...gone('cache', before.cache, now.cache), ...gone('registry', before.registry, now.registry), ...networks]
}

function allOf({ cache, registry, networks }: Endpoints, on: string | undefined): MovedAddress[] {
  const left = (of: string) => (from: string) => ({ of, from, to: undefined, ...(on !== undefined && { on }) })
  const inNetworks = Object.entries(networks).map(([network, url]) => left(network)(url))
  return [...cache.map(left('cache')), ...registry.map(left('registry')), ...inNetworks]
}

function gone(of: string, from: readonly string[], to: readonly string[]): MovedAddress[] {
  return from.filter((url) => !to.includes(url)).map((url) => ({ of, from: url, to: to[0] }))
}
