import { setMaxListeners } from 'node:events'
import { LRUCache } from 'lru-cache'
import type { ManifestLink } from '../oci/content.ts'
import type { Digest } from '../oci/digest.ts'
import type { BlobAnswer, BlobBody, Identity } from '../oci/registry.ts'
import type { SmallContents } from '../store/contents.ts'
import { UpstreamError } from '../upstream/upstream.ts'
import { type Download, type DownloadOptions, startDownload } from './download.ts'
import { widerIdentity, findForCaller, findGrant, type RequestContext, type Grant } from './grants.ts'
import type { HeadRequests } from './heads.ts'
import { type CacheDependencies, toProvenance } from './parts.ts'

/** Blobs up to this size, configs above all, are served from memory. */
const smallBytes = 64 * 1024
/** How long, at least, an upstream that limits connections is asked over a single one. */
const singleRequestMs = 10 * 60_000
/** How long a client waits until its blob may be fetched, while nothing comes of those before it, ms. */
const maxSlotWaitMs = 60_000

/** Blobs: held, arriving, or to be fetched; one fetch a digest, whoever and how many ask. */
export class BlobCache {
  readonly downloads = new Downloads()
  readonly #closing = new AbortController()
  readonly #parts: CacheDependencies
  readonly #contents: SmallContents
  readonly #heads: HeadRequests
  /** Fetched ahead, and not asked for so far: the first to ask is the one they were fetched for. */
  readonly #prefetched = new LRUCache<Digest, true>({ max: 10_000 })
  /** Upstreams that had enough of several connections for a blob, and until when: running time, ms. */
  readonly #singleRequestUntil = new Map<string, number>()

