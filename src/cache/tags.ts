import { LRUCache } from 'lru-cache'
import { resultWithin, SingleFlight } from '../lib/async.ts'
import { describeFailure } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import type { Clock } from '../lib/time.ts'
import type { Digest } from '../oci/digest.ts'
import type { Identity } from '../oci/registry.ts'
import type { BlobStore } from '../store/blob-store.ts'
import type { RefStore, TagRecord } from '../store/records.ts'
import { type ManifestHead, UpstreamError } from '../upstream/upstream.ts'
import { widerIdentity, findForCaller, isValidFor, type RequestContext, toRequestKey, revokeGrants } from './grants.ts'
import { type HeadRequests, isCompleteHead, type ManifestHeadResult } from './heads.ts'
import type { CachedManifest, ManifestCache } from './manifests.ts'

/** What a tag means now. */
type TagResolution =
  | { readonly kind: 'known'; readonly digest: Digest; readonly outcome: 'hit' | 'revalidated' | 'stale' }
  | { readonly kind: 'fetched'; readonly manifest: CachedManifest; readonly joined: boolean }
  /** A HEAD for a tag that is not held: what the upstream says of it. */
  | { readonly kind: 'told'; readonly head: ManifestHead }

export interface TagPolicy {
  readonly freshFor: (host: string) => number
  readonly stale: StalePolicy
  readonly offline: boolean
  /** A check that takes longer answers from the cache and goes on behind it; ms. */
  readonly patience: number
}

type RevalidationResult =
  | { readonly kind: 'confirmed'; readonly digest: Digest }
  | { readonly kind: 'fetched'; readonly manifest: CachedManifest }
  /** `identity`: whose credential it failed for. */
  | { readonly kind: 'failed'; readonly error: unknown; readonly identity: Identity }

/** Mutable names: fresh for a while, then confirmed by one HEAD for all who ask at that moment. */
export class TagLookup {
  readonly #revalidations = new SingleFlight<RevalidationResult>()
  readonly #headRequests = new SingleFlight<ManifestHeadResult>()
  /** What upstreams said of tags that are not held. */
  readonly #knownHeads = new LRUCache<string, { readonly head: ManifestHead; readonly at: number }>({ max: 10_000 })
  /** When the upstream was last asked, monotonic; gone with the process, for only a running one knows how long ago it was. */
  readonly #checkedAt = new WeakMap<TagRecord, number>()
  readonly #manifests: ManifestCache
  readonly #heads: HeadRequests
  readonly #blobs: Pick<BlobStore, 'stat'>
  readonly #refs: RefStore
  readonly #policy: TagPolicy
  readonly #clock: Clock
  readonly #logger: Logger

  constructor(deps: {
    manifests: ManifestCache
    heads: HeadRequests
    blobs: Pick<BlobStore, 'stat'>
    refs: RefStore
    policy: TagPolicy
    clock: Clock
    logger: Logger
  }) {
    this.#manifests = deps.manifests
    this.#heads = deps.heads
    this.#blobs = deps.blobs
    this.#refs = deps.refs
    this.#policy = deps.policy
    this.#clock = deps.clock
    this.#logger = deps.logger
  }

