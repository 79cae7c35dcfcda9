import type { Clock } from '../lib/time.ts'
import type { Digest } from '../oci/digest.ts'
import type { OciErrorCode } from '../oci/errors.ts'
import { nextUnlessSame, pageOf, readTagsList } from '../oci/lists.ts'
import { type Reference, referenceText } from '../oci/reference.ts'
import type { BlobAnswer, Caller, ListAnswer, ManifestAnswer, Provenance, Registry } from '../oci/registry.ts'
import type { Page, Repository } from '../oci/route.ts'
import { SmallContents, storedManifest } from '../store/contents.ts'
import { anonymousIdentity, type RepositoryRecord } from '../store/records.ts'
import { type ManifestHead, type Upstream, UpstreamError } from '../upstream/upstream.ts'
import { BlobCache } from './blobs.ts'
import { findGranted, findManifestWord, Identities, isGoodFor, openPlace, type Place, revokeWord } from './grants.ts'
import { Heads, isComplete } from './heads.ts'
import { type HeldManifest, ManifestCache } from './manifests.ts'
import { type CacheParts, provenanceOf, toOciError, unknownRegistry } from './parts.ts'
import { Prefetcher } from './prefetch.ts'
import { ReferrersCache } from './referrers.ts'
import { PullTracker } from './stats.ts'
import { mayServeStale, NegativeCache, TagLookup, type TagPolicy } from './tags.ts'

export interface PullThroughOptions extends CacheParts {
  /** Which upstream a request means, and the repository's name there; undefined for a registry that may not be asked. */
  readonly route: (repository: Repository) => { readonly upstream: Upstream; readonly name: string } | undefined
  readonly policy: TagPolicy
  /** Layers fetched ahead at a time, of one image; 0 for none. */
  readonly prefetchLayers: number
  readonly clock: Clock
}

