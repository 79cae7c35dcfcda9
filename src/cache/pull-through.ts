import type { Repository as RecordedRepository } from '../metadata/metadata.ts'
import { toTagKey } from '../metadata/past-changes.ts'
import { type Digest, type Reference, formatReference } from '../oci/reference.ts'
import type { OciErrorCode } from '../oci/errors.ts'
import {
  anonymousIdentity,
  type BlobResponse,
  type Caller,
  type DownloadReport,
  type Identity,
  type ListResponse,
  type ManifestResponse,
  type Provenance,
  type Registry,
} from '../oci/registry.ts'
import type { Page, Repository } from '../oci/route.ts'
import { SmallContents, openStoredManifest } from '../store/contents.ts'
import { type ManifestHead, type Upstream, UpstreamError } from '../upstream/upstream.ts'
import { BlobCache, type BlobCacheOptions } from './blobs.ts'
import type { RangePolicy } from './download/download.ts'
import {
  createRequestContext,
  explainMissingGrant,
  findForCaller,
  findManifestGrant,
  findRemovalMiss,
  Identities,
  type Miss,
  NegativeCache,
  type RequestContext,
  revokeGrants,
  toOciError,
  toProvenance,
  toUnknownRegistryError,
} from './grants.ts'
import { HeadRequests, isCompleteHead } from './heads.ts'
import { checkPage, listCatalog, listTags } from './lists.ts'
import { type CachedManifest, ManifestCache } from './manifests.ts'
import { Prefetcher } from './prefetch.ts'
import { ReferrersCache } from './referrers.ts'
import { PullTracker } from './pulls.ts'
import { type NewerDigest, type TagCheck, TagLookup, type TagPolicy } from './tags.ts'

interface PullThroughOptions extends BlobCacheOptions {
  /** Maps a requested repository to its upstream and its name there; undefined when its registry is not mirrored. */
  readonly resolveUpstream: (repository: Repository) => UpstreamRepository | undefined
  readonly policy: TagPolicy
  /** Limits the layers of one image that are prefetched at a time; 0 turns prefetching off. */
  readonly prefetchLayers: number
}

type RepositoryName = Pick<RecordedRepository, 'host' | 'name'>

export interface TagDetails {
  /** Holds the digest that the upstream named last, while it is not fetched. */
  readonly newer: NewerDigest | undefined
  /** Holds the time since which the tag points to its digest, wall clock ms. */
  readonly movedAt: number | undefined
}

interface UpstreamRepository {
  readonly upstream: Upstream
  readonly name: string
}

/** Describes what is known of a repository and its upstream, to tell what a request would do. */
export interface RepositoryView {
  readonly upstream: Upstream
  /** Names the repository as the upstream spells it. */
  readonly name: string
  readonly record: RecordedRepository | undefined
  /** Identifies requests from this machine. */
  readonly identity: Identity
  readonly policy: TagPolicy
  readonly ranges: RangePolicy
  /** Returns what is known of a cached tag beside its digest. */
  describeCheck(tag: string): ReturnType<TagLookup['describeCheck']> & Pick<TagDetails, 'newer'>
  /** Returns the upstream's refusal of `manifests/…` or `blobs/…` that is still remembered. */
  findRefusal(resource: string): UpstreamError | undefined
}

/** Sets the time during which a 401, 403 or 404 of an upstream answers the same request again. */
const negativeTtlMs = 5000
/** Limits the memory for manifests and configs, bytes. */
const smallContentBytes = 32 * 1024 * 1024

/**
 * Implements the pull-through cache: serves the repositories of upstream registries from the local store, and fetches what is
 * missing.
 *
 * A pull passes these steps:
 *
 * 1. `#serve` resolves the repository to an upstream. A registry that is not mirrored is a 404.
 * 2. A tag is resolved to a digest (`TagLookup`): a fresh tag costs no request, an old one is revalidated by one HEAD. While
 *    the upstream fails, the cached digest is served stale.
 * 3. Hit: the upstream has granted this repository the digest (`Grant`) and the store has the bytes. No request is sent.
 * 4. A request that the upstream refused a moment ago is refused again (`NegativeCache`).
 * 5. Revalidate: the store has the bytes, but for another repository. One HEAD obtains the grant.
 * 6. HEAD of content that is not cached: proxied to the upstream, nothing is stored.
 * 7. Miss: one GET for all clients that wait for the digest. The bytes are verified and stored (`ManifestCache`, `BlobCache`).
 * 8. An `UpstreamError` becomes the `OciError` that the client gets.
 */