  constructor(parts: CacheDependencies, contents: SmallContents, heads: HeadRequests) {
    this.#parts = parts
    this.#contents = contents
    this.#heads = heads
    // Every fetch under way listens.
    setMaxListeners(0, this.#closing.signal)
  }

  /** Throws the upstream's UpstreamError. */
  async get(context: RequestContext, digest: Digest): Promise<BlobAnswer> {
    for (;;) {
      const ended = this.downloads.endedCount
      const grant = await findForCaller(context, (record, identity) => findGrant(record, digest, identity))
      if (grant) {
        const content = grant.size <= smallBytes && (await this.#contents.loadStored(digest, grant.size))
        if (content) return this.#answerFromStore(context, digest, content.size, { kind: 'whole', content }, 'hit')
        const blob = await this.#parts.blobs.open(digest, grant.size)
        if (blob) return this.#answerFromStore(context, digest, blob.size, { kind: 'stored', blob }, 'hit')
        // A fetch that ended while the disk was asked has put it there.
        if (this.downloads.endedCount !== ended) continue
      }
      await context.throwIfRefused()
      const identity = await context.identity()
      if (!grant && (await this.#parts.blobs.stat(digest)) !== undefined)
        return this.#verifyByHead(context, identity, digest)
      if (context.caller.head) return this.#proxyHead(context, digest, grant)
      const running = this.downloads.get(digest)
      if (running) return this.#join(context, identity, running, grant)
      if (this.downloads.endedCount !== ended) continue
      const download = this.#startDownload(context, identity, digest, grant)
      return this.#answerFromDownload(context, download, 'miss')
    }
  }

  /** Begins to fetch what nobody has asked for yet; undefined when it is here, or on its way, or not known to be there. */
  async prefetch(
    context: RequestContext,
    { digest }: ManifestLink,
    signal: AbortSignal,
  ): Promise<Download | undefined> {
    if (this.downloads.has(digest) || (await this.#parts.blobs.stat(digest)) !== undefined) return undefined
    const grant = await findForCaller(context, (record, identity) => findGrant(record, digest, identity))
    const { fills } = this.#parts
    // What is asked for comes first: half of the upstream's share stays for it.
    if (!grant || fills.roomFor(context.host) <= Math.max(1, fills.limit / 4)) return undefined
    const identity = await context.identity()
    const isHere = (await this.#parts.blobs.stat(digest)) !== undefined
    if (isHere || this.downloads.has(digest) || this.#closing.signal.aborted || signal.aborted) return undefined
    this.#prefetched.set(digest, true)
    return this.#startDownload(context, identity, digest, grant, signal)
  }

  /** Ends the fetches under way: what they got so far is fetched again. */
  async close(): Promise<void> {
    this.#closing.abort(new UpstreamError('unavailable', 503, 'The mirror is stopping.'))
    await this.downloads.settle()
  }

  /** The bytes are here, but this repository's upstream has not said that it holds them: ask it (decision D5). */
  async #verifyByHead(context: RequestContext, identity: string, digest: Digest): Promise<BlobAnswer> {
    const head = await this.#heads.headBlob(context, digest)
    const stored = await this.#parts.blobs.stat(digest)
    // Where the upstream names another size, only its bytes tell which one is right.
    const agrees = stored !== undefined && (head.size ?? stored) === stored
    const blob = agrees ? await this.#parts.blobs.open(digest, stored) : undefined
    if (blob) {
      this.#recordGrant(context, digest, blob.size, head.identity)
      return this.#answerFromStore(context, digest, blob.size, { kind: 'stored', blob }, 'revalidated')
    }
    if (context.caller.head) return this.#answerProxied(context, digest, head.size)
    const running = this.downloads.get(digest)
    if (running) return this.#collapse(context, identity, running)
    return this.#answerFromDownload(context, this.#startDownload(context, identity, digest, undefined), 'miss')
  }

  /** A second repository that joins a running fetch needs its own word. */
  async #join(
    context: RequestContext,
    identity: Identity,
    running: RunningDownload,
    grant: Grant | undefined,
  ): Promise<BlobAnswer> {
    const { origin, download } = running
    if (!grant && !isOriginOf(origin, context, identity)) {
      const head = await this.#heads.headBlob(context, download.digest)
      // A HEAD may name a wrong size, by which the right bytes would be taken for damaged ones.
      if (head.size !== undefined && head.size === download.size)
        this.#recordGrant(context, download.digest, head.size, head.identity)
      else void this.#recordGrantWhenStored(context, download, head.identity)
      if (!download.canFollowFrom(0)) return this.get(context, download.digest)
    }
    return this.#collapse(context, identity, running)
  }

  /** Follows a running fetch. What another repository's upstream refuses is no answer here: then this one's is asked. */
  async #collapse(
    context: RequestContext,
    identity: Identity,
    { origin, download }: RunningDownload,
  ): Promise<BlobAnswer> {
    try {
      return await this.#answerFromDownload(context, download, 'collapsed')
    } catch (error) {
      if (isOriginOf(origin, context, identity) || !(error instanceof UpstreamError)) throw error
      return this.get(context, download.digest)
    }
  }

  async #proxyHead(context: RequestContext, digest: Digest, grant: Grant | undefined): Promise<BlobAnswer> {
    const head = await this.#heads.headBlob(context, digest)
    return this.#answerProxied(context, digest, grant?.size ?? head.size)
  }

  #startDownload(
    context: RequestContext,
    identity: Identity,
    digest: Digest,
    grant: Grant | undefined,
    signal?: AbortSignal,
  ): Download {
    const expectedSize = grant?.size
    const isAhead = signal !== undefined
    let leave: (() => void) | undefined
    const download = this.downloads.start(
      { host: context.host, name: context.name, identity },
      {
        digest,
        expectedSize,
        maxUnsizedBytes: this.#parts.mostUnsized,
        open: async (from, attempt, to) => {
          leave ??= await this.#acquireSlot(context.host, attempt)
          const isFurther = to !== undefined && from > 0
          const isExtra = isFurther || (isAhead && !this.downloads.get(digest)?.download.isClaimed)
          const options = { access: await context.access(), from, to, expectedSize, isExtra, signal: attempt }
          try {
            return await context.upstream.blob(context.name, digest, options)
          } catch (error) {
            if (isFurther) this.#recordRefusedRange(context.host, error)
            throw error
          }
        },
        // Who asks for a part wants that part, not all of it as fast as can be.
        ranges: context.caller.part || this.#usesSingleRequest(context.host) ? undefined : this.#parts.ranges,
        signal: signal ? AbortSignal.any([this.#closing.signal, signal]) : this.#closing.signal,
        store: this.#parts.blobs,
        hashes: this.#parts.hashes,
        release: this.#parts.release,
        makeRoom: this.#parts.makeRoom,
        onBytes: (bytes) => {
          this.#parts.fills.moved(bytes, context.host)
          if (!context.upstream.isProbe) this.#parts.stats.recordFetched(context.host, bytes)
        },
        onMismatch: () => this.#parts.stats.recordMismatch(),
        logger: this.#parts.logger,
      },
    )
    void download.settled.then(() => leave?.())
    void this.#recordWhenStored(context, download)
    return download
  }

  /** Waits until one more blob of this upstream may be fetched. */
  async #acquireSlot(owner: string, signal: AbortSignal): Promise<() => void> {
    const leave = await this.#parts.fills.take(maxSlotWaitMs, { owner, signal, whileMoving: true })
    if (leave) return leave
    throw new UpstreamError('unavailable', 503, 'As many blobs are being fetched as may be at a time.', {
      retryAfterSeconds: 1,
    })
  }

  #usesSingleRequest(host: string): boolean {
    return (this.#singleRequestUntil.get(host) ?? 0) > this.#parts.runningTime()
  }

  #recordRefusedRange(host: string, error: unknown): void {
    if (!(error instanceof UpstreamError) || error.failure !== 'limited') return
    this.#singleRequestUntil.set(
      host,
      this.#parts.runningTime() + Math.max(singleRequestMs, (error.retryAfterSeconds ?? 0) * 1000),
    )
  }

  /** Files what a finished download taught. */
  async #recordWhenStored(context: RequestContext, download: Download): Promise<void> {
    const stored = await download.settled
    if (!stored) return
    const { identity } = await download.started
    await this.#recordGrantWhenStored(context, download, identity)
    this.#parts.onStored()
  }

  /** Files the upstream's word about a blob once its bytes are here, with the size that they have. */
  async #recordGrantWhenStored(context: RequestContext, download: Download, identity: Identity): Promise<void> {
    const stored = await download.settled
    if (stored && download.size !== undefined) this.#recordGrant(context, download.digest, download.size, identity)
  }

