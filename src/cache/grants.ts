import { LRUCache } from 'lru-cache'
import type { Clock } from '../lib/time.ts'
import type { PastChanges, TagKey } from '../metadata/past-changes.ts'
import type { Metadata, Operation, Repository } from '../metadata/metadata.ts'
import type { MetadataStore } from '../metadata/metadata-store.ts'
import { type MetadataOptions, openMetadata } from '../metadata/open-metadata.ts'
import type { ManifestLink } from '../oci/content.ts'
import { OciError, type OciErrorCode } from '../oci/errors.ts'
import { type Digest, formatUpstreamSetting } from '../oci/reference.ts'
import {
  type Access,
  anonymousIdentity,
  type Caller,
  type Identity,
  parseIdentity,
  type Provenance,
} from '../oci/registry.ts'
import { type Upstream, UpstreamError } from '../upstream/upstream.ts'

/**
 * Records a grant: the upstream has confirmed that a repository has some content. The store shares bytes between repositories, so
 * having the bytes is not a right to serve them (decision D5). A grant follows from a manifest of that repository that names
 * the content, or from the upstream's response for the content itself.
 */
export interface Grant {
  /** Holds the credential that the upstream answered; see `anonymousIdentity`. */
  readonly identity: Identity
  /** Bytes. */
  readonly size: number
  /** Holds the manifest's media type; for a blob the one in its descriptor, if a manifest names it. */
  readonly mediaType: string | undefined
}

/** Reports whether a grant is valid for this identity: it is anonymous, or was given to the same credential. */
export function isValidFor(grant: { readonly identity: Identity }, identity: Identity): boolean {
  return grant.identity === anonymousIdentity || grant.identity === identity
}

/** Finds a grant for a blob that is valid for this identity. A manifest counts as a blob, too. */
export function findGrant(repository: Repository | undefined, digest: Digest, identity: Identity): Grant | undefined {
  if (!repository) return undefined
  const manifest = repository.manifests.get(digest)
  if (manifest && isValidFor(manifest, identity)) return manifest
  const blob = repository.blobs.get(digest)
  if (blob && isValidFor(blob, identity)) return { identity: blob.identity, size: blob.size, mediaType: undefined }
  return findLinkGrant(repository, digest, identity, ['blob', 'manifest'])
}

/** Finds a grant for a manifest that is valid for this identity. A link to a layer does not grant a manifest. */
export function findManifestGrant(
  repository: Repository | undefined,
  digest: Digest,
  identity: Identity,
): (Grant & { readonly mediaType: string }) | undefined {
  if (!repository) return undefined
  const manifest = repository.manifests.get(digest)
  if (manifest && isValidFor(manifest, identity)) return manifest
  return findLinkGrant(repository, digest, identity, ['manifest'])
}

/** Finds a grant that follows from a manifest which names the content. */
function findLinkGrant(
  repository: Repository,
  digest: Digest,
  identity: Identity,
  kinds: readonly ManifestLink['kind'][],
): (Grant & { readonly mediaType: string }) | undefined {
  for (const holder of new Set([anonymousIdentity, identity])) {
    for (const kind of kinds) {
      const link = repository.findLink(digest, holder, kind)
      if (link) return { identity: holder, size: link.size, mediaType: link.mediaType }
    }
  }
  return undefined
}

/** Returns the identity to record for a second grant: anonymous stays, because such a grant is valid for every caller. */
export function chooseWiderIdentity(known: Identity | undefined, recent: Identity): Identity {
  return known === anonymousIdentity ? known : recent
}

/** Returns the operations that remove all grants of an identity which the upstream has denied. */
export function revokeGrants(repository: Repository, identity: Identity): Operation[] {
  if (identity === anonymousIdentity) return []
  return revokeIf(repository, (granted) => granted === identity)
}

/** Opens the metadata of the cache. After damage all grants that need a credential are revoked, because a damaged line may have revoked one. */
export function openCacheMetadata(
  files: Pick<MetadataOptions, 'folder' | 'previousFolder' | 'setAside' | 'isNew'>,
  options: Pick<MetadataOptions, 'logger' | 'clock' | 'maxWeight'>,
): Promise<MetadataStore> {
  return openMetadata({ ...files, ...options, onDamage: revokePrivateGrants })
}

