import { setMaxListeners } from 'node:events'
import { LRUCache } from 'lru-cache'
import type { Slots } from '../lib/async.ts'
import type { BufferRelease } from '../lib/body-memory.ts'
import type { Clock } from '../lib/time.ts'
import type { Metadata } from '../metadata/metadata.ts'
import type { ManifestLink } from '../oci/content.ts'
import type { Digest } from '../oci/reference.ts'
import type { BlobResponse, BlobBody, Identity } from '../oci/registry.ts'
import type { SmallContents } from '../store/contents.ts'
import type { HashPool } from '../store/hashing.ts'
import { UpstreamError } from '../upstream/upstream.ts'
import type { Download, RangePolicy } from './download/download.ts'
import { type DownloadOrigin, Downloads, type RunningDownload } from './downloads.ts'
import {
  chooseWiderIdentity,
  explainMissingGrant,
  findForCaller,
  findGrant,
  findRemovalMiss,
  type RequestContext,
  type Grant,
  type Miss,
  toProvenance,
} from './grants.ts'
import type { HeadRequests } from './heads.ts'
import type { ManifestCacheOptions } from './manifests.ts'

/** Limits the blobs, mostly configs, that are served from memory, bytes. */
const smallBytes = 64 * 1024
/** Sets the minimum time during which an upstream that limits connections gets a single request per blob. */
const singleRequestMs = 10 * 60_000
/** Limits the time that a client waits for a download slot while the downloads before it make no progress, ms. */
const maxSlotWaitMs = 60_000

export interface BlobCacheOptions extends ManifestCacheOptions {
  readonly metadata: Metadata
  readonly clock: Clock
  /** Decides when a blob is fetched over several connections. */
  readonly ranges: RangePolicy
  readonly hashes: Pick<HashPool, 'follow'>
  readonly release: BufferRelease
  /** Slots for downloads: each has a file and connections open. */
  readonly downloadSlots: Slots
  /** Limits the bytes of a blob whose size is unknown. */
  readonly maxUnsizedBytes: number
}

/** Serves blobs from memory, from disk, or from a download. All clients of a digest share one download. */
export class BlobCache {
  readonly downloads: Downloads
  readonly #closing = new AbortController()
  readonly #options: BlobCacheOptions
  readonly #contents: SmallContents
  readonly #heads: HeadRequests
  /** Holds the misses of prefetched blobs that no client has requested yet. The first request of one counts as its miss. */
  readonly #prefetched = new LRUCache<Digest, Miss>({ max: 10_000 })
  /** Upstreams that refused several connections for a blob, and until when they get one; running time, ms. */
  readonly #singleRequestUntil = new Map<string, number>()