export class PullThrough implements Registry {
  readonly #options: PullThroughOptions
  readonly #identities = new Identities()
  readonly #refusals: NegativeCache
  readonly #contents: SmallContents
  readonly #manifests: ManifestCache
  readonly #heads: HeadRequests
  readonly #tags: TagLookup
  readonly #blobs: BlobCache
  readonly #referrers: ReferrersCache
  readonly #prefetcher: Prefetcher
  readonly #pulls: PullTracker

  constructor(options: PullThroughOptions) {
    this.#options = options
    this.#refusals = new NegativeCache(options.clock, negativeTtlMs)
    this.#contents = new SmallContents(options.blobs, smallContentBytes)
    this.#manifests = new ManifestCache(options, this.#contents)
    this.#heads = new HeadRequests(this.#manifests, options.clock)
    this.#tags = new TagLookup({ ...options, manifests: this.#manifests, heads: this.#heads })
    this.#blobs = new BlobCache(options, this.#contents, this.#heads)
    this.#referrers = new ReferrersCache({
      ...options,
      getByTag: (context, tag) => this.#getByTag(context, tag),
      getCachedByTag: (context, tag) => this.#getCachedByTag(context, tag),
    })
    this.#prefetcher = new Prefetcher({
      layers: options.prefetchLayers,
      clock: options.clock,
      logger: options.logger,
      fetch: async (context, layer, signal) =>
        options.policy.offline ? undefined : this.#blobs.prefetch(context, layer, signal),
    })
    this.#pulls = new PullTracker(options.metadata, options.clock, options.runningTime, () =>
      options.stats.recordPull(),
    )
  }

  /** Answers GET and HEAD of a manifest. Throws an OciError. */
  async manifest(repository: Repository, reference: Reference, caller: Caller): Promise<ManifestResponse> {
    const resource = `manifests/${formatReference(reference)}`
    return this.#serve(repository, caller, 'MANIFEST_UNKNOWN', resource, async (context) => {
      const answer =
        reference.kind === 'tag'
          ? await this.#getByTag(context, reference.tag)
          : await this.#getByDigest(context, reference.digest)
      const { digest } = answer
      if (!digest) return answer
      if (!caller.head) this.#prefetcher.recordManifest(context, digest)
      const known = context.record()
      if (known && !context.upstream.isProbe) this.#pulls.record(caller.client, known, reference, digest, caller.head)
      return answer
    })
  }

  /** Answers GET and HEAD of a blob; `BlobCache` takes the same steps as `#getByDigest`. Throws an OciError. */
  async blob(repository: Repository, digest: Digest, caller: Caller): Promise<BlobResponse> {
    return this.#serve(repository, caller, 'BLOB_UNKNOWN', `blobs/${digest}`, async (context) => {
      const answer = await this.#blobs.get(context, digest)
      // Prefetch the layers behind this one only now: the requested blob comes first.
      if (!caller.head && !caller.part) {
        const { body } = answer
        this.#prefetcher.recordBlob(context, digest, body.kind === 'arriving' ? body.download : undefined)
      }
      return answer
    })
  }

  /**
   * Resolves the repository, runs `answer` for it, and maps the upstream's failures to an OciError. `absent` is the code of a
   * 404. `resource` names the content for the negative cache; undefined for lists, whose refusals are not remembered.
   */
  async #serve<T extends { readonly provenance: Provenance }>(
    repository: Repository,
    caller: Caller,
    absent: OciErrorCode,
    resource: string | undefined,
    answer: (context: RequestContext) => Promise<T>,
  ): Promise<T> {
    const { upstream, name } = this.#resolveRepository(repository)
    const { host } = upstream
    const refusals =
      resource === undefined ? undefined : this.#refusals.forRequest(`${host}/${name} ${resource}`, caller)
    const context = createRequestContext(this.#options.metadata, upstream, name, caller, this.#identities, (identity) =>
      refusals?.find(identity),
    )
    try {
      const answered = await answer(context)
      if (upstream.isProbe) answered.provenance.isProbe = true
      return answered
    } catch (error) {
      if (!(error instanceof UpstreamError)) throw error
      if (refusals?.isNew(error)) {
        const identity = await context.identity()
        refusals.remember(identity, error)
        this.#revokeIfDenied(context, identity, error)
      }
      throw toOciError(error, host, absent)
    }
  }

  /** Throws an OciError 404 for a registry that is not mirrored. */
  #resolveRepository(repository: Repository): UpstreamRepository {
    const route = this.#options.resolveUpstream(repository)
    if (route) return route
    if (repository.registry !== undefined) this.#options.stats.recordRefusedRegistry(repository.registry)
    throw toUnknownRegistryError(repository)
  }

  /** Resolves a tag to its digest, and answers with that manifest. */
  async #getByTag(context: RequestContext, tag: string): Promise<ManifestResponse> {
    const resolved = await this.#tags.resolve(context, tag)
    if (resolved.kind === 'headOnly') return toHeadAnswer(context, resolved.head, resolved.head.digest)
    if (resolved.kind === 'fetched')
      return this.#answerManifest(context, resolved.manifest, resolved.joined ? 'collapsed' : 'miss', resolved.miss)
    const answer = await this.#getByDigest(context, resolved.digest)
    // A manifest from the store carries the outcome of the tag: hit, revalidated or stale.
    if (answer.provenance.outcome !== 'hit') return answer
    return { ...answer, provenance: toProvenance(context.host, resolved.outcome, resolved.miss, resolved.warning) }
  }

  /** Gets the manifest that a tag had when its upstream last confirmed it; undefined when it is not cached. */
  async #getCachedByTag(context: RequestContext, tag: string): Promise<ManifestResponse | undefined> {
    const digest = await this.#tags.findCached(context, tag)
    return digest && this.#getByDigest(context, digest)
  }

  /** Gets a manifest: hit, revalidate, HEAD or miss. A digest is immutable, so a granted manifest in the store is never revalidated. */
  async #getByDigest(context: RequestContext, digest: Digest): Promise<ManifestResponse> {
    const grant = await findForCaller(context, (repository, identity) =>
      findManifestGrant(repository, digest, identity),
    )
    const cached = grant && (await this.#manifests.load(context, digest, grant.mediaType, grant.identity))
    if (cached) return this.#answerManifest(context, cached, 'hit')
    await context.throwIfRefused()
    const isStored = !grant && (await this.#options.blobs.stat(digest)) !== undefined
    if (isStored || context.caller.head) return this.#verifyByHead(context, digest, isStored)
    const { pastChanges } = this.#options
    return this.#fetchManifest(context, digest, findRemovalMiss(pastChanges, digest) ?? explainFirst(context, digest))
  }

  /**
   * Sends a HEAD. `isStored`: the store has the bytes for another repository. They are served once this repository's upstream
   * confirms that it has them too (decision D5). Otherwise a client's HEAD gets the upstream's HEAD, and a GET is a miss.
   */
  async #verifyByHead(context: RequestContext, digest: Digest, isStored: boolean): Promise<ManifestResponse> {
    const removal = findRemovalMiss(this.#options.pastChanges, digest)
    const miss = isStored ? explainMissingGrant(context.record(), digest) : (removal ?? explainFirst(context, digest))
    const result = await this.#heads.headManifest(context, { kind: 'digest', digest }, false)
    if (result.kind === 'fetched')
      return this.#answerManifest(context, result.manifest, result.joined ? 'collapsed' : 'miss', miss)
    const head = { ...result.head, digest }
    const cached = isStored && (await this.#manifests.load(context, digest, head.mediaType, head.identity))
    if (cached) return this.#answerManifest(context, cached, 'revalidated', miss)
    if (context.caller.head && isCompleteHead(head)) return toHeadAnswer(context, head, digest)
    return this.#fetchManifest(context, digest, miss)
  }

  /** Fetches, verifies and stores the manifest (a miss). Concurrent requests of one identity share the fetch. */
  async #fetchManifest(context: RequestContext, digest: Digest, miss: Miss): Promise<ManifestResponse> {
    const { result, joined } = await this.#manifests.fetch(context, { kind: 'digest', digest })
    return this.#answerManifest(context, await result, joined ? 'collapsed' : 'miss', miss)
  }

  #answerManifest(
    context: RequestContext,
    manifest: CachedManifest,
    outcome: Provenance['outcome'],
    miss?: Miss,
  ): ManifestResponse {
    const { digest, mediaType: type, size, content, warning } = manifest
    const { blobs } = this.#options
    const stored = content || context.caller.head ? undefined : openStoredManifest(blobs, digest, size)
    return {
      digest,
      mediaType: type,
      size,
      body: content,
      stored,
      provenance: toProvenance(context.host, outcome, miss, warning),
    }
  }

  /** Revokes the grants of an identity that the upstream has denied, unless stale content is always served. */
  #revokeIfDenied(context: RequestContext, identity: Identity, error: UpstreamError): void {
    if (error.failure !== 'denied' || this.#options.policy.stale === 'always') return
    const known = context.record()
    if (known) context.commit(revokeGrants(known, identity))
  }

  /** Lists the tags of a repository: the upstream's list, or the cached tags while it fails. Throws an OciError. */
  async tags(repository: Repository, page: Page, caller: Caller): Promise<ListResponse> {
    checkPage(page)
    return this.#serve(repository, caller, 'NAME_UNKNOWN', undefined, (context) =>
      listTags(context, page, this.#options),
    )
  }

  /** Lists the referrers of a manifest. The page's query carries the artifact type. Throws an OciError. */
  async referrers(
    repository: Repository,
    digest: Digest,
    _artifactType: string | undefined,
    caller: Caller,
    page: Page,
  ): Promise<ListResponse> {
    return this.#serve(repository, caller, 'NAME_UNKNOWN', undefined, (context) =>
      this.#referrers.list(context, digest, page.query),
    )
  }

  /** Lists the cached repositories that the caller may read, each with its registry in front of the name. */
  async catalog(registry: string | undefined, page: Page, caller: Caller): Promise<ListResponse> {
    const known = [...this.#options.metadata.all()].filter(({ host }) => registry === undefined || host === registry)
    return listCatalog(known, page, async ({ host, name }) => {
      const route = this.#options.resolveUpstream({ registry: host, name, byNamespace: true })
      return route ? this.#identities.get(route.upstream, caller.access) : anonymousIdentity
    })
  }

  /** Asks the upstream about a tag now; undefined when the tag is not cached. */
  async checkTag({ host, name }: RepositoryName, tag: string): Promise<TagCheck | undefined> {
    const { metadata, resolveUpstream } = this.#options
    const known = metadata.get(host, name)?.tags.get(tag)
    const route = known && resolveUpstream({ registry: host, name, byNamespace: true })
    if (!route) return undefined
    const context = createRequestContext(metadata, route.upstream, route.name, checker, this.#identities)
    return this.#tags.check(context, tag, known)
  }

  /** Describes what is known of a cached tag beside its entry. */
  describeTag(repository: RepositoryName, tag: string): TagDetails {
    const newer = this.#tags.findNewer(repository, tag)
    const movedAt = this.#options.pastChanges.findTagChange(toTagKey(repository, tag))?.at
    return { newer, movedAt }
  }

  /** Describes what a request of this machine would find; undefined for a registry that is not mirrored. Sends no request. */
  async inspect(repository: Repository): Promise<RepositoryView | undefined> {
    const route = this.#options.resolveUpstream(repository)
    if (!route) return undefined
    const { upstream, name } = route
    const { host } = upstream
    const identity = await this.#identities.get(upstream, 'credentialed')
    return {
      upstream,
      name,
      record: this.#options.metadata.get(host, name),
      identity,
      policy: this.#options.policy,
      ranges: this.#options.ranges,
      describeCheck: (tag) => ({
        ...this.#tags.describeCheck({ host, name }, tag),
        newer: this.#tags.findNewer({ host, name }, tag),
      }),
      findRefusal: (resource) => this.#refusals.get(`${identity} ${host}/${name} ${resource}`),
    }
  }

  /** Lists the downloads under way, the oldest first. */
  listDownloads(): DownloadReport[] {
    return this.#blobs.downloads.list()
  }

  /** Reports whether a blob is being downloaded. Eviction leaves such a blob alone. */
  isDownloading(digest: Digest): boolean {
    return this.#blobs.downloads.has(digest)
  }

  /** Drops the copies in memory, after content was removed from the store. */
  clearMemory(): void {
    this.#contents.clear()
  }

  /** Ends all downloads. */
  close(): Promise<void> {
    this.#prefetcher.close()
    return this.#blobs.close()
  }
}

/** Stands for a check that no client has asked for. */
const checker: Caller = { access: 'credentialed', client: 'check', noCache: true, head: true, part: false }

/** Explains the miss of a manifest whose removal is not remembered. One that is recorded was fetched before, and its bytes were lost. */
function explainFirst(context: RequestContext, digest: Digest): Miss {
  return context.record()?.manifests.has(digest) ? {} : { reason: 'first' }
}

/** Answers a client's HEAD with the upstream's. */
function toHeadAnswer(context: RequestContext, head: ManifestHead, digest: Digest | undefined): ManifestResponse {
  const { mediaType: type, size } = head
  return { digest, mediaType: type, size, body: undefined, provenance: toProvenance(context.host, 'passed') }
}
