import { LRUCache } from 'lru-cache'
import { errnoOf } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { type Clock, every, logFailure } from '../lib/time.ts'
import { isForeignLayer, type ManifestLink } from '../oci/content.ts'
import type { Digest } from '../oci/digest.ts'
import { UpstreamError } from '../upstream/upstream.ts'
import type { Download } from './download.ts'
import type { RequestContext } from './grants.ts'

interface PrefetcherOptions {
  /** Layers fetched ahead at a time, of one image; 0 switches it off. */
  readonly layers: number
  readonly clock: Clock
  readonly logger: Logger
  /** Begins to fetch a layer that nobody has asked for; undefined when there is nothing to fetch. */
  readonly fetch: (context: RequestContext, layer: ManifestLink, signal: AbortSignal) => Promise<Download | undefined>
}

/** Manifests that a client has got of a repository, whose layers it may be about to ask for. */
const maxManifests = 8
/** Without a request for so long, and without anybody reading along, nobody wants the image any more. */
const idleTimeoutMs = 10_000
const pollMs = 1000

/** A download of a client: whether anyone still reads it. */
type ClientDownload = Pick<Download, 'isFollowed'>

/** An image that a client is pulling. */
interface Pull {
  readonly context: RequestContext
  readonly queued: ManifestLink[]
  readonly running: Map<Download, AbortController>
  /** What clients asked for by themselves, and may still be reading. */
  readonly requested: Set<ClientDownload>
  /** Monotonic ms. */
  requestedAt: number
}

/**
 * Fetches the layers that a client will ask for next: those behind the one it asks for, in the manifest it got last, more at a
 * time than it would. A layer that a client has joined is fetched to its end, as any other; the rest is let go of when the
 * client does not go on.
 */
export class Prefetcher {
  readonly #options: PrefetcherOptions
  readonly #manifests = new LRUCache<string, Digest[]>({ max: 10_000 })
  /** By client and manifest. */
  readonly #pulls = new Map<string, Pull>()
  #stopPolling: (() => void) | undefined

  constructor(options: PrefetcherOptions) {
    this.#options = options
  }

  /** A client was given a manifest. */
  recordManifest(context: RequestContext, digest: Digest): void {
    if (this.#options.layers === 0) return
    const key = toClientKey(context)
    const known = this.#manifests.get(key)
    if (known?.[0] === digest) return
    this.#manifests.set(key, [digest, ...(known ?? []).filter((each) => each !== digest)].slice(0, maxManifests))
  }

  /** A client asks for the whole of a blob, which comes by this download where it is not held. */
  recordBlob(context: RequestContext, digest: Digest, download?: ClientDownload): void {
    if (this.#options.layers === 0) return
    for (const manifest of this.#manifests.get(toClientKey(context)) ?? []) {
      const layers = context.record()?.manifests.get(manifest)?.links.filter(isLayer) ?? []
      const at = layers.findIndex((layer) => layer.digest === digest)
      if (at !== -1) return this.#recordPull(context, manifest, layers.slice(at + 1), download)
    }
  }

  /** Ends what is fetched for nobody. */
  close(): void {
    this.#stopPolling?.()
    for (const pull of this.#pulls.values()) abandon(pull)
    this.#pulls.clear()
  }

  #recordPull(
    context: RequestContext,
    manifest: Digest,
    following: readonly ManifestLink[],
    download: ClientDownload | undefined,
  ): void {
    const key = `${toClientKey(context)} ${manifest}`
    const now = this.#options.clock.monotonic()
    const known = this.#pulls.get(key)
    if (known) {
      known.requestedAt = now
      if (download) known.requested.add(download)
      return
    }
    if (following.length === 0) return
    const asked = new Set<ClientDownload>(download && [download])
    const pull: Pull = { context, queued: [...following], running: new Map(), requested: asked, requestedAt: now }
    this.#pulls.set(key, pull)
    const onFailure = logFailure(this.#options.logger, 'looking at what is fetched ahead failed')
    this.#stopPolling ??= every(pollMs, () => this.#expirePulls(), onFailure)
    for (let lane = 0; lane < Math.min(this.#options.layers, following.length); lane++) void this.#fetchAll(pull)
  }

  /** One layer after the other, until there are no more. */
  async #fetchAll(pull: Pull): Promise<void> {
    for (let layer = pull.queued.shift(); layer; layer = pull.queued.shift()) {
      const ending = new AbortController()
      const download = await this.#startFetch(pull, layer, ending.signal)
      if (!download) continue
      pull.running.set(download, ending)
      // A full disk, or an upstream that refuses, is out of quota or does not answer: clients ask for what they need.
      if (!(await download.settled)) pull.queued.length = 0
      pull.running.delete(download)
    }
  }

  async #startFetch(
    { context, queued: waiting }: Pull,
    layer: ManifestLink,
    signal: AbortSignal,
  ): Promise<Download | undefined> {
    try {
      return await this.#options.fetch(context, layer, signal)
    } catch (error) {
      // Whoever asks for the layer finds out what is wrong with the disk.
      if (errnoOf(error) === undefined) throw error
      this.#options.logger.warn({ digest: layer.digest, error: String(error) }, 'a layer is not fetched ahead')
      waiting.length = 0
      return undefined
    }
  }

  /** Lets go of pulls that nobody goes on with. */
  #expirePulls(): void {
    const now = this.#options.clock.monotonic()
    for (const [key, pull] of this.#pulls) {
      for (const download of pull.requested) if (!download.isFollowed) pull.requested.delete(download)
      const isRead = pull.requested.size > 0 || [...pull.running.keys()].some((download) => download.isFollowed)
      if (isRead || now - pull.requestedAt < idleTimeoutMs) continue
      abandon(pull)
      this.#pulls.delete(key)
    }
    if (this.#pulls.size > 0) return
    this.#stopPolling?.()
    this.#stopPolling = undefined
  }
}

function abandon({ queued: waiting, running }: Pull): void {
  waiting.length = 0
  for (const [download, ending] of running)
    if (!download.isClaimed) ending.abort(new UpstreamError('unavailable', 503, 'Nobody asks for the image any more.'))
}

function toClientKey({ host, name, caller }: RequestContext): string {
  return `${caller.client} ${caller.access} ${host}/${name}`
}

/** Whether a link is what a pull goes on with: not the config, which tools read by itself, and not what is elsewhere. */
function isLayer({ kind, mediaType }: ManifestLink): boolean {
  return kind === 'blob' && !mediaType.endsWith('json') && !isForeignLayer(mediaType)
}