  constructor(options: BlobCacheOptions, contents: SmallContents, heads: HeadRequests) {
    this.#options = options
    this.downloads = new Downloads(options.clock)
    this.#contents = contents
    this.#heads = heads
    // Every download listens.
    setMaxListeners(0, this.#closing.signal)
  }

  /** Gets a blob by the steps that `PullThrough` describes: hit, revalidate, HEAD, join or miss. Throws the upstream's UpstreamError. */
  async get(context: RequestContext, digest: Digest): Promise<BlobResponse> {
    for (;;) {
      const ended = this.downloads.endedCount
      const grant = await findForCaller(context, (repository, identity) => findGrant(repository, digest, identity))
      if (grant) {
        const content = grant.size <= smallBytes && (await this.#contents.loadStored(digest, grant.size))
        if (content) return this.#answerFromStore(context, digest, content.size, { kind: 'whole', content }, 'hit')
        const blob = await this.#options.blobs.open(digest, grant.size)
        if (blob) return this.#answerFromStore(context, digest, blob.size, { kind: 'stored', blob }, 'hit')
        // A download that ended meanwhile may have stored the blob: look again.
        if (this.downloads.endedCount !== ended) continue
      }
      await context.throwIfRefused()
      const identity = await context.identity()
      if (!grant && (await this.#options.blobs.stat(digest)) !== undefined)
        return this.#verifyByHead(context, identity, digest)
      if (context.caller.head) return this.#proxyHead(context, digest, grant)
      const running = this.downloads.get(digest)
      if (running) return this.#join(context, identity, running, grant)
      if (this.downloads.endedCount !== ended) continue
      const miss = this.#explainMiss(context, digest)
      const download = this.#startDownload(context, { identity, miss }, digest, grant)
      return this.#answerFromDownload(context, download, 'miss', miss)
    }
  }

  /** Starts to download a layer that no client has requested; undefined when it is stored, arriving, or not granted. */
  async prefetch(
    context: RequestContext,
    { digest }: ManifestLink,
    signal: AbortSignal,
  ): Promise<Download | undefined> {
    if (this.downloads.has(digest) || (await this.#options.blobs.stat(digest)) !== undefined) return undefined
    const grant = await findForCaller(context, (repository, identity) => findGrant(repository, digest, identity))
    // Requested blobs come first: leave them a part of the upstream's slots.
    if (!grant || this.#isCongested(context.host)) return undefined
    const identity = await context.identity()
    const isStored = (await this.#options.blobs.stat(digest)) !== undefined
    if (isStored || this.downloads.has(digest) || this.#closing.signal.aborted || signal.aborted) return undefined
    const miss = this.#explainMiss(context, digest)
    this.#prefetched.set(digest, miss)
    return this.#startDownload(context, { identity, miss }, digest, grant, signal)
  }

  /** Ends all downloads. Their partial content is fetched again after the next start. */
  async close(): Promise<void> {
    this.#closing.abort(new UpstreamError('unavailable', 503, 'The mirror is stopping.'))
    await this.downloads.settle()
  }

  /** Obtains the grant of this repository by one HEAD, because the store has the bytes for another one (decision D5). */
  async #verifyByHead(context: RequestContext, identity: Identity, digest: Digest): Promise<BlobResponse> {
    const miss = explainMissingGrant(context.record(), digest)
    const head = await this.#heads.headBlob(context, digest)
    const stored = await this.#options.blobs.stat(digest)
    // If the upstream names another size, only a download shows which size is right.
    const agrees = stored !== undefined && (head.size ?? stored) === stored
    const blob = agrees ? await this.#options.blobs.open(digest, stored) : undefined
    if (blob) {
      this.#recordGrant(context, digest, blob.size, head.identity)
      return this.#answerFromStore(context, digest, blob.size, { kind: 'stored', blob }, 'revalidated', miss)
    }
    if (context.caller.head) return this.#answerProxied(context, digest, head.size)
    const running = this.downloads.get(digest)
    if (running) return this.#collapse(context, identity, running)
    const download = this.#startDownload(context, { identity, miss }, digest, undefined)
    return this.#answerFromDownload(context, download, 'miss', miss)
  }

  /** Joins a running download. If another repository or identity started it, this request needs a grant first. */
  async #join(
    context: RequestContext,
    identity: Identity,
    running: RunningDownload,
    grant: Grant | undefined,
  ): Promise<BlobResponse> {
    const { origin, download } = running
    if (!grant && !isOriginOf(origin, context, identity)) {
      const head = await this.#heads.headBlob(context, download.digest)
      // A HEAD may name a wrong size, and a grant with it would make the right bytes look damaged.
      if (head.size !== undefined && head.size === download.size)
        this.#recordGrant(context, download.digest, head.size, head.identity)
      else void this.#recordGrantWhenStored(context, download, head.identity)
      if (!download.canFollowFrom(0)) return this.get(context, download.digest)
    }
    return this.#collapse(context, identity, running)
  }

  /** Follows a running download. If it fails for another repository or identity, starts again for this one. */
  async #collapse(
    context: RequestContext,
    identity: Identity,
    { origin, download }: RunningDownload,
  ): Promise<BlobResponse> {
    try {
      return await this.#answerFromDownload(context, download, 'collapsed', origin.miss)
    } catch (error) {
      if (isOriginOf(origin, context, identity) || !(error instanceof UpstreamError)) throw error
      return this.get(context, download.digest)
    }
  }

  async #proxyHead(context: RequestContext, digest: Digest, grant: Grant | undefined): Promise<BlobResponse> {
    const head = await this.#heads.headBlob(context, digest)
    return this.#answerProxied(context, digest, grant?.size ?? head.size)
  }

  /** Explains why a blob must be fetched that is not stored. */
  #explainMiss({ caller }: RequestContext, digest: Digest): Miss {
    return findRemovalMiss(this.#options.pastChanges, digest) ?? { reason: caller.part ? 'range' : 'first' }
  }

  #startDownload(
    context: RequestContext,
    cause: Pick<DownloadOrigin, 'identity' | 'miss'>,
    digest: Digest,
    grant: Grant | undefined,
    signal?: AbortSignal,
  ): Download {
    const expectedSize = grant?.size
    const isPrefetch = signal !== undefined
    let releaseSlot: (() => void) | undefined
    const download = this.downloads.start(
      { host: context.host, name: context.name, ...cause },
      {
        digest,
        expectedSize,
        maxUnsizedBytes: this.#options.maxUnsizedBytes,
        open: async (from, attempt, to) => {
          releaseSlot ??= await this.#acquireSlot(context.host, attempt)
          const isFurtherRange = to !== undefined && from > 0
          const isExtra = isFurtherRange || (isPrefetch && !this.downloads.get(digest)?.download.isClaimed)
          const options = { access: await context.access(), from, to, expectedSize, isExtra, signal: attempt }
          try {
            return await context.upstream.blob(context.name, digest, options)
          } catch (error) {
            if (isFurtherRange) this.#recordRefusedRange(context.host, error)
            throw error
          }
        },
        // The client of a range request wants that range, not the whole blob as fast as possible.
        ranges: context.caller.part || this.#usesSingleRequest(context.host) ? undefined : this.#options.ranges,
        signal: signal ? AbortSignal.any([this.#closing.signal, signal]) : this.#closing.signal,
        store: this.#options.blobs,
        hashes: this.#options.hashes,
        release: this.#options.release,
        makeRoom: this.#options.makeRoom,
        onBytes: (bytes) => {
          this.#options.downloadSlots.recordProgress(bytes, context.host)
          if (!context.upstream.isProbe) this.#options.stats.recordFetched(context.host, bytes)
        },
        onMismatch: () => this.#options.stats.recordMismatch(),
        logger: this.#options.logger,
      },
    )
    void download.settled.then(() => releaseSlot?.())
    void this.#recordWhenStored(context, download)
    return download
  }

  /** Reports whether requested blobs need the upstream's remaining download slots. */
  #isCongested(host: string): boolean {
    const slots = this.#options.downloadSlots
    return slots.roomFor(host) <= Math.max(1, slots.limit / 4)
  }

  /** Waits for a download slot of this upstream; the result releases it. Throws an UpstreamError 503 after the maximum wait. */
  async #acquireSlot(owner: string, signal: AbortSignal): Promise<() => void> {
    const release = await this.#options.downloadSlots.take(maxSlotWaitMs, {
      owner,
      signal,
      extendOnProgress: true,
    })
    if (release) return release
    throw new UpstreamError('unavailable', 503, 'Too many blobs are being downloaded at the moment.', {
      retryAfterSeconds: 1,
    })
  }

  #usesSingleRequest(host: string): boolean {
    return (this.#singleRequestUntil.get(host) ?? 0) > this.#options.runningTime()
  }

  #recordRefusedRange(host: string, error: unknown): void {
    if (!(error instanceof UpstreamError) || error.failure !== 'limited') return
    this.#singleRequestUntil.set(
      host,
      this.#options.runningTime() + Math.max(singleRequestMs, (error.retryAfterSeconds ?? 0) * 1000),
    )
  }

