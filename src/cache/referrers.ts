import { resultWithin, SingleFlight } from '../lib/async.ts'
import { ListTurns } from '../lib/body-memory.ts'
import type { Clock } from '../lib/time.ts'
import { bytesOf, largestManifest, mediaType } from '../oci/content.ts'
import { type Digest, digestOf } from '../oci/digest.ts'
import { isSamePage } from '../oci/headers.ts'
import { nextUnlessSame, readReferrersIndex, referrersIndex, referrersTag } from '../oci/lists.ts'
import type { Identity, ListAnswer, ManifestAnswer } from '../oci/registry.ts'
import type { BlobStore } from '../store/blob-store.ts'
import { referrersKey } from '../store/record-files.ts'
import type { ReferrersRecord, RepositoryRecord } from '../store/records.ts'
import { type FetchedList, UpstreamError } from '../upstream/upstream.ts'
import { findForCaller, isValidFor, type RequestContext } from './grants.ts'
import { type CacheDependencies, toProvenance, publishSmall } from './parts.ts'
import { maySubstitute, type TagPolicy } from './tags.ts'

interface ReferrersCacheOptions extends Pick<
  CacheDependencies,
  'blobs' | 'refs' | 'makeRoom' | 'onStored' | 'runningTime' | 'logger'
> {
  readonly policy: Pick<TagPolicy, 'stale' | 'offline' | 'patience'>
  readonly clock: Clock
  /** The manifest of a tag, from the upstream where it has to be asked. Throws its UpstreamError. */
  readonly getByTag: (context: RequestContext, tag: string) => Promise<ManifestAnswer>
  /** The same, without a question to the upstream; undefined when it is not held. */
  readonly getCachedByTag: (context: RequestContext, tag: string) => Promise<ManifestAnswer | undefined>
}

/** `identity`: of the one who asked. */
type ReferrersResult = { readonly identity: Identity } & (
  | { readonly kind: 'answered'; readonly answer: ListAnswer }
  | { readonly kind: 'failed'; readonly error: unknown }
)

/** Lists that are kept of one repository; the least recently asked for go first. */
const maxLists = 500
const maxPages = 100

