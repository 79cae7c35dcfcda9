import { waitForFlight, SingleFlight } from '../lib/async.ts'
import { LargeListQueue } from '../lib/body-memory.ts'
import type { Clock } from '../lib/time.ts'
import type { Operation, ReferrersPage, Repository } from '../metadata/metadata.ts'
import { toReferrersKey } from '../metadata/metadata.ts'
import { toBytes, maxManifestBytes, mediaType } from '../oci/content.ts'
import { type Digest, computeDigest } from '../oci/reference.ts'
import { isSamePage } from '../oci/headers.ts'
import { dropRepeatedPage, readReferrersIndex, createReferrersIndex, toReferrersTag } from '../oci/lists.ts'
import type { Identity, ListResponse, ManifestResponse } from '../oci/registry.ts'
import type { BlobStore } from '../store/blob-store.ts'
import { type FetchedList, UpstreamError } from '../upstream/upstream.ts'
import { findForCaller, isValidFor, type RequestContext, toProvenance } from './grants.ts'
import { type ManifestCacheOptions, publishSmall } from './manifests.ts'
import { describeStale, maySubstitute, offlineReason, type StaleReason, toSlowReason, toStaleReason } from './stale.ts'
import type { TagPolicy } from './tags.ts'

interface ReferrersCacheOptions extends Omit<ManifestCacheOptions, 'stats' | 'pastChanges'> {
  readonly policy: Pick<TagPolicy, 'stale' | 'offline' | 'revalidateTimeoutMs'>
  readonly clock: Clock
  /** Gets the manifest of a tag, from the upstream if necessary. Throws its UpstreamError. */
  readonly getByTag: (context: RequestContext, tag: string) => Promise<ManifestResponse>
  /** Gets the cached manifest of a tag without a request to the upstream; undefined when it is not cached. */
  readonly getCachedByTag: (context: RequestContext, tag: string) => Promise<ManifestResponse | undefined>
}

/** `identity`: the credential of the request. */
type ReferrersResult = { readonly identity: Identity } & (
  | { readonly kind: 'answered'; readonly answer: ListResponse }
  | { readonly kind: 'failed'; readonly error: unknown }
)

/** Limits the pages of lists that are stored per repository; the least recently requested ones are removed first. */
const maxLists = 500
/** Limits the pages of one list that are joined. */
const maxPages = 100
/** Limits the lists that are read concurrently, bytes; larger lists are read one at a time. */
const smallBytes = 64 * 1024

/**
 * Lists the referrers of a manifest: signatures, SBOMs, attestations. A list comes from the upstream's referrers API, or from the
 * referrers tag where the upstream has no such API. Each request goes to the upstream. Its last response is stored, so that
 * clients can verify cached images while the upstream is down.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-referrers
 */
export class ReferrersCache {
  readonly #requests = new SingleFlight<ReferrersResult>()
  readonly #lists: StoredReferrers
  readonly #options: ReferrersCacheOptions

  constructor(options: ReferrersCacheOptions) {
    this.#options = options
    this.#lists = new StoredReferrers(options.blobs)
  }

  /** Returns the page that `query` names. Throws the upstream's UpstreamError when no stored list may replace its response. */
  async list(context: RequestContext, subject: Digest, query: string): Promise<ListResponse> {
    const { policy, clock } = this.#options
    const { access, noCache } = context.caller
    // The key has no identity: the time to determine the identity counts as part of the wait.
    const key = `${access} ${context.host}/${context.name} ${subject}?${query} ${noCache}`
    const flight = this.#requests.run(key, () => this.#request(context, subject, query))
    const prompt =
      policy.stale === 'never' ? await flight.result : await waitForFlight(flight, policy.revalidateTimeoutMs, clock)
    if (prompt === 'slow') {
      const substitute = await this.#findSubstitute(context, subject, query)
      if (substitute) return this.#asStale(context, substitute, toSlowReason(context, policy.revalidateTimeoutMs))
    }
    const shared = prompt === 'slow' ? await flight.result : prompt
    // The flight may belong to another credential, whose list is not for this caller.
    const isOthers = flight.joined && shared.identity !== (await context.identity())
    const result = isOthers ? await this.#request(context, subject, query) : shared
    if (result.kind === 'answered') return result.answer
    const { error } = result
    const substitute = maySubstitute(error, policy) && (await this.#findSubstitute(context, subject, query))
    if (substitute) return this.#asStale(context, substitute, toStaleReason(context, result, clock.wall()))
    throw error
  }

  /** Adds the reason why the upstream did not confirm the list. */
  #asStale({ host }: RequestContext, list: ListResponse, reason: StaleReason): ListResponse {
    const { policy, clock } = this.#options
    const why = policy.offline ? offlineReason : reason
    const warning = describeStale(why, 'the cached list of referrers', undefined, clock.wall())
    return { ...list, provenance: toProvenance(host, 'stale', {}, warning) }
  }

