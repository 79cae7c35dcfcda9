import { LRUCache } from 'lru-cache'
import { getErrno } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { type Clock, runEvery, logFailure } from '../lib/time.ts'
import type { ManifestLink } from '../oci/content.ts'
import type { Digest } from '../oci/reference.ts'
import { UpstreamError } from '../upstream/upstream.ts'
import type { Download } from './download/download.ts'
import type { RequestContext } from './grants.ts'

interface PrefetcherOptions {
  /** Limits the layers of one image that are prefetched at a time; 0 turns prefetching off. */
  readonly layers: number
  readonly clock: Clock
  readonly logger: Logger
  /** Starts to download a layer that no client has requested; undefined when there is nothing to download. */
  readonly fetch: (context: RequestContext, layer: ManifestLink, signal: AbortSignal) => Promise<Download | undefined>
}

/** Limits the manifests of a repository that are remembered per client. */
const maxManifests = 8
/** Limits the layers that are kept in memory: unpacking a manifest's links takes longer than the rest of a blob's request. */
const maxCachedLayers = 20_000
/** Ends a pull that has had no request and no follower for this long, ms. */
const idleTimeoutMs = 10_000
const pollMs = 1000

/** Describes a download that a client has requested. */
type ClientDownload = Pick<Download, 'isFollowed'>

/** Describes an image that a client is pulling. */
interface ImagePull {
  readonly context: RequestContext
  readonly queued: ManifestLink[]
  readonly running: Map<Download, AbortController>
  /** Downloads that clients have requested, and may still follow. */
  readonly requested: Set<ClientDownload>
  /** Holds the time of the last request, monotonic ms. */
  requestedAt: number
}

/**
 * Prefetches the layers that a client will request next: those behind the requested one in the client's latest manifest, more at
 * a time than clients request. A layer that a client has joined is downloaded to its end; the others are aborted when the client
 * does not continue its pull.
 */
export class Prefetcher {
  readonly #options: PrefetcherOptions
  readonly #manifests = new LRUCache<string, Digest[]>({ max: 10_000 })
  /** Caches the layers of manifests. */
  readonly #layers = new LRUCache<Digest, readonly ManifestLink[]>({
    maxSize: maxCachedLayers,
    sizeCalculation: (layers) => layers.length + 1,
  })
  /** Lists running pulls, by client and manifest. */
  readonly #pulls = new Map<string, ImagePull>()
  #stopPolling: (() => void) | undefined

  constructor(options: PrefetcherOptions) {
    this.#options = options
  }

  /** Records that a client got a manifest. */
  recordManifest(context: RequestContext, digest: Digest): void {
    if (this.#options.layers === 0) return
    const key = toClientKey(context)
    const known = this.#manifests.get(key)
    if (known?.[0] === digest) return
    this.#manifests.set(key, [digest, ...(known ?? []).filter((each) => each !== digest)].slice(0, maxManifests))
  }

  /** Records that a client requests a whole blob; `download`: if the blob is still arriving. */
  recordBlob(context: RequestContext, digest: Digest, download?: ClientDownload): void {
    if (this.#options.layers === 0) return
    for (const manifest of this.#manifests.get(toClientKey(context)) ?? []) {
      const layers = this.#getLayers(context, manifest)
      const at = layers.findIndex((layer) => layer.digest === digest)
      if (at !== -1) return this.#recordPull(context, manifest, layers.slice(at + 1), download)
    }
  }

  /** Aborts the downloads that no client has joined. */
  close(): void {
    this.#stopPolling?.()
    for (const pull of this.#pulls.values()) abandon(pull)
    this.#pulls.clear()
  }

  #getLayers(context: RequestContext, manifest: Digest): readonly ManifestLink[] {
    const known = context.record()
    if (!known?.manifests.has(manifest)) return []
    const layers = this.#layers.get(manifest) ?? known.getLinks(manifest).filter(isLayer)
    this.#layers.set(manifest, layers)
    return layers
  }

  #recordPull(
    context: RequestContext,
    manifest: Digest,
    next: readonly ManifestLink[],
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
    if (next.length === 0) return
    const requested = new Set<ClientDownload>(download && [download])
    const pull: ImagePull = { context, queued: [...next], running: new Map(), requested, requestedAt: now }
    this.#pulls.set(key, pull)
    const onFailure = logFailure(this.#options.logger, 'could not check the prefetched layers')
    this.#stopPolling ??= runEvery(pollMs, () => this.#expirePulls(), onFailure)
    for (let worker = 0; worker < Math.min(this.#options.layers, next.length); worker++) void this.#fetchAll(pull)
  }

  /** Prefetches one layer after the other until the queue is empty. */
  async #fetchAll(pull: ImagePull): Promise<void> {
    for (let layer = pull.queued.shift(); layer; layer = pull.queued.shift()) {
      const abort = new AbortController()
      const download = await this.#startFetch(pull, layer, abort.signal)
      if (!download) continue
      pull.running.set(download, abort)
      // Stop at the first failure (a full disk, an upstream that fails or limits): clients request what they need.
      if (!(await download.settled)) pull.queued.length = 0
      pull.running.delete(download)
    }
  }

  async #startFetch(
    { context, queued }: ImagePull,
    layer: ManifestLink,
    signal: AbortSignal,
  ): Promise<Download | undefined> {
    try {
      return await this.#options.fetch(context, layer, signal)
    } catch (error) {
      // The request of the layer itself reports the disk's error.
      if (getErrno(error) === undefined) throw error
      this.#options.logger.warn({ digest: layer.digest, error: String(error) }, 'a layer could not be prefetched')
      queued.length = 0
      return undefined
    }
  }

  /** Ends the pulls that no client continues. */
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

function abandon({ queued, running }: ImagePull): void {
  queued.length = 0
  for (const [download, abort] of running)
    if (!download.isClaimed) abort.abort(new UpstreamError('unavailable', 503, 'No client pulls the image any more.'))
}

function toClientKey({ host, name, caller }: RequestContext): string {
  return `${caller.client} ${caller.access} ${host}/${name}`
}

/** Reports whether a pull requests this link next. Excludes the config, which tools also read alone. */
function isLayer({ kind, mediaType }: ManifestLink): boolean {
  return kind === 'blob' && !mediaType.endsWith('json')
}
