import { LRUCache } from 'lru-cache'
import { waitForFlight, SingleFlight } from '../lib/async.ts'
import { describeFailure } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import type { Clock } from '../lib/time.ts'
import { type PastChanges, toTagKey } from '../metadata/past-changes.ts'
import type { Tag } from '../metadata/metadata.ts'
import type { Digest } from '../oci/reference.ts'
import type { Identity } from '../oci/registry.ts'
import type { BlobStore } from '../store/blob-store.ts'
import { type ManifestHead, UpstreamError } from '../upstream/upstream.ts'
import {
  findForCaller,
  findRemovalMiss,
  isValidFor,
  type Miss,
  type RequestContext,
  revokeGrants,
  toRequestKey,
  chooseWiderIdentity,
} from './grants.ts'
import { type HeadRequests, isCompleteHead, type ManifestHeadResult } from './heads.ts'
import type { CachedManifest, ManifestCache } from './manifests.ts'
import {
  type CheckFailure,
  describeStale,
  isFresh,
  mayServeStale,
  offlineReason,
  pickReason,
  shortenText,
  type StalePolicy,
  type StaleReason,
  toSlowReason,
  toStaleReason,
} from './stale.ts'

/** Limits the name of a tag in a warning, so that it does not displace the other parts, characters. */
const maxServedLength = 80

/** Describes the current meaning of a tag. */
type TagResolution =
  /** Means that the manifest is cached. `miss`: why a new grant was needed for it. */
  | {
      readonly kind: 'cached'
      readonly digest: Digest
      readonly outcome: 'hit' | 'revalidated' | 'stale'
      readonly miss?: Miss
      /** Says why the upstream did not confirm the tag; see `Provenance`. */
      readonly warning?: string | undefined
    }
  /** Means that the manifest was just fetched. `joined`: by another request. */
  | { readonly kind: 'fetched'; readonly manifest: CachedManifest; readonly joined: boolean; readonly miss: Miss }
  /** Answers a client's HEAD of a tag that is not cached, with the upstream's HEAD. */
  | { readonly kind: 'headOnly'; readonly head: ManifestHead }

export interface TagPolicy {
  /** Sets the time for which a tag needs no revalidation, ms; `byHost` has the registries that differ from the default. */
  readonly freshness: { readonly default: number; readonly byHost: ReadonlyMap<string, number> }
  readonly stale: StalePolicy
  /** Is true while no upstream may be contacted; may change at any time. */
  readonly offline: boolean
  /** Limits the wait for a revalidation: then the cached digest is served, and the revalidation continues in the background, ms. */
  readonly revalidateTimeoutMs: number
}

/** Describes the answer of an upstream about a cached tag. */
export interface TagCheck {
  /** Holds the digest that the upstream named; the cached one when it named none. */
  readonly digest: Digest
  /** Is true when the upstream named another digest than the cached one. */
  readonly isChanged: boolean
  /** Wall clock ms. */
  readonly checkedAt: number
  /** Explains why the upstream named no digest. */
  readonly error?: string
}

/** Describes a digest that an upstream named for a cached tag, and that is not fetched. */
export interface NewerDigest {
  readonly digest: Digest
  /** Wall clock ms. */
  readonly at: number
}

type RevalidationResult =
  | { readonly kind: 'confirmed'; readonly digest: Digest }
  | { readonly kind: 'fetched'; readonly manifest: CachedManifest }
  /** `identity`: the credential that the upstream refused or failed. */
  | { readonly kind: 'failed'; readonly error: unknown; readonly identity: Identity }

interface TagLookupOptions {
  readonly manifests: ManifestCache
  readonly heads: HeadRequests
  readonly pastChanges: PastChanges
  readonly blobs: Pick<BlobStore, 'stat'>
  readonly policy: TagPolicy
  readonly clock: Clock
  readonly logger: Logger
}

/** Resolves tags. A cached tag is fresh for a while; then one HEAD revalidates it for all concurrent requests. */
export class TagLookup {
  readonly #revalidations = new SingleFlight<RevalidationResult>()
  readonly #headRequests = new SingleFlight<ManifestHeadResult>()
  /** Caches the HEADs of tags that are not cached; `at`: monotonic ms. */
  readonly #knownHeads = new LRUCache<string, { readonly head: ManifestHead; readonly at: number }>({ max: 10_000 })
  readonly #runningChecks = new SingleFlight<TagCheck>()
  /** Holds the digests that upstreams have and that are not fetched, by `toTagKey`. */
  readonly #newer = new LRUCache<string, NewerDigest>({ max: 1000 })
  /**
   * Holds the time when this process last revalidated a tag, monotonic ms, the oldest first. Not persisted, because only a running
   * process measures time.
   */
  readonly #checks = new Map<string, { readonly at: number; readonly failure: CheckFailure | undefined }>()
  readonly #manifests: ManifestCache
  readonly #heads: HeadRequests
  readonly #pastChanges: PastChanges
  readonly #blobs: Pick<BlobStore, 'stat'>
  readonly #policy: TagPolicy
  readonly #clock: Clock
  readonly #logger: Logger