/** How long a "no" is remembered. */
const negativeMilliseconds = 5000
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
  readonly #heads: Heads
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
    this.#heads = new Heads(this.#manifests, options.clock)
    this.#tags = new TagLookup({ ...options, manifests: this.#manifests, heads: this.#heads })
    this.#blobs = new BlobCache(options, this.#contents, this.#heads)
    this.#referrers = new ReferrersCache({
      ...options,
      byTag: (place, tag) => this.#byTag(place, tag),
      heldByTag: (place, tag) => this.#heldByTag(place, tag),
    })
    this.#prefetcher = new Prefetcher({
      layers: options.policy.offline ? 0 : options.prefetchLayers,
      clock: options.clock,
      logger: options.logger,
      fetch: (place, layer, signal) => this.#blobs.prefetch(place, layer, signal),
    })
    this.#refused = new NegativeCache(options.clock, negativeMilliseconds)
    this.#pulls = new PullTracker(options.refs, options.clock, options.runningTime, () => options.stats.pulled())
  }

  async manifest(repository: Repository, reference: Reference, caller: Caller): Promise<ManifestAnswer> {
    return this.#at(repository, caller, 'MANIFEST_UNKNOWN', `manifests/${referenceText(reference)}`, async (place) => {
      const answer =
        reference.kind === 'tag'
          ? await this.#byTag(place, reference.tag)
          : await this.#byDigest(place, reference.digest)
      const record = place.record()
      if (!caller.head && answer.digest) this.#prefetcher.sawManifest(place, answer.digest)
      if (record && answer.digest && !place.upstream.isProbe)
        this.#pulls.saw(caller.client, record, reference, answer.digest, caller.head)
      return answer
    })
  }

  async blob(repository: Repository, digest: Digest, caller: Caller): Promise<BlobAnswer> {
    return this.#at(repository, caller, 'BLOB_UNKNOWN', `blobs/${digest}`, async (place) => {
      const answer = await this.#blobs.get(place, digest)
      // Now that what the client itself has asked for is on its way.
      if (!caller.head && !caller.part) {
        const { body } = answer
        this.#prefetcher.sawBlob(place, digest, body.kind === 'arriving' ? body.download : undefined)
      }
      return answer
    })
  }

  async tags(repository: Repository, page: Page, caller: Caller): Promise<ListAnswer> {
    // Upstreams disagree on how to refuse a bad page; we refuse it for all of them.
    pageOf([], page)
    return this.#at(repository, caller, 'NAME_UNKNOWN', undefined, async (place) => {
      try {
        const list = await place.upstream.tags(place.name, page.query, { access: caller.access })
        const bytes = await readTagsList(list.bytes, place.name).finally(list.release)
        if (!bytes)
          throw new UpstreamError('invalid', 502, `${place.host} answered with something that is no list of tags.`)
        const next = nextUnlessSame(page.query, list.next)
        return { contentType: 'application/json', bytes, next, provenance: provenanceOf(place.host, 'passed') }
      } catch (error) {
        const known = await this.#knownTags(place)
        if (!(error instanceof UpstreamError) || known.length === 0 || !this.#maySubstitute(error)) throw error
        // Nobody but the upstream knows what comes after a page that it has named by a token of its own.
        if (!isPlainPage(page)) throw error
        const { entries, next } = pageOf(known, page)
        return jsonList({ name: place.name, tags: entries }, next, provenanceOf(place.host, 'stale'))
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
    return this.#at(repository, caller, 'NAME_UNKNOWN', undefined, (place) =>
      this.#referrers.list(place, digest, page.query),
    )
  }

  /** What is cached and is for this caller, with the registry in the name. */
  async catalog(registry: string | undefined, page: Page, caller: Caller): Promise<ListAnswer> {
    const records = [...this.#options.refs.all()].filter(({ host }) => registry === undefined || host === registry)
    const names = await visibleNames(records, async ({ host, name }) => {
      const route = this.#options.route({ registry: host, name, byNamespace: true })
      return route ? this.#identities.of(route.upstream, caller.access) : anonymousIdentity
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

  async #byTag(place: Place, tag: string): Promise<ManifestAnswer> {
    const found = await this.#tags.find(place, tag)
    if (found.kind === 'told') return toldAnswer(place, found.head, found.head.digest)
    if (found.kind === 'fetched') return this.#answer(place, found.manifest, found.joined ? 'collapsed' : 'miss')
    const answer = await this.#byDigest(place, found.digest)
    if (answer.provenance.outcome !== 'hit') return answer
    return { ...answer, provenance: provenanceOf(place.host, found.outcome) }
  }

  async #byDigest(place: Place, digest: Digest): Promise<ManifestAnswer> {
    const word = await findGranted(place, (record, identity) => findManifestWord(record, digest, identity))
    const held = word && (await this.#manifests.hold(place, digest, word.mediaType, word.identity))
    if (held) return this.#answer(place, held, 'hit')
    await place.throwIfRefused()
    const isHere = !word && (await this.#options.blobs.stat(digest)) !== undefined
    if (isHere || place.caller.head) return this.#askByHead(place, digest, isHere)
    return this.#fetch(place, digest)
  }

  /** `isHere`: for another repository. The bytes are served once this one's upstream says that it holds them too (decision D5). */
  async #askByHead(place: Place, digest: Digest, isHere: boolean): Promise<ManifestAnswer> {
    const said = await this.#heads.manifest(place, { kind: 'digest', digest }, false)
    if (said.kind === 'fetched') return this.#answer(place, said.manifest, said.joined ? 'collapsed' : 'miss')
    const head = { ...said.head, digest }
    const held = isHere && (await this.#manifests.hold(place, digest, head.mediaType, head.identity))
    if (held) return this.#answer(place, held, 'revalidated')
    return place.caller.head && isComplete(head) ? toldAnswer(place, head, digest) : this.#fetch(place, digest)
  }

  #answer(place: Place, manifest: HeldManifest, outcome: Provenance['outcome']): ManifestAnswer {
    const { digest, mediaType: type, size, content } = manifest
    const { blobs } = this.#options
    const stored = content || place.caller.head ? undefined : storedManifest(blobs, digest, size)
    return { digest, mediaType: type, size, body: content, stored, provenance: provenanceOf(place.host, outcome) }
  }

  async #fetch(place: Place, digest: Digest): Promise<ManifestAnswer> {
    const { result, joined } = await this.#manifests.fetch(place, { kind: 'digest', digest })
    return this.#answer(place, await result, joined ? 'collapsed' : 'miss')
  }

  async #heldByTag(place: Place, tag: string): Promise<ManifestAnswer | undefined> {
    const digest = await this.#tags.held(place, tag)
    return digest && this.#byDigest(place, digest)
  }

  async #knownTags(place: Place): Promise<string[]> {
    const tags = [...(place.record()?.tags ?? [])]
    const isPublic = tags.every(([, tag]) => isGoodFor(tag, anonymousIdentity))
    const identity = isPublic ? anonymousIdentity : await place.identity()
    const usable = tags.filter(([, tag]) => isGoodFor(tag, identity))
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
    answer: (place: Place) => Promise<T>,
  ): Promise<T> {
    const route = this.#options.route(repository)
    if (!route) {
      if (repository.registry !== undefined) this.#options.stats.refusedRegistry(repository.registry)
      throw unknownRegistry(repository)
    }
    const { host } = route.upstream
    try {
      // What a HEAD is refused, a GET may get.
      const methods = caller.head ? ['HEAD ', ''] : ['']
      const keyFor = (identity: string, method = methods[0]) => `${method}${identity} ${host}/${route.name} ${what}`
      let remembered: UpstreamError | undefined
      const refusal = (identity: string) => {
        if (what === undefined || caller.noCache) return undefined
        const known = methods.map((method) => this.#refused.get(keyFor(identity, method)))
        return (remembered = known.find((error) => error !== undefined))
      }
      const place = openPlace(this.#options.refs, route.upstream, route.name, caller, this.#identities, refusal)
      try {
        const answered = await answer(place)
        if (route.upstream.isProbe) answered.provenance.isProbe = true
        return answered
      } catch (error) {
        const isNo = error instanceof UpstreamError && (error.failure === 'absent' || error.failure === 'denied')
        // Repeating what is remembered does not prolong it.
        if (what !== undefined && isNo && error !== remembered)
          this.#heardNo(place, await place.identity(), keyFor, error)
        throw error
      }
    } catch (error) {
      throw error instanceof UpstreamError ? toOciError(error, host, absent) : error
    }
  }

  /** Of content only: who may not list tags may still pull. */
  #heardNo(place: Place, identity: string, keyFor: (identity: string) => string, error: UpstreamError): void {
    this.#refused.remember(keyFor(identity), error)
    if (error.failure !== 'denied' || this.#options.policy.stale === 'always') return
    const record = place.record()
    if (record && revokeWord(record, identity)) this.#options.refs.touch(record)
  }
}

/** What the upstream says of a manifest that we do not hold. */
function toldAnswer(place: Place, head: ManifestHead, digest: Digest | undefined): ManifestAnswer {
  const { mediaType: type, size } = head
  return { digest, mediaType: type, size, body: undefined, provenance: provenanceOf(place.host, 'passed') }
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
export async function visibleNames(
  records: Iterable<RepositoryRecord>,
  identityFor: (record: RepositoryRecord) => Promise<string>,
): Promise<string[]> {
  const identities = new Map<string, Promise<string>>()
  const identityAt = (record: RepositoryRecord) => {
    const known = identities.get(record.host) ?? identityFor(record)
    identities.set(record.host, known)
    return known
  }
  const isVisible = async (record: RepositoryRecord) => {
    const manifests = [...record.manifests.values()]
    if (manifests.length === 0) return false
    if (manifests.some((manifest) => isGoodFor(manifest, anonymousIdentity))) return true
    const identity = await identityAt(record)
    return manifests.some((manifest) => isGoodFor(manifest, identity))
  }
  const shown = await Promise.all(
    [...records].map(async (record) => ((await isVisible(record)) ? `${record.host}/${record.name}` : undefined)),
  )
  return shown.filter((name) => name !== undefined).toSorted()
}
