import type { RefStore, RepositoryRecord } from '../store/ref-store.ts'
import { UpstreamError, type Upstream } from '../upstream/upstream.ts'
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

export async function openPlace(refs: RefStore, upstream: Upstream, name: string, caller: Caller): Promise<Place> {
  const { host } = upstream
  return {
    host,
    name,
    upstream,
    caller,
    identity: await identityOf(upstream, caller),
    record: () => refs.get(host, name),
    ensure: () => refs.ensure(host, name),
  }
}

/** Names a question to this repository, for sharing its answer among callers of the same standing. */
export function placeKey(place: Place, what: string): string {
  return `${place.caller.access} ${place.host}/${place.name} ${what}`
}

/** A credential that cannot be had makes nobody of its owner: what is public is still served, and a question upstream fails by itself. */
async function identityOf(upstream: Upstream, caller: Caller): Promise<string> {
  try {
    return await upstream.identity(caller.access)
  } catch (error) {
    if (error instanceof UpstreamError) return 'unknown'
    throw error
  }
}
