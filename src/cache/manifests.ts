import { SingleFlight } from '../lib/async.ts'
import { getErrno } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import type { PastChanges } from '../metadata/past-changes.ts'
import { packLinks } from '../metadata/operations.ts'
import {
  toBytes,
  maxManifestBytes,
  maxStringBytes,
  type ManifestOutline,
  outlineManifest,
  toSmallContent,
  type SmallContent,
} from '../oci/content.ts'
import { type Digest, getDigestAlgorithm, computeDigest, type Reference, formatReference } from '../oci/reference.ts'
import { OciError } from '../oci/errors.ts'
import { anonymousIdentity, type Identity } from '../oci/registry.ts'
import type { BlobStore } from '../store/blob-store.ts'
import { isStored, type SmallContents, openStoredManifest } from '../store/contents.ts'
import { type FetchedManifest, UpstreamError } from '../upstream/upstream.ts'
import { chooseWiderIdentity, type RequestContext, toRequestKey } from './grants.ts'
import type { Stats } from '../stats/stats.ts'

/** Describes a verified manifest in memory or on disk. */
export interface CachedManifest {
  readonly digest: Digest
  readonly mediaType: string
  /** Bytes. */
  readonly size: number
  /** Holds the bytes; undefined for a manifest that is on disk and too large for memory. */
  readonly content: SmallContent | undefined
  /** Holds the identity of its grant. */
  readonly identity: Identity
  /** Says that the disk did not take it; see `Provenance`. */
  readonly warning?: string | undefined
}

/** Stores manifests and lists, whose bytes are in memory. */
export interface SmallContentStore {
  readonly blobs: BlobStore
  /** Tries to free so many bytes on the disk; resolves when it cannot free more. */
  readonly makeRoom: (bytes: number) => Promise<void>
  /** Is called after content was stored. */
  readonly onStored: () => void
  readonly logger: Logger
}

export interface ManifestCacheOptions extends SmallContentStore {
  readonly stats: Stats
  /** Explains misses. */
  readonly pastChanges: PastChanges
  /** Returns the running time in ms, for eviction. */
  readonly runningTime: () => number
}

/**
 * Stores a manifest or a list, and tries again after freeing space. Logs a disk that still refuses the bytes and does not
 * throw: the client is served from memory, and the next one from the upstream. Returns the error of the disk; undefined when the
 * content is stored.
 */
export async function publishSmall(
  { blobs, makeRoom, onStored, logger }: SmallContentStore,
  digest: Digest,
  bytes: Uint8Array<ArrayBuffer>,
): Promise<unknown> {
  let failure: unknown
  for (const isLastTry of [false, true]) {
    try {
      await blobs.put(digest, bytes)
      onStored()
      return undefined
    } catch (error) {
      if (getErrno(error) === undefined) throw error
      failure = error
      logger.warn({ digest, error: String(error) }, 'could not store a manifest or list on disk')
      if (!isLastTry) await makeRoom(bytes.length)
    }
  }
  return failure
}

/** Tells a client's user that an image is not kept. */
function describeUnstored(failure: unknown): string {
  const code = getErrno(failure)
  const isFull = code === 'ENOSPC' || code === 'EDQUOT'
  return `the mirror does not keep this image, because ${isFull ? 'its disk is full' : `its disk failed (${code})`}`
}

function matchesDigest(bytes: Uint8Array, digest: Digest): boolean {
  return computeDigest(bytes, getDigestAlgorithm(digest)) === digest
}

/** Loads manifests from memory and disk; fetches, verifies and stores missing ones. */
export class ManifestCache {
  readonly #flights = new SingleFlight<CachedManifest>()
  readonly #options: ManifestCacheOptions
  readonly #contents: SmallContents

  constructor(options: ManifestCacheOptions, contents: SmallContents) {
    this.#options = options
    this.#contents = contents
  }

  /** Loads the manifest if it is cached. Records the grant if the manifest is recorded only as a link of another one. */
  async load(
    context: RequestContext,
    digest: Digest,
    contentType: string,
    identity: Identity,
  ): Promise<CachedManifest | undefined> {
    const { blobs } = this.#options
    const size = this.#contents.get(digest)?.size ?? (await blobs.stat(digest))
    if (size === undefined || size > maxManifestBytes) return undefined
    const known = context.record()?.manifests.get(digest)
    const isKnown = known?.identity === identity
    const isLarge = size > maxStringBytes && !this.#contents.get(digest)
    if (isLarge && isKnown && !(await isStored(blobs, digest, size))) return undefined
    const content = isLarge ? undefined : await this.#contents.load(digest, maxManifestBytes)
    if (!isLarge && !content) return undefined
    if (isKnown) return { digest, mediaType: known.mediaType, size, content, identity }
    const read = (bytes: Uint8Array) => outlineManifest(bytes, contentType)
    const outline = await (content ? read(toBytes(content)) : openStoredManifest(blobs, digest, size).use(read))
    if (outline === undefined || typeof outline === 'string') return undefined
    this.recordGrant(context, digest, size, identity, outline)
    return { digest, mediaType: outline.mediaType, size, content, identity }
  }