  async #request(context: RequestContext, subject: Digest, query: string): Promise<ReferrersResult> {
    const hadPages = hasPages(context, subject)
    // Do not store a list again that was removed during the request: a slow request may end long after its client was served.
    const mayStore = () => !hadPages || hasPages(context, subject)
    const identity = await context.identity()
    try {
      const listed = await this.#requestApi(context, subject, query, mayStore)
      if (listed) return { kind: 'answered', ...listed }
      return { kind: 'answered', answer: await this.#requestTag(context, subject, query, mayStore), identity }
    } catch (error) {
      const { logger, policy } = this.#options
      const fields = { upstream: context.host, repository: context.name, subject, reason: String(error) }
      if (!policy.offline) logger.warn(fields, 'a list of referrers could not be confirmed')
      // A refusal revokes the stored lists as well (decision D1).
      if (error instanceof UpstreamError && error.failure === 'denied' && !maySubstitute(error, policy))
        await this.#removePages(context, subject)
      return { kind: 'failed', error, identity }
    }
  }

  /** Requests the referrers API. Returns undefined when the upstream does not have it, or returns something else. */
  async #requestApi(
    context: RequestContext,
    subject: Digest,
    query: string,
    mayStore: () => boolean,
  ): Promise<{ readonly answer: ListResponse; readonly identity: Identity } | undefined> {
    const list = await context.upstream.referrers(context.name, subject, query, { access: context.caller.access })
    const index = await readIndex(list)
    if (!list || !index) return undefined
    const { identity } = list
    const filtersApplied = toHeaderValue(list.filtersApplied)
    const next = dropRepeatedPage(query, list.next)
    const page = { subject, query, next, filtersApplied, identity, isWithoutApi: false }
    const shouldStore = (index.manifests.length > 0 || isKnownRepository(context)) && mayStore()
    if (shouldStore) await this.#store(context, page, index.bytes)
    return { answer: toListAnswer(context, { bytes: index.bytes, next, filtersApplied }, 'passed'), identity }
  }

  async #requestTag(
    context: RequestContext,
    subject: Digest,
    query: string,
    mayStore: () => boolean,
  ): Promise<ListResponse> {
    try {
      const answer = await this.#options.getByTag(asGet(context), toReferrersTag(subject))
      // The tag is cached as any other.
      await this.#removePages(context, subject)
      const { outcome, warning } = answer.provenance
      return toListAnswer(context, filterList(await readManifests(answer), query), outcome, warning)
    } catch (error) {
      if (!(error instanceof UpstreamError) || error.failure !== 'absent') throw error
      const page = { subject, query: '', next: undefined, filtersApplied: undefined, isWithoutApi: true }
      const shouldStore = isKnownRepository(context) && mayStore()
      await this.#removePages(context, subject)
      if (shouldStore)
        await this.#store(context, { ...page, identity: await context.identity() }, createReferrersIndex([], undefined))
      return toListAnswer(context, filterList([], query), 'passed')
    }
  }

  /** Finds a replacement for the response: the stored page, the whole stored list filtered by the mirror, or the cached tag. */
  async #findSubstitute(context: RequestContext, subject: Digest, query: string): Promise<ListResponse | undefined> {
    const exact = await this.#findPage(context, subject, query)
    if (exact && !exact.isWithoutApi) {
      const bytes = await this.#lists.readPage(exact)
      if (bytes)
        return toListAnswer(context, { bytes, next: exact.next, filtersApplied: exact.filtersApplied }, 'stale')
    }
    if (!isFirstPage(query)) return undefined
    const pages = await this.#findAllPages(context, subject)
    const whole = pages && (await this.#lists.readList(pages, query))
    const tagged = whole?.isEmpty === false ? undefined : await this.#findTaggedList(context, subject, query)
    const list = tagged ?? whole
    return list && toListAnswer(context, list, 'stale')
  }

  async #findTaggedList(context: RequestContext, subject: Digest, query: string): Promise<FilteredList | undefined> {
    const tagged = await this.#options.getCachedByTag(asGet(context), toReferrersTag(subject))
    return tagged && this.#lists.readTagged(tagged, query)
  }

  /** Finds all pages of the unfiltered list; undefined unless all of them are stored. */
  async #findAllPages(context: RequestContext, subject: Digest): Promise<ReferrersPage[] | undefined> {
    const pages: ReferrersPage[] = []
    let bytes = 0
    let query: string | undefined = ''
    while (query !== undefined) {
      const page: ReferrersPage | undefined = await this.#findPage(context, subject, query)
      bytes += page?.size ?? 0
      if (!page || pages.length === maxPages || bytes > maxManifestBytes) return undefined
      pages.push(page)
      query = page.next
    }
    return pages
  }

  #findPage(context: RequestContext, subject: Digest, query: string): Promise<ReferrersPage | undefined> {
    return findForCaller(context, ({ referrers }, identity) => {
      const pages = [...referrers.values()].filter(
        (page) => page.subject === subject && isValidFor(page, identity) && isSamePage(page.query, query),
      )
      return pages.find((page) => page.identity === identity) ?? pages[0]
    })
  }

  async #store(
    context: RequestContext,
    page: Omit<ReferrersPage, 'digest' | 'size' | 'usedAt'>,
    bytes: Uint8Array<ArrayBuffer>,
  ): Promise<void> {
    const { blobs, runningTime } = this.#options
    if (!isFirstPage(page.query) && !isLinked(context.record(), page)) return
    const digest = computeDigest(bytes)
    const key = toReferrersKey(page)
    const known = context.record()?.referrers.get(key)
    const isKnown = known?.digest === digest && known.next === page.next && (await blobs.stat(digest)) !== undefined
    if (!isKnown) await publishSmall(this.#options, digest, bytes)
    const stored = isKnown ? known : { ...page, digest, size: bytes.length }
    const others = [...(context.record()?.referrers ?? [])].filter(([other]) => other !== key)
    const oldest = others.slice(0, Math.max(0, others.length + 1 - maxLists))
    context.commit([{ ...stored, op: 'referrers', usedAt: runningTime() }, ...oldest.map(([, page]) => toDrop(page))])
  }

  async #removePages(context: RequestContext, subject: Digest): Promise<void> {
    if (context.record() === undefined) return
    const identity = await context.identity()
    const pages = [...(context.record()?.referrers.values() ?? [])]
    context.commit(pages.filter((page) => page.subject === subject && isValidFor(page, identity)).map(toDrop))
  }
}

