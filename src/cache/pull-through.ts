import type { Clock } from '../lib/time.ts'
import type { Digest } from '../oci/digest.ts'
import type { OciErrorCode } from '../oci/errors.ts'
import { nextUnlessSame, pageOf, readTagsList } from '../oci/lists.ts'
import { type Reference, referenceText } from '../oci/reference.ts'
import {
  anonymousIdentity,
  type BlobAnswer,
  type Caller,
  type Identity,
  type ListAnswer,
  type ManifestAnswer,
  type Provenance,
  type Registry,
} from '../oci/registry.ts'
import type { Page, Repository } from '../oci/route.ts'
import { SmallContents, storedManifest } from '../store/contents.ts'
import type { RepositoryRecord } from '../store/records.ts'
import { type ManifestHead, type Upstream, UpstreamError } from '../upstream/upstream.ts'
import { BlobCache } from './blobs.ts'
import {
  findForCaller,
  findManifestGrant,
  Identities,
  isValidFor,
  createRequestContext,
  type RequestContext,
  revokeGrants,
} from './grants.ts'
import { HeadRequests, isCompleteHead } from './heads.ts'
import { type CachedManifest, ManifestCache } from './manifests.ts'
import { type CacheDependencies, toProvenance, toOciError, toUnknownRegistryError } from './parts.ts'
import { Prefetcher } from './prefetch.ts'
import { ReferrersCache } from './referrers.ts'
import { PullTracker } from './stats.ts'
import { mayServeStale, NegativeCache, TagLookup, type TagPolicy } from './tags.ts'

interface PullThroughOptions extends CacheDependencies {
  /** Which upstream a request means, and the repository's name there; undefined for a registry that may not be asked. */
  readonly route: (repository: Repository) => { readonly upstream: Upstream; readonly name: string } | undefined
  readonly policy: TagPolicy
  /** Layers fetched ahead at a time, of one image; 0 for none. */
  readonly prefetchLayers: number
  readonly clock: Clock
}

/** How long a "no" is remembered. */
const negativeTtlMs = 5000
/** Memory for manifests and configs. */
const smallContentBytes = 32 * 1024 * 1024

/**
 * The cache: what upstreams hold, from our own disk where we have it and their word for it.
 *
 * A digest names its content for ever: held and vouched for, it is served without a question. A tag is a question, asked
 * again when its answer has grown old (`TagLookup`). What is missing is fetched once for everybody (`ManifestCache`,
 * `BlobCache`), checked against its digest, and kept.
 */
export class PullThrough implements Registry {
  readonly #blobs: BlobCache
  readonly #manifests: ManifestCache
  readonly #heads: HeadRequests
  readonly #tags: TagLookup
  readonly #referrers: ReferrersCache
  readonly #contents: SmallContents
  readonly #refused: NegativeCache
  readonly #pulls: PullTracker
  readonly #prefetcher: Prefetcher
  readonly #identities = new Identities()
  readonly #options: PullThroughOptions