/**
 * Lists of what refers to a manifest: signatures, SBOMs, attestations. They come from the upstream's referrers API, or from the
 * tag that clients keep such a list under where there is none. The upstream is asked each time. Its last answer is kept on the
 * disk, so that what is cached can still be verified while the upstream is out.
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

  /** One page, as `query` names it. Throws the upstream's UpstreamError when it cannot be answered otherwise. */
  async list(context: RequestContext, subject: Digest, query: string): Promise<ListAnswer> {
    const { policy, clock } = this.#options
    const { access, noCache } = context.caller
    // The patience includes the time that it takes to know who asks.
    const key = `${access} ${context.host}/${context.name} ${subject}?${query} ${noCache}`
    const question = this.#requests.run(key, () => this.#request(context, subject, query))
    const asked =
      policy.stale === 'never' ? await question.result : await resultWithin(question, policy.patience, clock)
    if (asked === 'slow') {
      const kept = await this.#findSubstitute(context, subject, query)
      if (kept) return kept
    }
    const shared = asked === 'slow' ? await question.result : asked
    // The one who asked may have had another credential.
    const isOthers = question.joined && shared.identity !== (await context.identity())
    const result = isOthers ? await this.#request(context, subject, query) : shared
    if (result.kind === 'answered') return result.answer
    const { error } = result
    const kept = maySubstitute(error, policy) && (await this.#findSubstitute(context, subject, query))
    if (kept) return kept
    throw error
  }

  async #request(context: RequestContext, subject: Digest, query: string): Promise<ReferrersResult> {
    const wasKept = hasPages(context, subject)
    // A list that was removed while the upstream was asked stays away: the client may have got the kept one long ago.
    const mayKeep = () => !wasKept || hasPages(context, subject)
    const identity = await context.identity()
    try {
      const listed = await this.#requestApi(context, subject, query, mayKeep)
      if (listed) return { kind: 'answered', ...listed }
      return { kind: 'answered', answer: await this.#requestTag(context, subject, query, mayKeep), identity }
    } catch (error) {
      const { logger, policy } = this.#options
      const fields = { upstream: context.host, repository: context.name, subject, reason: String(error) }
      if (!policy.offline) logger.warn(fields, 'a list of referrers could not be confirmed')
      // A refusal is the upstream's word on what is kept as well (decision D1).
      if (error instanceof UpstreamError && error.failure === 'denied' && !maySubstitute(error, policy))
        await this.#removePages(context, subject)
      return { kind: 'failed', error, identity }
    }
  }

  /** Undefined where the upstream has no such API, or answers it with something else. */
  async #requestApi(
    context: RequestContext,
    subject: Digest,
    query: string,
    mayKeep: () => boolean,
  ): Promise<{ readonly answer: ListAnswer; readonly identity: Identity } | undefined> {
    const list = await context.upstream.referrers(context.name, subject, query, { access: context.caller.access })
    const index = await readIndex(list)
    if (!list || !index) return undefined
    const { identity } = list
    const filtersApplied = toHeaderValue(list.filtersApplied)
    const next = nextUnlessSame(query, list.next)
    const page = { subject, query, next, filtersApplied, identity, isWithoutApi: false }
    const isWanted = (index.manifests.length > 0 || isKnownRepository(context)) && mayKeep()
    if (isWanted) await this.#store(context, page, index.bytes)
    return { answer: toListAnswer(context, { bytes: index.bytes, next, filtersApplied }, 'passed'), identity }
  }

  async #requestTag(
    context: RequestContext,
    subject: Digest,
    query: string,
    mayKeep: () => boolean,
  ): Promise<ListAnswer> {
    try {
      const answer = await this.#options.getByTag(asGet(context), referrersTag(subject))
      // The tag is cached as any other.
      await this.#removePages(context, subject)
      return toListAnswer(context, filterList(await readManifests(answer), query), answer.provenance.outcome)
    } catch (error) {
      if (!(error instanceof UpstreamError) || error.failure !== 'absent') throw error
      const page = { subject, query: '', next: undefined, filtersApplied: undefined, isWithoutApi: true }
      const isWanted = isKnownRepository(context) && mayKeep()
      await this.#removePages(context, subject)
      if (isWanted)
        await this.#store(context, { ...page, identity: await context.identity() }, referrersIndex([], undefined))
      return toListAnswer(context, filterList([], query), 'passed')
    }
  }

  /** What stands in for the upstream: its last answer, the whole list with the filter applied here, or the tag as it is cached. */
  async #findSubstitute(context: RequestContext, subject: Digest, query: string): Promise<ListAnswer | undefined> {
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
    const tagged = await this.#options.getCachedByTag(asGet(context), referrersTag(subject))
    return tagged && this.#lists.readTagged(tagged, query)
  }

  /** All pages of the unfiltered list; undefined unless every one of them is kept. */
  async #findAllPages(context: RequestContext, subject: Digest): Promise<ReferrersRecord[] | undefined> {
    const pages: ReferrersRecord[] = []
    let bytes = 0
    let query: string | undefined = ''
    while (query !== undefined) {
      const page: ReferrersRecord | undefined = await this.#findPage(context, subject, query)
      bytes += page?.size ?? 0
      if (!page || pages.length === maxPages || bytes > largestManifest) return undefined
      pages.push(page)
      query = page.next
    }
    return pages
  }

  #findPage(context: RequestContext, subject: Digest, query: string): Promise<ReferrersRecord | undefined> {
    return findForCaller(context, ({ referrers }, identity) => {
      const pages = [...referrers.values()].filter(
        (page) => page.subject === subject && isValidFor(page, identity) && isSamePage(page.query, query),
      )
      return pages.find((page) => page.identity === identity) ?? pages[0]
    })
  }

  async #store(
    context: RequestContext,
    page: Omit<ReferrersRecord, 'digest' | 'size' | 'usedAt'>,
    bytes: Uint8Array<ArrayBuffer>,
  ): Promise<void> {
    const { blobs, refs, runningTime } = this.#options
    if (!isFirstPage(page.query) && !isLinked(context.record(), page)) return
    const digest = digestOf(bytes)
    const key = referrersKey(page)
    const known = context.record()?.referrers.get(key)
    if (known?.digest === digest && known.next === page.next && (await blobs.stat(digest)) !== undefined) {
      known.usedAt = runningTime()
      const { referrers } = context.ensure()
      referrers.delete(key)
      referrers.set(key, known)
      return
    }
    await publishSmall(this.#options, digest, bytes)
    const record = context.ensure()
    record.referrers.delete(key)
    record.referrers.set(key, { ...page, digest, size: bytes.length, usedAt: runningTime() })
    for (const oldest of record.referrers.keys()) {
      if (record.referrers.size <= maxLists) break
      record.referrers.delete(oldest)
    }
    refs.touch(record)
  }

  async #removePages(context: RequestContext, subject: Digest): Promise<void> {
    if (context.record() === undefined) return
    const identity = await context.identity()
    const record = context.record()
    const keys = [...(record?.referrers ?? [])]
      .filter(([, page]) => page.subject === subject && isValidFor(page, identity))
      .map(([key]) => key)
    for (const key of keys) record!.referrers.delete(key)
    if (keys.length > 0) this.#options.refs.touch(record!)
  }
}

