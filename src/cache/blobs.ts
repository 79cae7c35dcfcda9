import { setMaxListeners } from 'node:events'
import { LRUCache } from 'lru-cache'
import type { ManifestLink } from '../oci/content.ts'
import type { Digest } from '../oci/digest.ts'
import type { BlobAnswer, BlobBody } from '../oci/registry.ts'
import type { SmallContents } from '../store/contents.ts'
import { UpstreamError } from '../upstream/upstream.ts'
import { type Download, type DownloadOptions, startDownload } from './download.ts'
import { betterIdentity, findGranted, findWord, type Place, type Word } from './grants.ts'
import type { Heads } from './heads.ts'
import { type CacheParts, provenanceOf } from './parts.ts'

/** Blobs up to this size, configs above all, are served from memory. */
const smallBytes = 64 * 1024
/** How long, at least, an upstream that limits connections is asked over a single one. */
const unrangedMs = 10 * 60_000
/** How long a client waits until its blob may be fetched, while nothing comes of those before it, ms. */
const fillPatienceMs = 60_000

/** Blobs: held, arriving, or to be fetched; one fetch a digest, whoever and how many ask. */
export class BlobCache {
  readonly downloads = new Downloads()
  readonly #ending = new AbortController()
  readonly #parts: CacheParts
  readonly #contents: SmallContents
  readonly #heads: Heads
  /** Fetched ahead, and not asked for so far: the first to ask is the one they were fetched for. */
  readonly #unclaimed = new LRUCache<Digest, true>({ max: 10_000 })
  /** Upstreams that had enough of several connections for a blob, and until when: running time, ms. */
  readonly #unranged = new Map<string, number>()