/** Reports whether a query names the first page of a list. Only the upstream can name the others. */
function isFirstPage(query: string): boolean {
  return [...new URLSearchParams(query).keys()].every((name) => name === 'n' || name === 'artifactType')
}

/** Reports whether a stored page links to this one. Other pages are not stored, because clients may send any query. */
function isLinked(
  repository: Repository | undefined,
  { subject, identity, query }: Pick<ReferrersPage, 'subject' | 'identity' | 'query'>,
): boolean {
  return [...(repository?.referrers.values() ?? [])].some(
    (page) =>
      page.subject === subject && page.identity === identity && page.next !== undefined && isSamePage(page.next, query),
  )
}

function toDrop(page: ReferrersPage): Operation {
  return { ...page, op: 'drop-referrers' }
}

/**
 * Reports whether anything is recorded of the repository. Empty lists are stored only then, because upstreams return an empty list for anything that
 * does not exist. Clients request the referrers of each referrer, usually empty lists, before any referrer is cached.
 */
function isKnownRepository(context: RequestContext): boolean {
  return context.record() !== undefined
}

/** Reports whether any list of the subject is stored, for any identity. */
function hasPages(context: RequestContext, subject: Digest): boolean {
  return [...(context.record()?.referrers.values() ?? [])].some((page) => page.subject === subject)
}

/** Returns the header's value if it is safe to forward. */
function toHeaderValue(value: string | undefined): string | undefined {
  return value !== undefined && /^[\x20-\x7e]{1,200}$/.test(value) ? value : undefined
}