/** Whether a query names the beginning of a list, and not a page that only an upstream can have named. */
function isFirstPage(query: string): boolean {
  return [...new URLSearchParams(query).keys()].every((name) => name === 'n' || name === 'artifactType')
}

/** Whether a page that is kept leads to this one: clients may send any query. */
function isLinked(
  record: RepositoryRecord | undefined,
  { subject, identity, query }: Pick<ReferrersRecord, 'subject' | 'identity' | 'query'>,
): boolean {
  return [...(record?.referrers.values() ?? [])].some(
    (page) =>
      page.subject === subject && page.identity === identity && page.next !== undefined && isSamePage(page.next, query),
  )
}

/**
 * Whether something else is known of the repository: upstreams answer with an empty list for whatever does not exist. Clients ask
 * for the referrers of each referrer, whose lists are empty as a rule, before any of them is held.
 */
function isKnownRepository(context: RequestContext): boolean {
  return context.record() !== undefined
}

/** Whether any list about the subject is kept, whoever may see it. */
function hasPages(context: RequestContext, subject: Digest): boolean {
  return [...(context.record()?.referrers.values() ?? [])].some((page) => page.subject === subject)
}

/** A header's value as it may be sent on. */
function toHeaderValue(value: string | undefined): string | undefined {
  return value !== undefined && /^[\x20-\x7e]{1,200}$/.test(value) ? value : undefined
}

/** The place of a caller who wants the body, whether or not this one does. */
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
  list: Pick<ListAnswer, 'bytes' | 'next' | 'filtersApplied'>,
  outcome: ListAnswer['provenance']['outcome'],
): ListAnswer {
  return { contentType: mediaType.ociIndex, ...list, provenance: toProvenance(host, outcome) }
}

/** The part of a list that a query asks for, in one page. */
interface FilteredList extends Pick<ListAnswer, 'bytes' | 'next' | 'filtersApplied'> {
  /** Of the whole list. */
  readonly isEmpty: boolean
}

/** A list of more bytes waits for its turn. */
const smallBytes = 64 * 1024

/**
 * Reads lists of referrers that lie on the disk. Callers that want the same list at the same moment share one reading of it,
 * whoever they are: who may see it is known before. Large ones are read one at a time.
 */
class StoredReferrers {
  readonly #blobs: Pick<BlobStore, 'read'>
  readonly #pages = new SingleFlight<Uint8Array<ArrayBuffer> | undefined>()
  readonly #lists = new SingleFlight<FilteredList | undefined>()
  readonly #turns = new ListTurns()

  constructor(blobs: Pick<BlobStore, 'read'>) {
    this.#blobs = blobs
  }

  /** The bytes of one page as it was kept; undefined when they are gone. */
  readPage(page: ReferrersRecord): Promise<Uint8Array<ArrayBuffer> | undefined> {
    return this.#pages.run(toPageKey(page), () => this.#queueLarge(page.size, () => this.#read(page))).result
  }

  /** All pages of a list as one, with the query's filter applied; undefined when one of them is gone. */
  readList(pages: readonly ReferrersRecord[], query: string): Promise<FilteredList | undefined> {
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

  /** The list in a manifest that was found under a tag, with the query's filter applied. */
  readTagged(answer: ManifestAnswer, query: string): Promise<FilteredList> {
    const { digest, size = 0 } = answer
    const read = () => this.#queueLarge(size, async () => filterList(await readManifests(answer), query))
    if (digest === undefined) return read()
    return this.#lists.run(JSON.stringify([parseArtifactType(query), digest]), read).result as Promise<FilteredList>
  }

  #queueLarge<T>(size: number, task: () => Promise<T>): Promise<T> {
    return size <= smallBytes ? task() : this.#turns.run(task)
  }

  async #read({ digest, size }: ReferrersRecord): Promise<Uint8Array<ArrayBuffer> | undefined> {
    const bytes = await this.#blobs.read(digest, largestManifest)
    return bytes?.length === size ? bytes : undefined
  }
}

/** The list that a query asks for, in one page. */
function filterList(manifests: readonly unknown[], query: string): FilteredList {
  const artifactType = parseArtifactType(query)
  return {
    bytes: referrersIndex(manifests, artifactType),
    next: undefined,
    filtersApplied: artifactType === undefined ? undefined : 'artifactType',
    isEmpty: manifests.length === 0,
  }
}

async function readManifests({ body, stored }: ManifestAnswer): Promise<readonly unknown[]> {
  const index = await (body ? readReferrersIndex(bytesOf(body)) : stored?.use(readReferrersIndex))
  return index?.manifests ?? []
}

function parseArtifactType(query: string): string | undefined {
  return new URLSearchParams(query).get('artifactType') ?? undefined
}

function toPageKey({ digest, size }: ReferrersRecord): string {
  return `${digest} ${size}`
}