  constructor(parts: CacheParts, contents: SmallContents, heads: Heads) {
    this.#parts = parts
    this.#contents = contents
    this.#heads = heads
    // Every fetch under way listens.
    setMaxListeners(0, this.#ending.signal)
  }

  /** Throws the upstream's UpstreamError. */
  async get(place: Place, digest: Digest): Promise<BlobAnswer> {
    for (;;) {
      const ended = this.downloads.ended
      const word = await findGranted(place, (record, identity) => findWord(record, digest, identity))
      if (word) {
        const content = word.size <= smallBytes && (await this.#contents.loadStored(digest, word.size))
        if (content) return this.#held(place, digest, content.size, { kind: 'whole', content }, 'hit')
        const blob = await this.#parts.blobs.open(digest, word.size)
        if (blob) return this.#held(place, digest, blob.size, { kind: 'stored', blob }, 'hit')
        // A fetch that ended while the disk was asked has put it there.
        if (this.downloads.ended !== ended) continue
      }
      await place.throwIfRefused()
      const identity = await place.identity()
      if (!word && (await this.#parts.blobs.stat(digest)) !== undefined) return this.#vouched(place, identity, digest)
      if (place.caller.head) return this.#told(place, digest, word)
      const running = this.downloads.get(digest)
      if (running) return this.#join(place, identity, running, word)
      if (this.downloads.ended !== ended) continue
      const download = this.#start(place, identity, digest, word)
      return this.#arriving(place, download, 'miss')
    }
  }

  /** Begins to fetch what nobody has asked for yet; undefined when it is here, or on its way, or not known to be there. */
  async prefetch(place: Place, { digest }: ManifestLink, signal: AbortSignal): Promise<Download | undefined> {
    if (this.downloads.has(digest) || (await this.#parts.blobs.stat(digest)) !== undefined) return undefined
    const word = await findGranted(place, (record, identity) => findWord(record, digest, identity))
    const { fills } = this.#parts
    // What is asked for comes first: half of the upstream's share stays for it.
    if (!word || fills.roomFor(place.host) <= Math.max(1, fills.limit / 4)) return undefined
    const identity = await place.identity()
    const isHere = (await this.#parts.blobs.stat(digest)) !== undefined
    if (isHere || this.downloads.has(digest) || this.#ending.signal.aborted || signal.aborted) return undefined
    this.#unclaimed.set(digest, true)
    return this.#start(place, identity, digest, word, signal)
  }

  /** Ends the fetches under way: what they got so far is fetched again. */
  async close(): Promise<void> {
    this.#ending.abort(new UpstreamError('unavailable', 503, 'The mirror is stopping.'))
    await this.downloads.settle()
  }

  /** The bytes are here, but this repository's upstream has not said that it holds them: ask it (decision D5). */
  async #vouched(place: Place, identity: string, digest: Digest): Promise<BlobAnswer> {
    const head = await this.#heads.blob(place, digest)
    const stored = await this.#parts.blobs.stat(digest)
    // Where the upstream names another size, only its bytes tell which one is right.
    const agrees = stored !== undefined && (head.size ?? stored) === stored
    const blob = agrees ? await this.#parts.blobs.open(digest, stored) : undefined
    if (blob) {
      this.#learn(place, digest, blob.size, head.identity)
      return this.#held(place, digest, blob.size, { kind: 'stored', blob }, 'revalidated')
    }
    if (place.caller.head) return this.#passed(place, digest, head.size)
    const running = this.downloads.get(digest)
    if (running) return this.#collapsed(place, identity, running)
    return this.#arriving(place, this.#start(place, identity, digest, undefined), 'miss')
  }

  /** A second repository that joins a running fetch needs its own word. */
  async #join(place: Place, identity: string, running: RunningDownload, word: Word | undefined): Promise<BlobAnswer> {
    const { origin, download } = running
    if (!word && !isFor(origin, place, identity)) {
      const head = await this.#heads.blob(place, download.digest)
      // A HEAD may name a wrong size, by which the right bytes would be taken for damaged ones.
      if (head.size !== undefined && head.size === download.size)
        this.#learn(place, download.digest, head.size, head.identity)
      else void this.#learnWhenStored(place, download, head.identity)
      if (!download.canFollowFrom(0)) return this.get(place, download.digest)
    }
    return this.#collapsed(place, identity, running)
  }

  /** Follows a running fetch. What another repository's upstream refuses is no answer here: then this one's is asked. */
  async #collapsed(place: Place, identity: string, { origin, download }: RunningDownload): Promise<BlobAnswer> {
    try {
      return await this.#arriving(place, download, 'collapsed')
    } catch (error) {
      if (isFor(origin, place, identity) || !(error instanceof UpstreamError)) throw error
      return this.get(place, download.digest)
    }
  }

  async #told(place: Place, digest: Digest, word: Word | undefined): Promise<BlobAnswer> {
    const head = await this.#heads.blob(place, digest)
    return this.#passed(place, digest, word?.size ?? head.size)
  }

  #start(place: Place, identity: string, digest: Digest, word: Word | undefined, signal?: AbortSignal): Download {
    const expectedSize = word?.size
    const isAhead = signal !== undefined
    let leave: (() => void) | undefined
    const download = this.downloads.start(
      { host: place.host, name: place.name, identity },
      {
        digest,
        expectedSize,
        mostUnsized: this.#parts.mostUnsized,
        open: async (from, attempt, to) => {
          leave ??= await this.#enter(place.host, attempt)
          const isFurther = to !== undefined && from > 0
          const isExtra = isFurther || (isAhead && !this.downloads.get(digest)?.download.isClaimed)
          const options = { access: await place.access(), from, to, expectedSize, isExtra, signal: attempt }
          try {
            return await place.upstream.blob(place.name, digest, options)
          } catch (error) {
            if (isFurther) this.#noteRefusedRange(place.host, error)
            throw error
          }
        },
        // Who asks for a part wants that part, not all of it as fast as can be.
        ranges: place.caller.part || this.#isUnranged(place.host) ? undefined : this.#parts.ranges,
        signal: signal ? AbortSignal.any([this.#ending.signal, signal]) : this.#ending.signal,
        store: this.#parts.blobs,
        hashes: this.#parts.hashes,
        release: this.#parts.release,
        makeRoom: this.#parts.makeRoom,
        onBytes: (bytes) => {
          this.#parts.fills.moved(bytes, place.host)
          if (!place.upstream.isProbe) this.#parts.stats.fetched(place.host, bytes)
        },
        onMismatch: () => this.#parts.stats.mismatched(),
        logger: this.#parts.logger,
      },
    )
    void download.settled.then(() => leave?.())
    void this.#follow(place, download)
    return download
  }

  /** Waits until one more blob of this upstream may be fetched. */
  async #enter(owner: string, signal: AbortSignal): Promise<() => void> {
    const leave = await this.#parts.fills.take(fillPatienceMs, { owner, signal, whileMoving: true })
    if (leave) return leave
    throw new UpstreamError('unavailable', 503, 'As many blobs are being fetched as may be at a time.', {
      retryAfterSeconds: 1,
    })
  }

  #isUnranged(host: string): boolean {
    return (this.#unranged.get(host) ?? 0) > this.#parts.runningTime()
  }

  #noteRefusedRange(host: string, error: unknown): void {
    if (!(error instanceof UpstreamError) || error.failure !== 'limited') return
    this.#unranged.set(host, this.#parts.runningTime() + Math.max(unrangedMs, (error.retryAfterSeconds ?? 0) * 1000))
  }

  /** Files what a finished download taught. */
  async #follow(place: Place, download: Download): Promise<void> {
    const stored = await download.settled
    if (!stored) return
    const { identity } = await download.started
    await this.#learnWhenStored(place, download, identity)
    this.#parts.onStored()
  }

  /** Files the upstream's word about a blob once its bytes are here, with the size that they have. */
  async #learnWhenStored(place: Place, download: Download, identity: string): Promise<void> {
    const stored = await download.settled
    if (stored && download.size !== undefined) this.#learn(place, download.digest, download.size, identity)
  }

  #claim({ caller }: Place, digest: Digest): boolean {
    return !caller.head && this.#unclaimed.delete(digest)
  }