  #claimPrefetched({ caller }: RequestContext, digest: Digest): boolean {
    return !caller.head && this.#prefetched.delete(digest)
  }

  async #answerFromDownload(
    context: RequestContext,
    download: Download,
    joined: 'miss' | 'collapsed',
  ): Promise<BlobAnswer> {
    // It may be one that was begun ahead: not to be let go of while this client waits for its start.
    download.claim()
    const outcome = this.#claimPrefetched(context, download.digest) ? 'miss' : joined
    await download.started
    return {
      digest: download.digest,
      size: download.size,
      body: { kind: 'arriving', download },
      provenance: toProvenance(context.host, outcome),
    }
  }

  #answerFromStore(
    context: RequestContext,
    digest: Digest,
    size: number,
    body: BlobBody,
    outcome: 'hit' | 'revalidated',
  ): BlobAnswer {
    const own = context.record()?.blobs.get(digest)
    if (own && !context.caller.head) own.usedAt = this.#parts.runningTime()
    return {
      digest,
      size,
      body,
      provenance: toProvenance(context.host, this.#claimPrefetched(context, digest) ? 'miss' : outcome),
    }
  }

  #answerProxied(context: RequestContext, digest: Digest, size: number | undefined): BlobAnswer {
    return { digest, size, body: { kind: 'none' }, provenance: toProvenance(context.host, 'passed') }
  }

  /** Notes the upstream's word about a blob that no manifest of the repository names yet. */
  #recordGrant(context: RequestContext, digest: Digest, size: number, identity: Identity): void {
    const known = findGrant(context.record(), digest, identity)
    if (known?.size === size) return
    const record = context.ensure()
    const before = record.blobs.get(digest)
    record.blobs.set(digest, {
      size,
      identity: widerIdentity(before?.identity, identity),
      usedAt: this.#parts.runningTime(),
    })
    this.#parts.refs.touch(record)
  }
}

function isOriginOf(origin: DownloadOrigin, { host, name }: RequestContext, identity: string): boolean {
  return origin.host === host && origin.name === name && origin.identity === identity
}

/** Which repository, and by whose credential, a download was started for. */
interface DownloadOrigin {
  readonly host: string
  readonly name: string
  readonly identity: Identity
}

interface RunningDownload {
  readonly origin: DownloadOrigin
  readonly download: Download
}

/** The fetches under way. Of those of one digest newcomers join the latest; earlier ones have dropped bytes on a full disk. */
export class Downloads {
  readonly #running = new Map<Digest, RunningDownload>()
  readonly #all = new Set<Download>()
  /** How many have ended: tells whether one ended while something was awaited. */
  endedCount = 0

  get(digest: Digest): RunningDownload | undefined {
    const running = this.#running.get(digest)
    return running?.download.canFollowFrom(0) ? running : undefined
  }

  has(digest: Digest): boolean {
    return this.#running.has(digest)
  }

  start(origin: DownloadOrigin, options: Omit<DownloadOptions, 'onSettled'>): Download {
    const onSettled = () => {
      this.endedCount += 1
      this.#all.delete(download)
      if (this.#running.get(options.digest)?.download === download) this.#running.delete(options.digest)
    }
    const download = startDownload({ ...options, onSettled })
    this.#running.set(options.digest, { origin, download })
    this.#all.add(download)
    return download
  }

  /** Resolves when every fetch has ended. */
  async settle(): Promise<void> {
    await Promise.all(Array.from(this.#all, ({ settled }) => settled))
  }
}
