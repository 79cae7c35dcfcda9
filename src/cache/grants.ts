import { isForeignLayer } from '../oci/content.ts'
import type { Digest } from '../oci/digest.ts'
import { type Access, anonymousIdentity, type Caller, type Identity, parseIdentity } from '../oci/registry.ts'
import type { RefStore, RepositoryRecord } from '../store/records.ts'
import { type Upstream, UpstreamError } from '../upstream/upstream.ts'

/**
 * An upstream's word that a repository holds some content (decision D5: having the bytes is not a right to serve them).
 * It comes from a manifest of that repository that names the content, or from an answer about the content itself.
 */
export interface Grant {
  readonly identity: Identity
  readonly size: number
  /** Of a manifest; of a blob whatever its descriptor says. */
  readonly mediaType: string | undefined
}

/** Whether a word counts for this identity: it was given to nobody in particular, or to the same credential. */
export function isValidFor(grant: { readonly identity: Identity }, identity: Identity): boolean {
  return grant.identity === anonymousIdentity || grant.identity === identity
}

/** The word a repository's record holds on a blob, good for this identity. A manifest is a blob too. */
export function findGrant(record: RepositoryRecord | undefined, digest: Digest, identity: Identity): Grant | undefined {
  if (!record) return undefined
  const manifest = record.manifests.get(digest)
  if (manifest && isValidFor(manifest, identity)) return manifest
  const blob = record.blobs.get(digest)
  if (blob && isValidFor(blob, identity)) return { identity: blob.identity, size: blob.size, mediaType: undefined }
  for (const parent of record.manifests.values()) {
    if (!isValidFor(parent, identity)) continue
    const link = parent.links.find((link) => link.digest === digest && !isForeignLayer(link.mediaType))
    if (link) return { identity: parent.identity, size: link.size, mediaType: link.mediaType }
  }
  return undefined
}

/** The word a repository's record holds on a manifest: a layer's digest is no manifest, whoever asks for it as one. */
export function findManifestGrant(
  record: RepositoryRecord | undefined,
  digest: Digest,
  identity: Identity,
): (Grant & { readonly mediaType: string }) | undefined {
  if (!record) return undefined
  const manifest = record.manifests.get(digest)
  if (manifest && isValidFor(manifest, identity)) return manifest
  for (const parent of record.manifests.values()) {
    const link =
      isValidFor(parent, identity) && parent.links.find((link) => link.kind === 'manifest' && link.digest === digest)
    if (link) return { identity: parent.identity, size: link.size, mediaType: link.mediaType }
  }
  return undefined
}

/** Whose word stands when a second one comes: nobody's in particular is the better one, for it is good for everybody. */
export function widerIdentity(known: Identity | undefined, learned: Identity): Identity {
  return known === anonymousIdentity ? known : learned
}

/** Takes back what one identity was told: the upstream has refused it. True when that changed the record. */
export function revokeGrants(record: RepositoryRecord, identity: Identity): boolean {
  if (identity === anonymousIdentity) return false
  let changed = false
  const { tags, manifests, blobs, referrers } = record
  for (const entries of [tags, manifests, blobs, referrers] as Map<string, { identity: Identity }>[]) {
    for (const [key, entry] of entries) {
      if (entry.identity === identity) changed = entries.delete(key) || changed
    }
  }
  return changed
}

/** A repository of an upstream, as one caller may see it. */
export interface RequestContext {
  readonly host: string
  /** As the upstream spells it: with `library/` on Docker Hub. */
  readonly name: string
  readonly upstream: Upstream
  readonly caller: Caller
  /** Whose credential the caller's questions are asked with. It may take a credential helper's time: ask for it last. */
  readonly identity: () => Promise<Identity>
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

export function createRequestContext(
  refs: RefStore,
  upstream: Upstream,
  name: string,
  caller: Caller,
  identities: Identities,
  refusal: (identity: Identity) => UpstreamError | undefined = () => undefined,
): RequestContext {
  const { host } = upstream
  let found: Promise<string> | undefined
  const identity = () => (found ??= identities.get(upstream, caller.access))
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
export async function toRequestKey(context: RequestContext, what: string): Promise<string> {
  return `${await context.identity()} ${context.host}/${context.name} ${what}`
}

/**
 * What is known of a repository and is good for the caller: for everybody before it is for him, so that public content does not
 * wait until it is known who he is.
 */
export async function findForCaller<T>(
  context: RequestContext,
  find: (record: RepositoryRecord, identity: Identity) => T | undefined,
): Promise<T | undefined> {
  const before = context.record()
  const found = before && find(before, anonymousIdentity)
  if (found !== undefined || !before || context.caller.access === 'anonymous') return found
  const identity = await context.identity()
  // It may have changed meanwhile.
  const record = context.record()
  return record && find(record, identity)
}

/** Stands for a credential that could not be read so far: no grant has it. */
const unknownIdentity = parseIdentity('unknown')

/** Whose credential each upstream is asked with. */
export class Identities {
  readonly #known = new Map<string, Identity>()
  /** Those whose credential could not be had the last time. */
  readonly #failing = new Set<string>()

  /**
   * A credential that cannot be had for now (a helper that needs the network, a locked key chain) leaves its owner who he was:
   * what is cached for him is still served, and a question to the upstream fails by itself. Who has had none is not taken for nobody.
   * Nobody waits for a second failure.
   */
  async get(upstream: Upstream, access: Access): Promise<string> {
    const key = `${access} ${upstream.host}`
    const asked = this.#request(key, upstream, access)
    const known = this.#failing.has(key) ? this.#getLastIdentity(key) : undefined
    if (known === undefined) return asked
    // A bug shows where the upstream is asked.
    asked.catch(() => {})
    return known
  }

  async #request(key: string, upstream: Upstream, access: Access): Promise<string> {
    try {
      const identity = await upstream.identity(access)
      this.#known.set(key, identity)
      this.#failing.delete(key)
      return identity
    } catch (error) {
      if (!(error instanceof UpstreamError)) throw error
      this.#failing.add(key)
      return this.#getLastIdentity(key) ?? 'unknown'
    }
  }

  #getLastIdentity(key: string): string | undefined {
    const known = this.#known.get(key)
    return known === anonymousIdentity ? undefined : known
  }
}