  /** Records the grant of a finished download, and reports the stored blob. */
  async #recordWhenStored(context: RequestContext, download: Download): Promise<void> {
    const stored = await download.settled
    if (!stored) return
    const { identity } = await download.started
    this.#options.pastChanges.forgetRemoval(download.digest)
    await this.#recordGrantWhenStored(context, download, identity)
    this.#options.onStored()
  }

  /** Records a grant once the blob is stored, with its verified size. */
  async #recordGrantWhenStored(context: RequestContext, download: Download, identity: Identity): Promise<void> {
    const stored = await download.settled
    if (stored && download.size !== undefined) this.#recordGrant(context, download.digest, download.size, identity)
  }

  /** Returns the miss of a prefetched blob at its first request; undefined for any other request. */
  #claimPrefetched({ caller }: RequestContext, digest: Digest): Miss | undefined {
    if (caller.head) return undefined
    const miss = this.#prefetched.get(digest)
    if (miss) this.#prefetched.delete(digest)
    return miss
  }

  async #answerFromDownload(
    context: RequestContext,
    download: Download,
    joined: 'miss' | 'collapsed',
    miss: Miss,
  ): Promise<BlobResponse> {
    // Claim a prefetched download, so that it continues while this client waits for its start.
    download.claim()
    const prefetched = this.#claimPrefetched(context, download.digest)
    await download.started
    return {
      digest: download.digest,
      size: download.size,
      body: { kind: 'arriving', download },
      provenance: toProvenance(context.host, prefetched ? 'miss' : joined, prefetched ?? miss),
    }
  }

  #answerFromStore(
    context: RequestContext,
    digest: Digest,
    size: number,
    body: BlobBody,
    outcome: 'hit' | 'revalidated',
    miss?: Miss,
  ): BlobResponse {
    const { metadata, runningTime } = this.#options
    const isOwn = context.record()?.blobs.has(digest)
    if (isOwn && !context.caller.head) metadata.recordUse(context, { op: 'use-blob', digest, usedAt: runningTime() })
    const prefetched = this.#claimPrefetched(context, digest)
    const provenance = prefetched
      ? toProvenance(context.host, 'miss', prefetched)
      : toProvenance(context.host, outcome, miss)
    return { digest, size, body, provenance }
  }

  #answerProxied(context: RequestContext, digest: Digest, size: number | undefined): BlobResponse {
    return { digest, size, body: { kind: 'none' }, provenance: toProvenance(context.host, 'passed') }
  }

  /** Records a grant for a blob, unless a manifest of the repository grants it already. */
  #recordGrant(context: RequestContext, digest: Digest, size: number, identity: Identity): void {
    const known = context.record()
    if (findGrant(known, digest, identity)?.size === size) return
    const wider = chooseWiderIdentity(known?.blobs.get(digest)?.identity, identity)
    context.commit([{ op: 'blob', digest, size, identity: wider, usedAt: this.#options.runningTime() }])
  }
}

function isOriginOf(origin: DownloadOrigin, { host, name }: RequestContext, identity: Identity): boolean {
  return origin.host === host && origin.name === name && origin.identity === identity
}
