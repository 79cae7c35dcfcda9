import { SingleFlight } from '../lib/async.ts'
import {
  bytesOf,
  largestManifest,
  longestString,
  type ManifestOutline,
  outlineManifest,
  smallContent,
  type SmallContent,
} from '../oci/content.ts'
import { type Digest, digestAlgorithm, digestOf } from '../oci/digest.ts'
import { OciError } from '../oci/errors.ts'
import { type Reference, referenceText } from '../oci/reference.ts'
import { anonymousIdentity, type Identity } from '../oci/registry.ts'
import { isStored, type SmallContents, storedManifest } from '../store/contents.ts'
import type { ManifestRecord } from '../store/records.ts'
import { type FetchedManifest, UpstreamError } from '../upstream/upstream.ts'
import { widerIdentity, type RequestContext, toRequestKey } from './grants.ts'
import { type CacheDependencies, publishSmall } from './parts.ts'

/** A manifest that we hold. */
export interface CachedManifest {
  readonly digest: Digest
  readonly mediaType: string
  /** Bytes. */
  readonly size: number
  /** Undefined for one that is on the disk, and too large for memory. */
  readonly content: SmallContent | undefined
  /** Whose word it came with. */
  readonly identity: Identity
}

function hasDigest(bytes: Uint8Array, digest: Digest): boolean {
  return digestOf(bytes, digestAlgorithm(digest)) === digest
}

/** Manifests: in memory, on disk, or fetched, checked and kept. */
export class ManifestCache {
  readonly #flights = new SingleFlight<CachedManifest>()
  readonly #parts: CacheDependencies
  readonly #contents: SmallContents

  constructor(parts: CacheDependencies, contents: SmallContents) {
    this.#parts = parts
    this.#contents = contents
  }

  /** The manifest if we hold it. Files the word that the repository has it, where the record knows it only by name. */
  async load(
    context: RequestContext,
    digest: Digest,
    contentType: string,
    identity: string,
  ): Promise<CachedManifest | undefined> {
    const { blobs } = this.#parts
    const size = this.#contents.get(digest)?.size ?? (await blobs.stat(digest))
    if (size === undefined || size > largestManifest) return undefined
    const known = context.record()?.manifests.get(digest)
    const isKnown = known?.identity === identity
    const isLarge = size > longestString && !this.#contents.get(digest)
    if (isLarge && isKnown && !(await isStored(blobs, digest, size))) return undefined
    const content = isLarge ? undefined : await this.#contents.load(digest, largestManifest)
    if (!isLarge && !content) return undefined
    if (isKnown) return { digest, mediaType: known.mediaType, size, content, identity }
    const read = (bytes: Uint8Array) => outlineManifest(bytes, contentType)
    const outline = await (content ? read(bytesOf(content)) : storedManifest(blobs, digest, size).use(read))
    if (outline === undefined || typeof outline === 'string') return undefined
    this.recordGrant(context, digest, size, identity, outline)
    return { digest, mediaType: outline.mediaType, size, content, identity }
  }

  /** Fetches a manifest, checks it and keeps it; callers of the same standing share one fetch. */
  async fetch(
    context: RequestContext,
    reference: Reference,
  ): Promise<{ readonly result: Promise<CachedManifest>; readonly joined: boolean }> {
    return this.#flights.run(await toRequestKey(context, referenceText(reference)), async () => {
      const fetched = await this.#request(context, reference)
      const announced = reference.kind === 'tag' ? fetched.digest : undefined
      if (!announced || hasDigest(fetched.bytes, announced)) {
        return this.store(context, reference, fetched).finally(fetched.release)
      }
      fetched.release?.()
      return this.#resolveMismatch(
        context,
        reference,
        announced,
        fetched.bytes.length <= longestString ? fetched : undefined,
      )
    })
  }

  async #request(context: RequestContext, reference: Reference): Promise<FetchedManifest> {
    const fetched = await context.upstream.manifest(context.name, reference, { access: await context.access() })
    if (!context.upstream.isProbe) this.#parts.stats.recordFetched(context.host, fetched.bytes.length)
    return fetched
  }

  /**
   * The bytes of a tag do not hash to the digest that came with them: either they were changed on the way, or the upstream
   * announces what it does not hold. Asking for that digest tells the two apart. The memory of the first body is given back before
   * that: two who held one each would wait for each other's. A large one is fetched again if it is needed after all.
   */
  async #resolveMismatch(
    context: RequestContext,
    tag: Reference,
    announced: Digest,
    small: FetchedManifest | undefined,
  ): Promise<CachedManifest> {
    this.#parts.stats.recordMismatch()
    const byDigest: Reference = { kind: 'digest', digest: announced }
    const held = await this.#request(context, byDigest).catch((error: unknown) => {
      if (error instanceof UpstreamError && error.failure === 'absent') return undefined
      throw error
    })
    if (held) return this.store(context, byDigest, held).finally(held.release)
    const again = small ?? (await this.#request(context, tag))
    return this.store(context, tag, again).finally(again.release)
  }

  /** Files a manifest under what its bytes hash to, and the tag it was fetched by. */
  async store(context: RequestContext, reference: Reference, fetched: FetchedManifest): Promise<CachedManifest> {
    const { bytes, identity } = fetched
    const wanted = reference.kind === 'digest' ? reference.digest : undefined
    // Only the algorithm is taken on trust: under another one the upstream's HEAD would never confirm the tag.
    const named = wanted ?? fetched.digest
    const digest = digestOf(bytes, named ? digestAlgorithm(named) : 'sha256')
    if (wanted && digest !== wanted) {
      this.#parts.stats.recordMismatch()
      throw new UpstreamError('invalid', 502, `${context.host} answered ${wanted} with a manifest of another digest.`)
    }
    const outline = await outlineManifest(bytes, fetched.mediaType)
    if (outline === 'schema1') {
      throw new OciError(
        'MANIFEST_INVALID',
        415,
        'The image has only a schema 1 manifest, a format that was retired and is not mirrored.',
        { 'oci-namespace': context.host, 'cache-status': 'mirror; fwd=miss; fwd-status=200' },
      )
    }
    if (outline === 'not-a-manifest') {
      throw new UpstreamError('invalid', 502, `${context.host} answered with something that is not a manifest.`)
    }
    const { length: size } = bytes
    const isLarge = size > longestString
    if (!isLarge) this.#contents.set(digest, smallContent(bytes))
    await publishSmall(this.#parts, digest, bytes)
    // What the disk did not take is served from memory.
    const isOnDisk = isLarge && (await this.#parts.blobs.stat(digest)) === size
    const content = isOnDisk ? undefined : smallContent(bytes)
    if (content) this.#contents.set(digest, content)
    this.recordGrant(context, digest, size, identity, outline)
    return { digest, mediaType: outline.mediaType, size, content, identity }
  }

  /** Notes the upstream's word that the repository holds this manifest, and so what it names. */
  recordGrant(context: RequestContext, digest: Digest, size: number, identity: string, outline: ManifestOutline): void {
    const record = context.ensure()
    const known = record.manifests.get(digest)
    if (known?.identity === identity || known?.identity === anonymousIdentity) return
    const learned: ManifestRecord = {
      mediaType: outline.mediaType,
      size,
      links: outline.links,
      identity: widerIdentity(known?.identity, identity),
      pulls: known?.pulls ?? 0,
      lastPulled: known?.lastPulled ?? 0,
      usedAt: this.#parts.runningTime(),
    }
    record.manifests.set(digest, learned)
    this.#parts.refs.touch(record)
  }
}