function revokePrivateGrants(metadata: Pick<Metadata, 'all' | 'commit'>): void {
  for (const repository of metadata.all()) {
    const operations = revokeIf(repository, () => true)
    if (operations.length > 0) void metadata.commit(repository, operations, 'soon')
  }
}

function revokeIf(
  { tags, manifests, blobs, referrers }: Repository,
  isRevoked: (identity: Identity) => boolean,
): Operation[] {
  const isIn = ({ identity }: { readonly identity: Identity }) => identity !== anonymousIdentity && isRevoked(identity)
  const operations: Operation[] = []
  for (const [tag, entry] of tags) if (isIn(entry)) operations.push({ op: 'untag', tag })
  for (const [digest, entry] of manifests) if (isIn(entry)) operations.push({ op: 'drop-manifest', digest })
  for (const [digest, entry] of blobs) if (isIn(entry)) operations.push({ op: 'drop-blob', digest })
  for (const page of referrers.values()) if (isIn(page)) operations.push({ ...page, op: 'drop-referrers' })
  return operations
}

/** Describes one request for content of an upstream's repository. */
export interface RequestContext {
  readonly host: string
  /** Names the repository as the upstream spells it: with `library/` on Docker Hub. */
  readonly name: string
  readonly upstream: Upstream
  readonly caller: Caller
  /** Identifies the credential for the upstream. Call it as late as possible, because a credential helper may be slow. */
  readonly identity: () => Promise<Identity>
  /** Returns the identity that was found last for this access, at once; undefined before the first one. */
  readonly findLastIdentity: () => Identity | undefined
  /**
   * Returns the access for a request whose response callers of one identity share. An anonymous caller stays anonymous when a
   * credential appears meanwhile, because the other anonymous callers have no right to what the credential returns.
   */
  readonly access: () => Promise<Access>
  /** Throws the upstream's UpstreamError if it has just refused this request. Call it before a request to the upstream. */
  readonly throwIfRefused: () => Promise<void>
  /** Returns what is recorded of the repository; undefined while that is nothing. Call it again after an `await`. */
  readonly record: () => Repository | undefined
  /** Changes what is recorded of the repository. The change is visible at once. */
  readonly commit: (operations: readonly Operation[]) => void
}

export function createRequestContext(
  metadata: Metadata,
  upstream: Upstream,
  name: string,
  caller: Caller,
  identities: Identities,
  refusal: (identity: Identity) => UpstreamError | undefined = () => undefined,
): RequestContext {
  const { host } = upstream
  let found: Promise<Identity> | undefined
  const identity = () => (found ??= identities.get(upstream, caller.access))
  return {
    host,
    name,
    upstream,
    caller,
    identity,
    findLastIdentity: () => identities.findLast(upstream, caller.access),
    access: async () => ((await identity()) === anonymousIdentity ? 'anonymous' : caller.access),
    async throwIfRefused() {
      const refused = refusal(await identity())
      if (refused) throw refused
    },
    record: () => metadata.get(host, name),
    commit(operations) {
      if (operations.length > 0) void metadata.commit({ host, name }, operations, 'soon')
    },
  }
}

const cacheStatuses: Record<Provenance['outcome'], string | undefined> = {
  hit: 'mirror; hit',
  revalidated: 'mirror; hit; fwd=stale; fwd-status=200',
  stale: 'mirror; hit; detail=stale-on-error',
  miss: 'mirror; fwd=miss; stored',
  collapsed: 'mirror; fwd=miss; collapsed',
  passed: 'mirror; fwd=miss; fwd-status=200',
  own: undefined,
}

/**
 * Creates the provenance of an answer, with the `Cache-Status` value of its outcome (RFC 9211), and the cause of a miss. `warning`: see
 * `Provenance`.
 */