  /**
   * Fetches, verifies and stores a manifest. Concurrent calls of one identity share the fetch. `result` rejects with the
   * upstream's UpstreamError, or with an OciError for a manifest that is not supported.
   */
  async fetch(
    context: RequestContext,
    reference: Reference,
  ): Promise<{ readonly result: Promise<CachedManifest>; readonly joined: boolean }> {
    return this.#flights.run(await toRequestKey(context, formatReference(reference)), async () => {
      const fetched = await this.#request(context, reference)
      const announced = reference.kind === 'tag' ? fetched.digest : undefined
      if (!announced || matchesDigest(fetched.bytes, announced)) {
        return this.store(context, reference, fetched).finally(fetched.release)
      }
      fetched.release?.()
      return this.#resolveMismatch(
        context,
        reference,
        announced,
        fetched.bytes.length <= maxStringBytes ? fetched : undefined,
      )
    })
  }

  async #request(context: RequestContext, reference: Reference): Promise<FetchedManifest> {
    const fetched = await context.upstream.manifest(context.name, reference, { access: await context.access() })
    if (!context.upstream.isProbe) this.#options.stats.recordFetched(context.host, fetched.bytes.length)
    return fetched
  }

  /**
   * Handles a tag whose bytes do not hash to the announced digest: either the bytes were changed on the way, or the upstream
   * announces a digest that it does not have. A request for that digest tells which. The memory of the first body is released
   * before it, because two requests that hold a body each would wait for each other. A large body is fetched again if needed.
   */
  async #resolveMismatch(
    context: RequestContext,
    tag: Reference,
    announced: Digest,
    small: FetchedManifest | undefined,
  ): Promise<CachedManifest> {
    this.#options.stats.recordMismatch()
    const byDigest: Reference = { kind: 'digest', digest: announced }
    const confirmed = await this.#request(context, byDigest).catch((error: unknown) => {
      if (error instanceof UpstreamError && error.failure === 'absent') return undefined
      throw error
    })
    if (confirmed) return this.store(context, byDigest, confirmed).finally(confirmed.release)
    const fetched = small ?? (await this.#request(context, tag))
    return this.store(context, tag, fetched).finally(fetched.release)
  }

  /** Stores a manifest under the digest of its bytes. Throws an UpstreamError when that is not the requested digest. */
  async store(context: RequestContext, reference: Reference, fetched: FetchedManifest): Promise<CachedManifest> {
    const { bytes, identity } = fetched
    const wanted = reference.kind === 'digest' ? reference.digest : undefined
    // Use the announced algorithm: with another one the upstream's HEAD would never confirm the tag.
    const announced = wanted ?? fetched.digest
    const digest = computeDigest(bytes, announced ? getDigestAlgorithm(announced) : 'sha256')
    if (wanted && digest !== wanted) {
      this.#options.stats.recordMismatch()
      throw new UpstreamError('invalid', 502, `${context.host} answered ${wanted} with a manifest of another digest.`)
    }
    const outline = await outlineManifest(bytes, fetched.mediaType)
    if (outline === 'schema1') {
      throw new OciError(
        'MANIFEST_INVALID',
        415,
        'The image has only a schema 1 manifest. That format is retired, and the mirror does not support it.',
        { 'oci-namespace': context.host, 'cache-status': 'mirror; fwd=miss; fwd-status=200' },
      )
    }
    if (outline === 'not-a-manifest') {
      throw new UpstreamError('invalid', 502, `${context.host} answered with something that is not a manifest.`)
    }
    const { length: size } = bytes
    const isLarge = size > maxStringBytes
    if (!isLarge) this.#contents.set(digest, toSmallContent(bytes))
    const failure = await publishSmall(this.#options, digest, bytes)
    const warning = failure === undefined ? undefined : describeUnstored(failure)
    this.#options.pastChanges.forgetRemoval(digest)
    // A manifest that the disk did not take is served from memory.
    const isOnDisk = isLarge && (await this.#options.blobs.stat(digest)) === size
    const content = isOnDisk ? undefined : toSmallContent(bytes)
    if (content) this.#contents.set(digest, content)
    this.recordGrant(context, digest, size, identity, outline)
    return { digest, mediaType: outline.mediaType, size, content, identity, warning }
  }

  /** Records the grant for this manifest, and with it the grants for all that the manifest names. */
  recordGrant(
    context: RequestContext,
    digest: Digest,
    size: number,
    identity: Identity,
    outline: ManifestOutline,
  ): void {
    const known = context.record()?.manifests.get(digest)
    if (known?.identity === identity || known?.identity === anonymousIdentity) return
    const { pulls, lastPulled } = known ?? { pulls: 0, lastPulled: 0 }
    context.commit([
      {
        op: 'manifest',
        digest,
        mediaType: outline.mediaType,
        size,
        identity: chooseWiderIdentity(known?.identity, identity),
        updatedAt: 0,
        pulls,
        lastPulled,
        usedAt: this.#options.runningTime(),
        links: packLinks(outline.links),
      },
    ])
  }
}