  async #arriving(place: Place, download: Download, joined: 'miss' | 'collapsed'): Promise<BlobAnswer> {
    // It may be one that was begun ahead: not to be let go of while this client waits for its start.
    download.claim()
    const outcome = this.#claim(place, download.digest) ? 'miss' : joined
    await download.started
    return {
      digest: download.digest,
      size: download.size,
      body: { kind: 'arriving', download },
      provenance: provenanceOf(place.host, outcome),
    }
  }

  #held(place: Place, digest: Digest, size: number, body: BlobBody, outcome: 'hit' | 'revalidated'): BlobAnswer {
    const own = place.record()?.blobs.get(digest)
    if (own && !place.caller.head) own.usedAt = this.#parts.runningTime()
    return { digest, size, body, provenance: provenanceOf(place.host, this.#claim(place, digest) ? 'miss' : outcome) }
  }

  #passed(place: Place, digest: Digest, size: number | undefined): BlobAnswer {
    return { digest, size, body: { kind: 'none' }, provenance: provenanceOf(place.host, 'passed') }
  }

  /** Notes the upstream's word about a blob that no manifest of the repository names yet. */
  #learn(place: Place, digest: Digest, size: number, identity: string): void {
    const known = findWord(place.record(), digest, identity)
    if (known?.size === size) return
    const record = place.ensure()
    const before = record.blobs.get(digest)
    record.blobs.set(digest, {
      size,
      identity: betterIdentity(before?.identity, identity),
      usedAt: this.#parts.runningTime(),
    })
    this.#parts.refs.touch(record)
  }
}

function isFor(origin: Origin, { host, name }: Place, identity: string): boolean {
  return origin.host === host && origin.name === name && origin.identity === identity
}

/** Which repository, and by whose credential, a download was started for. */
export interface Origin {
  readonly host: string
  readonly name: string
  readonly identity: string
}

export interface RunningDownload {
  readonly origin: Origin
  readonly download: Download
}

/** The fetches under way. Of those of one digest newcomers join the latest; earlier ones have dropped bytes on a full disk. */
export class Downloads {
  readonly #running = new Map<Digest, RunningDownload>()
  readonly #all = new Set<Download>()
  /** How many have ended: tells whether one ended while something was awaited. */
  ended = 0

  get(digest: Digest): RunningDownload | undefined {
    const running = this.#running.get(digest)
    return running?.download.canFollowFrom(0) ? running : undefined
  }

  has(digest: Digest): boolean {
    return this.#running.has(digest)
  }

  start(origin: Origin, options: Omit<DownloadOptions, 'onSettled'>): Download {
    const onSettled = () => {
      this.ended += 1
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