  constructor(options: PullThroughOptions) {
    this.#options = options
    this.#contents = new SmallContents(options.blobs, smallContentBytes)
    this.#manifests = new ManifestCache(options, this.#contents)
    this.#heads = new HeadRequests(this.#manifests, options.clock)
    this.#tags = new TagLookup({ ...options, manifests: this.#manifests, heads: this.#heads })
    this.#blobs = new BlobCache(options, this.#contents, this.#heads)
    this.#referrers = new ReferrersCache({
      ...options,
      getByTag: (context, tag) => this.#byTag(context, tag),
      getCachedByTag: (context, tag) => this.#heldByTag(context, tag),
    })
    this.#prefetcher = new Prefetcher({
      layers: options.policy.offline ? 0 : options.prefetchLayers,
      clock: options.clock,
      logger: options.logger,
      fetch: (context, layer, signal) => this.#blobs.prefetch(context, layer, signal),
    })
    this.#refused = new NegativeCache(options.clock, negativeTtlMs)
    this.#pulls = new PullTracker(options.refs, options.clock, options.runningTime, () => options.stats.recordPull())
  }

  async manifest(repository: Repository, reference: Reference, caller: Caller): Promise<ManifestAnswer> {
    return this.#at(
      repository,
      caller,
      'MANIFEST_UNKNOWN',
      `manifests/${referenceText(reference)}`,
      async (context) => {
        const answer =
          reference.kind === 'tag'
            ? await this.#byTag(context, reference.tag)
            : await this.#byDigest(context, reference.digest)
        const record = context.record()
        if (!caller.head && answer.digest) this.#prefetcher.recordManifest(context, answer.digest)
        if (record && answer.digest && !context.upstream.isProbe)
          this.#pulls.record(caller.client, record, reference, answer.digest, caller.head)
        return answer
      },
    )
  }

  async blob(repository: Repository, digest: Digest, caller: Caller): Promise<BlobAnswer> {
    return this.#at(repository, caller, 'BLOB_UNKNOWN', `blobs/${digest}`, async (context) => {
      const answer = await this.#blobs.get(context, digest)
      // Now that what the client itself has asked for is on its way.
      if (!caller.head && !caller.part) {
        const { body } = answer
        this.#prefetcher.recordBlob(context, digest, body.kind === 'arriving' ? body.download : undefined)
      }
      return answer
    })
  }

  async tags(repository: Repository, page: Page, caller: Caller): Promise<ListAnswer> {
    // Upstreams disagree on how to refuse a bad page; we refuse it for all of them.
    pageOf([], page)
    return this.#at(repository, caller, 'NAME_UNKNOWN', undefined, async (context) => {
      try {
        const list = await context.upstream.tags(context.name, page.query, { access: caller.access })
        const bytes = await readTagsList(list.bytes, context.name).finally(list.release)
        if (!bytes)
          throw new UpstreamError('invalid', 502, `${context.host} answered with something that is no list of tags.`)
        const next = nextUnlessSame(page.query, list.next)
        return { contentType: 'application/json', bytes, next, provenance: toProvenance(context.host, 'passed') }
      } catch (error) {
        const known = await this.#knownTags(context)
        if (!(error instanceof UpstreamError) || known.length === 0 || !this.#maySubstitute(error)) throw error
        // Nobody but the upstream knows what comes after a page that it has named by a token of its own.
        if (!isPlainPage(page)) throw error
        const { entries, next } = pageOf(known, page)
        return jsonList({ name: context.name, tags: entries }, next, toProvenance(context.host, 'stale'))
      }
    })
  }

  async referrers(
    repository: Repository,
    digest: Digest,
    _artifactType: string | undefined,
    caller: Caller,
    page: Page,
  ): Promise<ListAnswer> {
    return this.#at(repository, caller, 'NAME_UNKNOWN', undefined, (context) =>
      this.#referrers.list(context, digest, page.query),
    )
  }

  /** What is cached and is for this caller, with the registry in the name. */
  async catalog(registry: string | undefined, page: Page, caller: Caller): Promise<ListAnswer> {
    const records = [...this.#options.refs.all()].filter(({ host }) => registry === undefined || host === registry)
    const names = await visibleNames(records, async ({ host, name }) => {
      const route = this.#options.route({ registry: host, name, byNamespace: true })
      return route ? this.#identities.get(route.upstream, caller.access) : anonymousIdentity
    })
    const { entries, next } = pageOf(names, page)
    return jsonList({ repositories: entries }, next, {
      registry: undefined,
      outcome: 'passed',
      cacheStatus: 'mirror; hit',
    })
  }

  /** Whether a blob is being fetched: not to be evicted under its followers. */
  isArriving(digest: Digest): boolean {
    return this.#blobs.downloads.has(digest)
  }

  /** Ends the fetches under way. */
  close(): Promise<void> {
    this.#prefetcher.close()
    return this.#blobs.close()
  }

  /** Drops copies in memory after content was removed. */
  forget(): void {
    this.#contents.clear()
  }

  async #byTag(context: RequestContext, tag: string): Promise<ManifestAnswer> {
    const found = await this.#tags.resolve(context, tag)
    if (found.kind === 'told') return headAnswer(context, found.head, found.head.digest)
    if (found.kind === 'fetched') return this.#answer(context, found.manifest, found.joined ? 'collapsed' : 'miss')
    const answer = await this.#byDigest(context, found.digest)
    if (answer.provenance.outcome !== 'hit') return answer
    return { ...answer, provenance: toProvenance(context.host, found.outcome) }
  }

  async #byDigest(context: RequestContext, digest: Digest): Promise<ManifestAnswer> {
    const grant = await findForCaller(context, (record, identity) => findManifestGrant(record, digest, identity))
    const held = grant && (await this.#manifests.load(context, digest, grant.mediaType, grant.identity))
    if (held) return this.#answer(context, held, 'hit')
    await context.throwIfRefused()
    const isHere = !grant && (await this.#options.blobs.stat(digest)) !== undefined
    if (isHere || context.caller.head) return this.#askByHead(context, digest, isHere)
    return this.#fetch(context, digest)
  }

  /** `isHere`: for another repository. The bytes are served once this one's upstream says that it holds them too (decision D5). */
  async #askByHead(context: RequestContext, digest: Digest, isHere: boolean): Promise<ManifestAnswer> {
    const said = await this.#heads.headManifest(context, { kind: 'digest', digest }, false)
    if (said.kind === 'fetched') return this.#answer(context, said.manifest, said.joined ? 'collapsed' : 'miss')
    const head = { ...said.head, digest }
    const held = isHere && (await this.#manifests.load(context, digest, head.mediaType, head.identity))
    if (held) return this.#answer(context, held, 'revalidated')
    return context.caller.head && isCompleteHead(head)
      ? headAnswer(context, head, digest)
      : this.#fetch(context, digest)
  }

  #answer(context: RequestContext, manifest: CachedManifest, outcome: Provenance['outcome']): ManifestAnswer {
    const { digest, mediaType: type, size, content } = manifest
    const { blobs } = this.#options
    const stored = content || context.caller.head ? undefined : storedManifest(blobs, digest, size)
    return { digest, mediaType: type, size, body: content, stored, provenance: toProvenance(context.host, outcome) }
  }

  async #fetch(context: RequestContext, digest: Digest): Promise<ManifestAnswer> {
    const { result, joined } = await this.#manifests.fetch(context, { kind: 'digest', digest })
    return this.#answer(context, await result, joined ? 'collapsed' : 'miss')
  }

  async #heldByTag(context: RequestContext, tag: string): Promise<ManifestAnswer | undefined> {
    const digest = await this.#tags.held(context, tag)
    return digest && this.#byDigest(context, digest)
  }

  async #knownTags(context: RequestContext): Promise<string[]> {
    const tags = [...(context.record()?.tags ?? [])]
    const isPublic = tags.every(([, tag]) => isValidFor(tag, anonymousIdentity))
    const identity = isPublic ? anonymousIdentity : await context.identity()
    const usable = tags.filter(([, tag]) => isValidFor(tag, identity))
    return usable.map(([tag]) => tag).toSorted()
  }

  #maySubstitute(error: UpstreamError): boolean {
    return this.#options.policy.offline || mayServeStale(this.#options.policy.stale, error.failure)
  }

  /** Finds the place, remembers a "no" for a moment, and turns an upstream's failure into what the client is told. */
  async #at<T extends { readonly provenance: Provenance }>(
    repository: Repository,
    caller: Caller,
    absent: OciErrorCode,
    what: string | undefined,
    answer: (context: RequestContext) => Promise<T>,
  ): Promise<T> {
    const route = this.#options.route(repository)
    if (!route) {
      if (repository.registry !== undefined) this.#options.stats.recordRefusedRegistry(repository.registry)
      throw toUnknownRegistryError(repository)
    }
    const { host } = route.upstream
    try {
      // What a HEAD is refused, a GET may get.
      const methods = caller.head ? ['HEAD ', ''] : ['']
      const keyFor = (identity: Identity, method = methods[0]) => `${method}${identity} ${host}/${route.name} ${what}`
      let remembered: UpstreamError | undefined
      const refusal = (identity: Identity) => {
        if (what === undefined || caller.noCache) return undefined
        const known = methods.map((method) => this.#refused.get(keyFor(identity, method)))
        return (remembered = known.find((error) => error !== undefined))
      }
      const context = createRequestContext(
        this.#options.refs,
        route.upstream,
        route.name,
        caller,
        this.#identities,
        refusal,
      )
      try {
        const answered = await answer(context)
        if (route.upstream.isProbe) answered.provenance.isProbe = true
        return answered
      } catch (error) {
        const isNo = error instanceof UpstreamError && (error.failure === 'absent' || error.failure === 'denied')
        // Repeating what is remembered does not prolong it.
        if (what !== undefined && isNo && error !== remembered)
          this.#rememberRefusal(context, await context.identity(), keyFor, error)
        throw error
      }
    } catch (error) {
      throw error instanceof UpstreamError ? toOciError(error, host, absent) : error
    }
  }

  /** Of content only: who may not list tags may still pull. */
  #rememberRefusal(
    context: RequestContext,
    identity: Identity,
    keyFor: (identity: Identity) => string,
    error: UpstreamError,
  ): void {
    this.#refused.remember(keyFor(identity), error)
    if (error.failure !== 'denied' || this.#options.policy.stale === 'always') return
    const record = context.record()
    if (record && revokeGrants(record, identity)) this.#options.refs.touch(record)
  }
}