  constructor(options: TagLookupOptions) {
    this.#manifests = options.manifests
    this.#heads = options.heads
    this.#pastChanges = options.pastChanges
    this.#blobs = options.blobs
    this.#policy = options.policy
    this.#clock = options.clock
    this.#logger = options.logger
  }

  /** Throws the upstream's UpstreamError when no cached digest may replace its answer. */
  async resolve(context: RequestContext, tag: string): Promise<TagResolution> {
    const policy = this.#policy
    const known = await this.#findTag(context, tag)
    const cached = known && (await this.#isStored(context, known.digest)) ? known : undefined
    if (!cached) return this.#resolveUncached(context, tag)

    const { noCache } = context.caller
    const check = this.#checks.get(toTagKey(context, tag))
    const age = {
      checkedAt: check?.at,
      now: this.#clock.monotonic(),
      freshFor: this.#getFreshnessMs(context),
    }
    if (isFresh({ ...age, noCache, offline: policy.offline })) {
      const reason = policy.offline ? offlineReason : pickReason(context, check?.failure)
      return this.#answerCached(context, tag, cached, 'hit', reason)
    }

    // The key has no identity: the time to determine the identity counts as part of the wait.
    const key = `${context.caller.access} ${toTagKey(context, tag)}`
    const flight = this.#revalidations.run(key, () => this.#revalidate(context, tag, cached))
    const shared =
      policy.stale === 'never'
        ? await flight.result
        : await waitForFlight(flight, policy.revalidateTimeoutMs, this.#clock)
    // The flight may belong to another credential: its refusal does not apply to this caller.
    const isOthers =
      shared !== 'slow' && shared.kind === 'failed' && flight.joined && shared.identity !== (await context.identity())
    const own =
      isOthers &&
      this.#revalidations.run(await toRequestKey(context, tag), () => this.#revalidate(context, tag, cached))
    const result = own ? await own.result : shared
    if (result === 'slow')
      return this.#answerCached(context, tag, cached, 'stale', toSlowReason(context, policy.revalidateTimeoutMs))
    if (result.kind === 'confirmed') return { kind: 'cached', digest: result.digest, outcome: 'revalidated' }
    if (result.kind === 'fetched') {
      const { manifest } = result
      // The flight may belong to another credential, whose grant is not valid for this caller.
      if (flight.joined && !isValidFor(manifest, await context.identity())) return this.#resolveUncached(context, tag)
      const miss: Miss = manifest.digest === cached.digest ? {} : { reason: 'moved' }
      return { kind: 'fetched', manifest, joined: flight.joined, miss }
    }
    if (!(result.error instanceof UpstreamError) || !mayServeStale(policy.stale, result.error.failure))
      throw result.error
    return this.#answerCached(context, tag, cached, 'stale', toStaleReason(context, result, this.#clock.wall()))
  }

  #answerCached(
    { host, name }: RequestContext,
    tag: string,
    { digest, updatedAt }: Tag,
    outcome: 'hit' | 'stale',
    reason: StaleReason | undefined,
  ): TagResolution {
    if (reason === undefined) return { kind: 'cached', digest, outcome }
    const repository = host === 'docker.io' ? name.replace(/^library\//, '') : name
    const served = `tag ${shortenText(`${repository}:${tag}`, maxServedLength)}`
    return { kind: 'cached', digest, outcome, warning: describeStale(reason, served, updatedAt, this.#clock.wall()) }
  }

  /** Finds the digest that the upstream last confirmed, if that manifest is cached. Sends no request. */
  async findCached(context: RequestContext, tag: string): Promise<Digest | undefined> {
    const digest = (await this.#findTag(context, tag))?.digest
    return digest !== undefined && (await this.#isStored(context, digest)) ? digest : undefined
  }

  /**
   * Asks the upstream about a cached tag, however fresh it is. A digest that is not cached is only remembered, and the next pull fetches
   * it. A failure changes nothing.
   */
  async check(context: RequestContext, tag: string, known: Tag): Promise<TagCheck> {
    return this.#runningChecks.run(toTagKey(context, tag), () => this.#checkNow(context, tag, known)).result
  }

  async #checkNow(context: RequestContext, tag: string, known: Tag): Promise<TagCheck> {
    const checkedAt = this.#clock.wall()
    try {
      const result = await this.#heads.headManifest(context, { kind: 'tag', tag }, true)
      const { digest, identity } = result.kind === 'fetched' ? result.manifest : result.head
      if (!digest) return { digest: known.digest, isChanged: false, checkedAt, error: 'It named no digest.' }
      if (result.kind === 'fetched') this.record(context, tag, digest, identity)
      else if (digest === known.digest || (await this.#isStored(context, digest)))
        await this.#recordHead(context, tag, result.head, digest)
      else this.#newer.set(toTagKey(context, tag), { digest, at: checkedAt })
      return { digest, isChanged: digest !== known.digest, checkedAt }
    } catch (error) {
      if (!(error instanceof UpstreamError)) throw error
      return { digest: known.digest, isChanged: false, checkedAt, error: error.message }
    }
  }

  /** Finds the digest that the upstream named for a cached tag, and that is not fetched. */
  findNewer(repository: { readonly host: string; readonly name: string }, tag: string): NewerDigest | undefined {
    return this.#newer.get(toTagKey(repository, tag))
  }

  /** Returns the time for which no request is sent about a cached tag, ms; and why its last check failed, while that counts. */
  describeCheck(context: Pick<RequestContext, 'host' | 'name'>, tag: string) {
    const check = this.#checks.get(toTagKey(context, tag))
    const left = check ? check.at + this.#getFreshnessMs(context) - this.#clock.monotonic() : 0
    const failure = left > 0 ? check?.failure : undefined
    return { freshFor: this.#policy.offline ? Infinity : Math.max(0, left), failure }
  }

  /** Records that the upstream has just resolved the tag to this digest. */
  record(context: RequestContext, tag: string, digest: Digest, identity: Identity): void {
    const known = context.record()?.tags.get(tag)
    const wider = known?.digest === digest ? chooseWiderIdentity(known.identity, identity) : identity
    const { pulls, lastPulled } = known ?? { pulls: 0, lastPulled: 0 }
    const updatedAt = this.#clock.wall()
    const key = toTagKey(context, tag)
    if (known?.digest !== digest) this.#pastChanges.recordTag(key, known?.digest)
    this.#pastChanges.forgetRemoval(key)
    this.#newer.delete(key)
    context.commit([{ op: 'tag', tag, digest, identity: wider, updatedAt, pulls, lastPulled }])
    this.#recordCheck(context, tag)
  }

  /** Records that the tag was just revalidated. Forgets those times that make no tag fresh any more. */
  #recordCheck(context: RequestContext, tag: string, failure?: CheckFailure): void {
    const now = this.#clock.monotonic()
    const key = toTagKey(context, tag)
    this.#checks.delete(key)
    this.#checks.set(key, { at: now, failure })
    const { freshness } = this.#policy
    const longest = Math.max(freshness.default, ...freshness.byHost.values())
    for (const [oldest, { at }] of this.#checks) {
      if (now - at < longest) break
      this.#checks.delete(oldest)
    }
  }

  /** Resolves a tag that is not cached, or not for this credential. A HEAD is proxied, a GET fetches what the store lacks. */
  async #resolveUncached(context: RequestContext, tag: string): Promise<TagResolution> {
    await context.throwIfRefused()
    const others = context.record()?.tags.get(tag)
    const isStored = others !== undefined && (await this.#isStored(context, others.digest))
    const miss = this.#explainMiss(context, tag, others, isStored)
    if (context.caller.head || isStored) {
      const result = await this.#requestHead(context, tag)
      if (result.kind === 'fetched') return { ...result, miss }
      const { head } = result
      if (isStored && head.digest && (await this.#isStored(context, head.digest)))
        return { kind: 'cached', digest: head.digest, outcome: 'revalidated', miss }
      if (context.caller.head && isCompleteHead(head)) return { kind: 'headOnly', head }
      // A HEAD without digest, type or size is useless to the client; the body has all three.
    }
    const { result, joined } = await this.#manifests.fetch(context, { kind: 'tag', tag })
    const manifest = await result
    this.record(context, tag, manifest.digest, manifest.identity)
    return { kind: 'fetched', manifest, joined, miss }
  }

  /** Explains why a tag or its manifest is not cached for this caller. */
  #explainMiss(context: RequestContext, tag: string, known: Tag | undefined, isStored: boolean): Miss {
    if (isStored) return { reason: 'identity' }
    const removal = findRemovalMiss(this.#pastChanges, ...(known ? [known.digest] : []), toTagKey(context, tag))
    if (removal) return removal
    // The bytes of a recorded manifest were lost.
    return known && context.record()?.manifests.has(known.digest) ? {} : { reason: 'first' }
  }

  /** Sends one HEAD for all concurrent requests of one identity, and reuses its result while it is fresh. */
  async #requestHead(context: RequestContext, tag: string): Promise<ManifestHeadResult> {
    const key = await toRequestKey(context, tag)
    const known = this.#knownHeads.get(key)
    const age = {
      checkedAt: known?.at,
      now: this.#clock.monotonic(),
      freshFor: this.#getFreshnessMs(context),
    }
    if (known && isFresh({ ...age, noCache: context.caller.noCache, offline: false }))
      return { kind: 'head', head: known.head }
    const flight = this.#headRequests.run(key, () => this.#heads.headManifest(context, { kind: 'tag', tag }, false))
    const result = await flight.result
    if (result.kind === 'fetched') {
      this.record(context, tag, result.manifest.digest, result.manifest.identity)
      return { ...result, joined: flight.joined || result.joined }
    }
    const { head } = result
    this.#knownHeads.set(key, { head, at: this.#clock.monotonic() })
    // Record the tag now: clients that HEAD the tag and then GET the digest never GET the tag.
    if (head.digest) await this.#recordHead(context, tag, head, head.digest)
    return result
  }

  /** Records the tag, and a grant for a manifest that is cached for another credential: its HEAD confirms both. */
  async #recordHead(
    context: RequestContext,
    tag: string,
    { mediaType, identity }: ManifestHead,
    digest: Digest,
  ): Promise<void> {
    this.record(context, tag, digest, identity)
    const known = context.record()?.manifests.get(digest)
    if (known && !isValidFor(known, identity))
      await this.#manifests.load(context, digest, mediaType || known.mediaType, identity)
  }

  /** Sends one HEAD for a cached tag. Fetches the manifest when the digest has changed, or when no HEAD names it. */
  async #revalidate(context: RequestContext, tag: string, cached: Tag): Promise<RevalidationResult> {
    const identity = await context.identity()
    try {
      const result = await this.#heads.headManifest(context, { kind: 'tag', tag }, true)
      const named = result.kind === 'head' ? result.head.digest : undefined
      if (result.kind === 'head' && named && (named === cached.digest || (await this.#isStored(context, named)))) {
        await this.#recordHead(context, tag, result.head, named)
        return { kind: 'confirmed', digest: named }
      }
      if (named) this.#newer.set(toTagKey(context, tag), { digest: named, at: this.#clock.wall() })
      const manifest =
        result.kind === 'fetched'
          ? result.manifest
          : await (
              await this.#manifests.fetch(context, { kind: 'tag', tag })
            ).result
      this.record(context, tag, manifest.digest, manifest.identity)
      if (named && named !== manifest.digest) await this.#heads.verifyDigest(context, tag, named)
      return { kind: 'fetched', manifest }
    } catch (error) {
      await this.#recordFailure(context, tag, error, identity)
      return { kind: 'failed', error, identity }
    }
  }

  /** Keeps a tag that may be served stale; removes one that the upstream has refused. */
  async #recordFailure(context: RequestContext, tag: string, error: unknown, identity: Identity): Promise<void> {
    this.#logger.warn(
      { upstream: context.host, repository: context.name, tag, reason: describeFailure(error) },
      'a tag could not be confirmed',
    )
    const known = context.record()
    if (!known || !(error instanceof UpstreamError)) return
    if (mayServeStale(this.#policy.stale, error.failure)) {
      // A dead upstream costs one timeout per freshness window, not one per pull.
      const reason = toStaleReason(context, { error, identity }, this.#clock.wall())
      this.#recordCheck(context, tag, { reason, identity })
      return
    }
    if (error.failure !== 'absent' && error.failure !== 'denied') return
    const revoked = error.failure === 'denied' ? revokeGrants(known, identity) : []
    context.commit([{ op: 'untag', tag }, ...revoked])
  }

  #getFreshnessMs({ host }: Pick<RequestContext, 'host'>): number {
    const { freshness } = this.#policy
    return freshness.byHost.get(host) ?? freshness.default
  }

  #findTag(context: RequestContext, tag: string): Promise<Tag | undefined> {
    return findForCaller(context, ({ tags }, identity) => {
      const known = tags.get(tag)
      return known && isValidFor(known, identity) ? known : undefined
    })
  }

  async #isStored(context: RequestContext, digest: Digest): Promise<boolean> {
    return context.record()?.manifests.has(digest) === true && (await this.#blobs.stat(digest)) !== undefined
  }
}