/** Returns the same request as a GET, because the body is needed even for a HEAD. */
function asGet(context: RequestContext): RequestContext {
  return { ...context, caller: { ...context.caller, head: false } }
}

async function readIndex(list: FetchedList | undefined): ReturnType<typeof readReferrersIndex> {
  try {
    return list && (await readReferrersIndex(list.bytes))
  } finally {
    list?.release?.()
  }
}

function toListAnswer(
  { host }: RequestContext,
  list: Pick<ListResponse, 'bytes' | 'next' | 'filtersApplied'>,
  outcome: ListResponse['provenance']['outcome'],
  warning?: string,
): ListResponse {
  return { contentType: mediaType.ociIndex, ...list, provenance: toProvenance(host, outcome, {}, warning) }
}

/** Describes a list after the query's filter, in one page. */
interface FilteredList extends Pick<ListResponse, 'bytes' | 'next' | 'filtersApplied'> {
  /** Is true when the list is empty without the filter. */
  readonly isEmpty: boolean
}

/**
 * Reads stored lists of referrers. Concurrent requests of a list share one read, whatever their identity, because the caller has
 * already checked access. Large lists are read one at a time.
 */
class StoredReferrers {
  readonly #blobs: Pick<BlobStore, 'read'>
  readonly #pages = new SingleFlight<Uint8Array<ArrayBuffer> | undefined>()
  readonly #lists = new SingleFlight<FilteredList | undefined>()
  readonly #largeReads = new LargeListQueue()

  constructor(blobs: Pick<BlobStore, 'read'>) {
    this.#blobs = blobs
  }

  /** Reads the bytes of a stored page; undefined when they were removed. */
  readPage(page: ReferrersPage): Promise<Uint8Array<ArrayBuffer> | undefined> {
    return this.#pages.run(toPageKey(page), () => this.#queueLarge(page.size, () => this.#read(page))).result
  }

  /** Reads all pages of a list as one, with the query's filter applied; undefined when one of them was removed. */
  readList(pages: readonly ReferrersPage[], query: string): Promise<FilteredList | undefined> {
    const size = pages.reduce((sum, page) => sum + page.size, 0)
    const key = JSON.stringify([parseArtifactType(query), ...pages.map(toPageKey)])
    const read = async () => {
      const manifests: unknown[] = []
      for (const page of pages) {
        const body = await this.#read(page)
        const index = body && (await readReferrersIndex(body))
        if (!index) return undefined
        for (const entry of index.manifests) manifests.push(entry)
      }
      return filterList(manifests, query)
    }
    return this.#lists.run(key, () => this.#queueLarge(size, read)).result
  }

  /** Reads the list in the manifest of a referrers tag, with the query's filter applied. */
  readTagged(answer: ManifestResponse, query: string): Promise<FilteredList> {
    const { digest, size = 0 } = answer
    const read = () => this.#queueLarge(size, async () => filterList(await readManifests(answer), query))
    if (digest === undefined) return read()
    return this.#lists.run(JSON.stringify([parseArtifactType(query), digest]), read).result as Promise<FilteredList>
  }

  #queueLarge<T>(size: number, task: () => Promise<T>): Promise<T> {
    return size <= smallBytes ? task() : this.#largeReads.run(task)
  }

  async #read({ digest, size }: ReferrersPage): Promise<Uint8Array<ArrayBuffer> | undefined> {
    const bytes = await this.#blobs.read(digest, maxManifestBytes)
    return bytes?.length === size ? bytes : undefined
  }
}

/** Applies the query's filter. */
function filterList(manifests: readonly unknown[], query: string): FilteredList {
  const artifactType = parseArtifactType(query)
  return {
    bytes: createReferrersIndex(manifests, artifactType),
    next: undefined,
    filtersApplied: artifactType === undefined ? undefined : 'artifactType',
    isEmpty: manifests.length === 0,
  }
}

async function readManifests({ body, stored }: ManifestResponse): Promise<readonly unknown[]> {
  const index = await (body ? readReferrersIndex(toBytes(body)) : stored?.use(readReferrersIndex))
  return index?.manifests ?? []
}

function parseArtifactType(query: string): string | undefined {
  return new URLSearchParams(query).get('artifactType') ?? undefined
}

function toPageKey({ digest, size }: ReferrersPage): string {
  return `${digest} ${size}`
}