/** What the upstream says of a manifest that we do not hold. */
function headAnswer(context: RequestContext, head: ManifestHead, digest: Digest | undefined): ManifestAnswer {
  const { mediaType: type, size } = head
  return { digest, mediaType: type, size, body: undefined, provenance: toProvenance(context.host, 'passed') }
}

/** Whether a page is named as the specification says: by the last entry before it. */
function isPlainPage({ query }: Page): boolean {
  return [...new URLSearchParams(query).keys()].every((name) => name === 'n' || name === 'last')
}

function jsonList(value: unknown, next: string | undefined, provenance: Provenance): ListAnswer {
  return { contentType: 'application/json', bytes: new TextEncoder().encode(JSON.stringify(value)), next, provenance }
}

/**
 * The names of the repositories of which something is cached that this caller may be served, with the registry in each. Who the
 * caller is for a registry is asked once, and only where something is not for everybody.
 */
async function visibleNames(
  records: Iterable<RepositoryRecord>,
  identityFor: (record: RepositoryRecord) => Promise<Identity>,
): Promise<string[]> {
  const identities = new Map<string, Promise<Identity>>()
  const identityAt = (record: RepositoryRecord) => {
    const known = identities.get(record.host) ?? identityFor(record)
    identities.set(record.host, known)
    return known
  }
  const isVisible = async (record: RepositoryRecord) => {
    const manifests = [...record.manifests.values()]
    if (manifests.length === 0) return false
    if (manifests.some((manifest) => isValidFor(manifest, anonymousIdentity))) return true
    const identity = await identityAt(record)
    return manifests.some((manifest) => isValidFor(manifest, identity))
  }
  const shown = await Promise.all(
    [...records].map(async (record) => ((await isVisible(record)) ? `${record.host}/${record.name}` : undefined)),
  )
  return shown.filter((name) => name !== undefined).toSorted()
}