  /** Throws the upstream's UpstreamError when it cannot be answered otherwise. */
  async resolve(context: RequestContext, tag: string): Promise<TagResolution> {
    const policy = this.#policy
    const known = await this.#findRecord(context, tag)
    const findCached = known && (await this.#isStored(context, known.digest)) ? known : undefined
    if (!findCached) return this.#resolveUncached(context, tag)

    const { noCache } = context.caller
    const age = {
      checkedAt: this.#checkedAt.get(findCached),
      now: this.#clock.monotonic(),
      freshFor: policy.freshFor(context.host),
    }
    if (isFresh({ ...age, noCache, offline: policy.offline }))
      return { kind: 'known', digest: findCached.digest, outcome: 'hit' }

    // Its patience includes the time that it takes to know who asks.
    const question = `${context.caller.access} ${context.host}/${context.name} ${tag}`
    const check = this.#revalidations.run(question, () => this.#revalidate(context, tag, findCached))
    const shared =
      policy.stale === 'never' ? await check.result : await resultWithin(check, policy.patience, this.#clock)
    // The one who began the check may have had another credential: this caller may get what that one is refused.
    const isOthers =
      shared !== 'slow' && shared.kind === 'failed' && check.joined && shared.identity !== (await context.identity())
    const own =
      isOthers &&
      this.#revalidations.run(await toRequestKey(context, tag), () => this.#revalidate(context, tag, findCached))
    const result = own ? await own.result : shared
    if (result === 'slow') return { kind: 'known', digest: findCached.digest, outcome: 'stale' }
    if (result.kind === 'confirmed') return { kind: 'known', digest: result.digest, outcome: 'revalidated' }
    if (result.kind === 'fetched') {
      const { manifest } = result
      // The one who began the check may have had another credential.
      if (check.joined && !isValidFor(manifest, await context.identity())) return this.#resolveUncached(context, tag)
      return { kind: 'fetched', manifest, joined: check.joined }
    }
    if (!(result.error instanceof UpstreamError) || !mayServeStale(policy.stale, result.error.failure))
      throw result.error
    return { kind: 'known', digest: findCached.digest, outcome: 'stale' }
  }

  /** What a tag meant when its upstream was last heard, if the manifest is held: without a question. */
  async held(context: RequestContext, tag: string): Promise<Digest | undefined> {
    const digest = (await this.#findRecord(context, tag))?.digest
    return digest !== undefined && (await this.#isStored(context, digest)) ? digest : undefined
  }

  /** Notes that the upstream was heard about a tag. */
  record(context: RequestContext, tag: string, digest: Digest, identity: string): void {
    const record = context.ensure()
    const known = record.tags.get(tag)
    const better = known?.digest === digest ? widerIdentity(known.identity, identity) : identity
    const entry = known ?? { digest, identity: better, checkedAt: 0, pulls: 0, lastPulled: 0 }
    entry.digest = digest
    entry.identity = better
    entry.checkedAt = this.#clock.wall()
    record.tags.set(tag, entry)
    this.#checkedAt.set(entry, this.#clock.monotonic())
    this.#refs.touch(record)
  }

  /** A tag that is not held, or not for this credential: a HEAD is passed on, a GET fetches what is not here. */
  async #resolveUncached(context: RequestContext, tag: string): Promise<TagResolution> {
    await context.throwIfRefused()
    const others = context.record()?.tags.get(tag)
    const isHere = others !== undefined && (await this.#isStored(context, others.digest))
    if (context.caller.head || isHere) {
      const said = await this.#requestHead(context, tag)
      if (said.kind === 'fetched') return said
      const { head } = said
      if (isHere && head.digest && (await this.#isStored(context, head.digest)))
        return { kind: 'known', digest: head.digest, outcome: 'revalidated' }
      if (context.caller.head && isCompleteHead(head)) return { kind: 'told', head }
      // Digest, type and size are what a client asks for by HEAD: only the body tells them here.
    }
    const { result, joined } = await this.#manifests.fetch(context, { kind: 'tag', tag })
    const manifest = await result
    this.record(context, tag, manifest.digest, manifest.identity)
    return { kind: 'fetched', manifest, joined }
  }

  /** What the upstream says of a tag: asked once for all who ask at that moment, and again when the answer has grown old. */
  async #requestHead(context: RequestContext, tag: string): Promise<ManifestHeadResult> {
    const key = await toRequestKey(context, tag)
    const told = this.#knownHeads.get(key)
    const age = { checkedAt: told?.at, now: this.#clock.monotonic(), freshFor: this.#policy.freshFor(context.host) }
    if (told && isFresh({ ...age, noCache: context.caller.noCache, offline: false }))
      return { kind: 'head', head: told.head }
    const question = this.#headRequests.run(key, () => this.#heads.headManifest(context, { kind: 'tag', tag }, false))
    const said = await question.result
    if (said.kind === 'fetched') {
      this.record(context, tag, said.manifest.digest, said.manifest.identity)
      return { ...said, joined: question.joined || said.joined }
    }
    const { head } = said
    this.#knownHeads.set(key, { head, at: this.#clock.monotonic() })
    // Clients that ask by HEAD then GET by digest; without this the tag would stay unknown for ever.
    if (head.digest) await this.#recordHead(context, tag, head, head.digest)
    return said
  }

  /** A HEAD of a tag is the upstream's word on the manifest as well: one that is here for another credential needs no second one. */
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

  /** One question to the upstream about a tag that is held; the body is fetched when the digest has changed, or no HEAD tells it. */
  async #revalidate(context: RequestContext, tag: string, held: TagRecord): Promise<RevalidationResult> {
    const identity = await context.identity()
    try {
      const said = await this.#heads.headManifest(context, { kind: 'tag', tag }, true)
      const named = said.kind === 'head' ? said.head.digest : undefined
      if (said.kind === 'head' && named && (named === held.digest || (await this.#isStored(context, named)))) {
        await this.#recordHead(context, tag, said.head, named)
        return { kind: 'confirmed', digest: named }
      }
      const manifest =
        said.kind === 'fetched'
          ? said.manifest
          : await (
              await this.#manifests.fetch(context, { kind: 'tag', tag })
            ).result
      this.record(context, tag, manifest.digest, manifest.identity)
      if (named && named !== manifest.digest) await this.#heads.verifyDigest(context, tag, named)
      return { kind: 'fetched', manifest }
    } catch (error) {
      await this.#recordFailure(context, tag, held, error, identity)
      return { kind: 'failed', error, identity }
    }
  }

  async #recordFailure(
    context: RequestContext,
    tag: string,
    held: TagRecord,
    error: unknown,
    identity: Identity,
  ): Promise<void> {
    this.#logger.warn(
      { upstream: context.host, repository: context.name, tag, reason: describeFailure(error) },
      'a tag could not be confirmed',
    )
    const record = context.record()
    if (!record || !(error instanceof UpstreamError)) return
    if (mayServeStale(this.#policy.stale, error.failure)) {
      // A dead upstream costs one time-out per window, not one per pull.
      this.#checkedAt.set(held, this.#clock.monotonic())
      return
    }
    if (error.failure !== 'absent' && error.failure !== 'denied') return
    record.tags.delete(tag)
    if (error.failure === 'denied') revokeGrants(record, identity)
    this.#refs.touch(record)
  }

  #findRecord(context: RequestContext, tag: string): Promise<TagRecord | undefined> {
    return findForCaller(context, ({ tags }, identity) => {
      const known = tags.get(tag)
      return known && isValidFor(known, identity) ? known : undefined
    })
  }

  async #isStored(context: RequestContext, digest: Digest): Promise<boolean> {
    return context.record()?.manifests.has(digest) === true && (await this.#blobs.stat(digest)) !== undefined
  }
}

/** What is known of a tag when it is asked for. Times are monotonic milliseconds. */
interface TagAge {
  /** When the upstream was last asked about it by this process; undefined after a start. */
  readonly checkedAt: number | undefined
  readonly now: number
  readonly freshFor: number
  readonly noCache: boolean
  readonly offline: boolean
}

/** Whether a tag may be answered without a word to its upstream. Digests are immutable and never come here. */
export function isFresh(age: TagAge): boolean {
  if (age.offline) return true
  if (age.noCache || age.checkedAt === undefined) return false
  return age.now - age.checkedAt < age.freshFor
}

type StalePolicy = 'on-error' | 'always' | 'never'

/** Whether a cached tag may stand in for what its upstream could not, or would not, say (decision D1). */
export function mayServeStale(
  policy: StalePolicy,
  failure: 'absent' | 'denied' | 'limited' | 'unavailable' | 'invalid',
): boolean {
  if (policy === 'never') return false
  return policy === 'always' || failure === 'limited' || failure === 'unavailable' || failure === 'invalid'
}

/** Upstreams' refusals, remembered for a moment so that a client that asks in a loop does not become their problem. */
export class NegativeCache {
  readonly #entries = new LRUCache<string, { readonly error: UpstreamError; readonly until: number }>({ max: 10_000 })
  readonly #clock: Clock
  readonly #ttlMs: number

  constructor(clock: Clock, milliseconds: number) {
    this.#clock = clock
    this.#ttlMs = milliseconds
  }

  get(key: string): UpstreamError | undefined {
    const entry = this.#entries.get(key)
    return entry && this.#clock.monotonic() < entry.until ? entry.error : undefined
  }

  /** Remembers the error if it is one that says no: absent or denied. */
  remember(key: string, error: UpstreamError): void {
    if (error.failure !== 'absent' && error.failure !== 'denied') return
    this.#entries.set(key, { error, until: this.#clock.monotonic() + this.#ttlMs })
  }
}
