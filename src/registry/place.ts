import type { RefStore, RepositoryRecord } from '../store/ref-store.ts'
import { UpstreamError, type Access, type Upstream } from '../upstream/upstream.ts'
import type { Caller } from './registry.ts'

/** A repository of an upstream, as one caller may see it. */
export interface Place {
  readonly host: string
  /** As the upstream spells it: with `library/` on Docker Hub. */
  readonly name: string
  readonly upstream: Upstream
  readonly caller: Caller
  /** Whose credential the caller's questions are asked with. */
  readonly identity: string
  /** What is known of the repository; undefined while nothing is. */
  readonly record: () => RepositoryRecord | undefined
  /** The record to write into. */
  readonly ensure: () => RepositoryRecord
}

export async function openPlace(
  refs: RefStore,
  upstream: Upstream,
  name: string,
  caller: Caller,
  identities: Identities,
): Promise<Place> {
  const { host } = upstream
  return {
    host,
    name,
    upstream,
    caller,
    identity: await identities.of(upstream, caller.access),
    record: () => refs.get(host, name),
    ensure: () => refs.ensure(host, name),
  }
}

/** Names a question to this repository, for sharing its answer among callers with the same credential, or without one. */
export function placeKey(place: Place, what: string): string {
  return `${place.identity} ${place.host}/${place.name} ${what}`
}

/** Whose credential each upstream is asked with. */
export class Identities {
  readonly #known = new Map<string, string>()

  /**
   * A credential that cannot be had for now (a helper that needs the network, a locked key chain) leaves its owner who he was:
   * what is cached for him is still served, and a question to the upstream fails by itself.
   */
  async of(upstream: Upstream, access: Access): Promise<string> {
    const key = `${access} ${upstream.host}`
    try {
      const identity = await upstream.identity(access)
      this.#known.set(key, identity)
      return identity
    } catch (error) {
      if (error instanceof UpstreamError) return this.#known.get(key) ?? 'unknown'
      throw error
    }
  }
}