export function toProvenance(
  registry: string,
  outcome: Provenance['outcome'],
  miss: Miss = noMiss,
  warning?: string,
): Provenance {
  return { registry, outcome, cacheStatus: cacheStatuses[outcome], warning, ...miss }
}

/** Holds the cause of a miss, as far as it is known. */
export type Miss = Pick<Provenance, 'reason' | 'evictedAt'>

const noMiss: Miss = {}

/** Explains a miss of content that was removed before; undefined when no removal of these keys is remembered. */
export function findRemovalMiss(pastChanges: PastChanges, ...keys: (Digest | TagKey)[]): Miss | undefined {
  for (const key of keys) {
    const removal = pastChanges.findRemoval(key)
    if (removal) return { reason: removal.why, ...(removal.why === 'evicted' && { evictedAt: removal.at }) }
  }
  return undefined
}

/** Explains why a repository may not serve stored content: another credential has the grant, or no upstream has given one. */
export function explainMissingGrant(repository: Repository | undefined, digest: Digest): Miss {
  const isOthers =
    repository !== undefined &&
    (repository.manifests.has(digest) ||
      repository.blobs.has(digest) ||
      repository.findLinkIdentities(digest).length > 0)
  return { reason: isOthers ? 'identity' : 'not granted' }
}

/** Returns the key of requests of this repository whose response callers of the same identity share. */
export async function toRequestKey(context: RequestContext, resource: string): Promise<string> {
  return `${await context.identity()} ${context.host}/${context.name} ${resource}`
}

/**
 * Finds something recorded of the repository that is valid for the caller. Tries the anonymous identity first, so that public
 * content does not wait for the caller's identity.
 */
export async function findForCaller<T>(
  context: RequestContext,
  find: (repository: Repository, identity: Identity) => T | undefined,
): Promise<T | undefined> {
  const before = context.record()
  const found = before && find(before, anonymousIdentity)
  if (found !== undefined || !before || context.caller.access === 'anonymous') return found
  const identity = await context.identity()
  // The repository may have changed while the identity was determined.
  const repository = context.record()
  return repository && find(repository, identity)
}

/** Stands for a credential that could not be read so far: no grant has it. */
const unknownIdentity = parseIdentity('unknown')

/** Remembers the identity of the credential for each upstream. */
export class Identities {
  readonly #known = new Map<string, Identity>()
  /** Lists the keys whose credential could not be read the last time. */
  readonly #failing = new Set<string>()

  /**
   * Returns the identity of the credential for this access.
   *
   * While the credential cannot be read (a helper that needs the network, a locked key chain), the last identity stays: cached
   * content is still served, and a request to the upstream fails by itself. Without a last identity the result is `unknown`,
   * never anonymous. After one failure later calls do not wait for the next one.
   */
  async get(upstream: Upstream, access: Access): Promise<Identity> {
    const key = `${access} ${upstream.host}`
    const current = this.#request(key, upstream, access)
    const known = this.#failing.has(key) ? this.#getLastIdentity(key) : undefined
    if (known === undefined) return current
    // Prevent an unhandled rejection: the request to the upstream reports the same error.
    current.catch(() => {})
    return known
  }

  async #request(key: string, upstream: Upstream, access: Access): Promise<Identity> {
    try {
      const identity = await upstream.identity(access)
      this.#known.set(key, identity)
      this.#failing.delete(key)
      return identity
    } catch (error) {
      if (!(error instanceof UpstreamError)) throw error
      this.#failing.add(key)
      return this.#getLastIdentity(key) ?? unknownIdentity
    }
  }

  /** Returns the last result of `get`, without a look at the credential. */
  findLast({ host }: Upstream, access: Access): Identity | undefined {
    const key = `${access} ${host}`
    return this.#failing.has(key) ? (this.#getLastIdentity(key) ?? unknownIdentity) : this.#known.get(key)
  }

  #getLastIdentity(key: string): Identity | undefined {
    const known = this.#known.get(key)
    return known === anonymousIdentity ? undefined : known
  }
}

