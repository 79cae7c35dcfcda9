import type { Caller } from '../oci/registry.ts'
import { anonymousIdentity, type RefStore, type RepositoryRecord } from '../store/records.ts'
import { type Access, type Upstream, UpstreamError } from '../upstream/upstream.ts'

/** A repository of an upstream, as one caller may see it. */
export interface Place {
  readonly host: string
  /** As the upstream spells it: with `library/` on Docker Hub. */
  readonly name: string
  readonly upstream: Upstream
  readonly caller: Caller
  /** Whose credential the caller's questions are asked with. It may take a credential helper's time: ask for it last. */
  readonly identity: () => Promise<string>
  /**
   * How to ask the upstream where callers with the same identity share the answer. Who was nobody when he came stays so, though a
   * credential has come meanwhile: others of that name have no right to what it brings.
   */
  readonly access: () => Promise<Access>
  /** To be called before the upstream is asked for what the caller wants: throws what it has just refused him. */
  readonly throwIfRefused: () => Promise<void>
  /** What is known of the repository; undefined while nothing is. */
  readonly record: () => RepositoryRecord | undefined
  /** The record to write into. */
  readonly ensure: () => RepositoryRecord
}

export function openPlace(
  refs: RefStore,
  upstream: Upstream,
  name: string,
  caller: Caller,
  identities: Identities,
  refusal: (identity: string) => UpstreamError | undefined = () => undefined,
): Place {
  const { host } = upstream
  let found: Promise<string> | undefined
  const identity = () => (found ??= identities.of(upstream, caller.access))
  return {
    host,
    name,
    upstream,
    caller,
    identity,
    access: async () => ((await identity()) === anonymousIdentity ? 'anonymous' : caller.access),
    async throwIfRefused() {
      const refused = refusal(await identity())
      if (refused) throw refused
    },
    record: () => refs.get(host, name),
    ensure: () => refs.ensure(host, name),
  }
}

/** Names a question to this repository, for sharing its answer among callers with the same credential, or without one. */
export async function placeKey(place: Place, what: string): Promise<string> {
  return `${await place.identity()} ${place.host}/${place.name} ${what}`
}

/**
 * What is known of a repository and is good for the caller: for everybody before it is for him, so that public content does not
 * wait until it is known who he is.
 */
export async function findGranted<T>(
  place: Place,
  find: (record: RepositoryRecord, identity: string) => T | undefined,
): Promise<T | undefined> {
  const before = place.record()
  const found = before && find(before, anonymousIdentity)
  if (found !== undefined || !before || place.caller.access === 'anonymous') return found
  const identity = await place.identity()
  // It may have changed meanwhile.
  const record = place.record()
  return record && find(record, identity)
}

/** Whose credential each upstream is asked with. */
export class Identities {
  readonly #known = new Map<string, string>()
  /** Those whose credential could not be had the last time. */
  readonly #failing = new Set<string>()

  /**
   * A credential that cannot be had for now (a helper that needs the network, a locked key chain) leaves its owner who he was:
   * what is cached for him is still served, and a question to the upstream fails by itself. Who has had none is not taken for nobody.
   * Nobody waits for a second failure.
   */
  async of(upstream: Upstream, access: Access): Promise<string> {
    const key = `${access} ${upstream.host}`
    const asked = this.#ask(key, upstream, access)
    const known = this.#failing.has(key) ? this.#owner(key) : undefined
    if (known === undefined) return asked
    // A bug shows where the upstream is asked.
    asked.catch(() => {})
    return known
  }

  async #ask(key: string, upstream: Upstream, access: Access): Promise<string> {
    try {
      const identity = await upstream.identity(access)
      this.#known.set(key, identity)
      this.#failing.delete(key)
      return identity
    } catch (error) {
      if (!(error instanceof UpstreamError)) throw error
      this.#failing.add(key)
      return this.#owner(key) ?? 'unknown'
    }
  }

  #owner(key: string): string | undefined {
    const known = this.#known.get(key)
    return known === anonymousIdentity ? undefined : known
  }
}