/** Remembers the refusals of upstreams for a moment, so that a client that retries in a loop does not reach the upstream. */
export class NegativeCache {
  readonly #entries = new LRUCache<string, { readonly error: UpstreamError; readonly until: number }>({ max: 10_000 })
  readonly #clock: Clock
  readonly #ttlMs: number

  constructor(clock: Clock, ttlMs: number) {
    this.#clock = clock
    this.#ttlMs = ttlMs
  }

  /** Returns the refusals that concern one request. */
  forRequest(resource: string, caller: Caller): RequestRefusals {
    return new RequestRefusals(this, resource, caller)
  }

  get(key: string): UpstreamError | undefined {
    const entry = this.#entries.get(key)
    return entry && this.#clock.monotonic() < entry.until ? entry.error : undefined
  }

  set(key: string, error: UpstreamError): void {
    this.#entries.set(key, { error, until: this.#clock.monotonic() + this.#ttlMs })
  }
}

/**
 * Remembers the refusals that concern one request, by identity. A refused GET answers a HEAD as well; a refused HEAD does not
 * answer a GET, because some registries refuse every HEAD.
 */
class RequestRefusals {
  readonly #cache: NegativeCache
  readonly #resource: string
  readonly #caller: Caller
  #repeated: UpstreamError | undefined

  constructor(cache: NegativeCache, resource: string, caller: Caller) {
    this.#cache = cache
    this.#resource = resource
    this.#caller = caller
  }

  find(identity: Identity): UpstreamError | undefined {
    if (this.#caller.noCache) return undefined
    const key = `${identity} ${this.#resource}`
    const ofHead = this.#caller.head ? this.#cache.get(`HEAD ${key}`) : undefined
    return (this.#repeated = ofHead ?? this.#cache.get(key))
  }

  /** Reports whether an error is a refusal by the upstream. A remembered one is not, because repeating it must not prolong it. */
  isNew(error: UpstreamError): boolean {
    return (error.failure === 'absent' || error.failure === 'denied') && error !== this.#repeated
  }

  remember(identity: Identity, error: UpstreamError): void {
    this.#cache.set(`${this.#caller.head ? 'HEAD ' : ''}${identity} ${this.#resource}`, error)
  }
}

/**
 * Maps an upstream's failure to the client's error; `absent` is the code of a 404. An outage is never a 404, because clients
 * take that for "does not exist". 401 and 403 carry no challenge, so that clients try the origin with their own credentials.
 */
export function toOciError(error: UpstreamError, registry: string, absent: OciErrorCode): OciError {
  const headers: Record<string, string> = {
    'oci-namespace': registry,
    'cache-status': `mirror; fwd=miss; fwd-status=${error.status}`,
  }
  if (error.retryAfterSeconds !== undefined)
    headers['retry-after'] = String(Math.max(1, Math.ceil(error.retryAfterSeconds)))
  switch (error.failure) {
    case 'absent':
      return new OciError(absent, 404, error.message, headers)
    case 'denied':
      // Clients know these two statuses best; `Cache-Status` has the upstream's own.
      return error.status === 401
        ? new OciError('UNAUTHORIZED', 401, error.message, headers)
        : new OciError('DENIED', 403, error.message, headers)
    case 'limited':
      return new OciError('TOOMANYREQUESTS', 429, error.message, { 'retry-after': '60', ...headers })
    case 'unavailable':
      return new OciError(
        'UNAVAILABLE',
        [502, 503, 504].includes(error.status) ? error.status : 502,
        error.message,
        headers,
      )
    case 'invalid':
      return new OciError('UNKNOWN', 502, error.message, headers)
  }
}

/** Creates the 404 for a registry that is not mirrored. */
export function toUnknownRegistryError({
  registry,
  name,
}: {
  readonly registry: string | undefined
  readonly name: string
}): OciError {
  const host = registry ?? 'the default upstream'
  return new OciError(
    'NAME_UNKNOWN',
    404,
    `${host} is not mirrored (requested: ${name}). To mirror it, add "${formatUpstreamSetting(host)}" to mirror.yaml.`,
  )
}
