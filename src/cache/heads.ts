import { LRUCache } from 'lru-cache'
import type { Clock } from '../lib/time.ts'
import { isManifestType } from '../oci/content.ts'
import { type Digest, getDigestAlgorithm, computeDigest, type Reference } from '../oci/reference.ts'
import { RepeatedFailure, TransientError } from '../upstream/retry.ts'
import { type BlobHead, type FetchedBlob, type ManifestHead, UpstreamError } from '../upstream/upstream.ts'
import { findForCaller, findManifestGrant, type RequestContext } from './grants.ts'
import type { CachedManifest, ManifestCache } from './manifests.ts'

/** Holds a manifest's HEAD; or the manifest itself, where the upstream answers only a GET. */
export type ManifestHeadResult =
  | { readonly kind: 'head'; readonly head: ManifestHead }
  | { readonly kind: 'fetched'; readonly manifest: CachedManifest; readonly joined: boolean }

/** Sets the time during which an upstream with unreliable HEADs gets only GETs. */
const unreliableMs = 10 * 60_000
/** Limits the consecutive HEADs that fail where the GET succeeded. One alone may be a temporary failure. */
const maxFailures = 2

type ContentKind = 'manifests' | 'blobs'

/**
 * Sends HEAD requests, and a GET where a HEAD is of no use.
 *
 * Some registries refuse every HEAD and answer the GET of the same content. So one GET confirms a refused HEAD, and such an
 * upstream gets only GETs for the next ten minutes. Docker Hub counts the GET of a manifest as a pull, and a HEAD not at all: a
 * manifest is requested by GET only after a HEAD has failed, and a rate-limited HEAD is never repeated as a GET.
 */
export class HeadRequests {
  /** By kind and host, monotonic ms. */
  readonly #unreliableUntil = new LRUCache<string, number>({ max: 1000 })
  /** Counts consecutive failures, by kind and host. */
  readonly #failures = new LRUCache<string, number>({ max: 1000 })
  readonly #manifests: Pick<ManifestCache, 'fetch'>
  readonly #clock: Clock

  constructor(manifests: Pick<ManifestCache, 'fetch'>, clock: Clock) {
    this.#manifests = manifests
    this.#clock = clock
  }

  /**
   * Throws the UpstreamError of the GET where a HEAD was refused. `isCached`: the manifest is cached, so the rate limit of a GET
   * is thrown instead of the unconfirmed refusal of the HEAD.
   */
  async headManifest(context: RequestContext, reference: Reference, isCached: boolean): Promise<ManifestHeadResult> {
    if (this.#isUnreliable(context, 'manifests')) return this.#fetchManifest(context, reference)
    let head: ManifestHead
    try {
      head = await context.upstream.resolve(context.name, reference, { access: await context.access() })
    } catch (error) {
      if (!mayRejectHead(error)) throw error
      const fetched = await confirmByGet(isCached ? undefined : error, () => this.#fetchManifest(context, reference))
      this.#recordFailure(context, 'manifests', error)
      return fetched
    }
    this.#failures.delete(toKey(context, 'manifests'))
    return { kind: 'head', head: await completeHead(context, head, reference) }
  }

  /** Throws the UpstreamError of the GET where a HEAD was refused. */
  async headBlob(context: RequestContext, digest: Digest): Promise<BlobHead> {
    if (this.#isUnreliable(context, 'blobs')) return headBlobByGet(context, digest)
    try {
      const { size, identity } = await context.upstream.statBlob(context.name, digest, {
        access: await context.access(),
      })
      this.#failures.delete(toKey(context, 'blobs'))
      return { size: size === 0 && !isEmpty(digest) ? undefined : size, identity }
    } catch (error) {
      if (!mayRejectHead(error)) throw error
      const head = await confirmByGet(error, () => headBlobByGet(context, digest))
      this.#recordFailure(context, 'blobs', error)
      return head
    }
  }

  /** Repeats a HEAD whose digest the GET contradicts: either the tag has moved in between, or HEADs are unreliable. */
  async verifyDigest(context: RequestContext, tag: string, named: Digest): Promise<void> {
    try {
      const again = await context.upstream.resolve(
        context.name,
        { kind: 'tag', tag },
        { access: await context.access() },
      )
      if (again.digest === named) this.#markUnreliable(context, 'manifests')
    } catch (error) {
      if (!(error instanceof UpstreamError)) throw error
    }
  }

  async #fetchManifest(context: RequestContext, reference: Reference): Promise<ManifestHeadResult> {
    const { result, joined } = await this.#manifests.fetch(context, reference)
    return { kind: 'fetched', manifest: await result, joined }
  }

  /** Records that a HEAD failed and the GET after it succeeded. */
  #recordFailure(context: RequestContext, kind: ContentKind, error: UpstreamError): void {
    const key = toKey(context, kind)
    const failures = (this.#failures.get(key) ?? 0) + 1
    this.#failures.set(key, failures)
    // A tag may have been pushed between the HEAD and the GET.
    const isCertain = isDefinite(error) && error.failure !== 'absent'
    if (isCertain || failures >= maxFailures) this.#markUnreliable(context, kind)
  }

  #markUnreliable(context: RequestContext, kind: ContentKind): void {
    this.#unreliableUntil.set(toKey(context, kind), this.#clock.monotonic() + unreliableMs)
  }

  #isUnreliable(context: RequestContext, kind: ContentKind): boolean {
    return this.#clock.monotonic() < (this.#unreliableUntil.get(toKey(context, kind)) ?? 0)
  }
}

const toKey = ({ host }: RequestContext, kind: ContentKind) => `${kind} ${host}`

/** Fills the gaps of a HEAD from the repository's grants. A size of 0 is a gap, because no manifest has 0 bytes. */
async function completeHead(context: RequestContext, head: ManifestHead, reference: Reference): Promise<ManifestHead> {
  const digest = reference.kind === 'digest' ? reference.digest : head.digest
  const known =
    digest && (await findForCaller(context, (repository, identity) => findManifestGrant(repository, digest, identity)))
  return {
    ...head,
    size: known?.size ?? (head.size || undefined),
    mediaType: isManifestType(head.mediaType) ? head.mediaType : (known?.mediaType ?? ''),
  }
}

/** Reports whether a HEAD has everything that a client reads from it. */
export function isCompleteHead({ digest, mediaType, size }: ManifestHead): boolean {
  return digest !== undefined && mediaType !== '' && size !== undefined
}

/** Reports whether the failure of a HEAD may mean that the upstream refuses the method. */
function mayRejectHead(error: unknown): error is UpstreamError {
  if (error instanceof TransientError) return error.isAnswer && error.failure !== 'limited'
  return isDefinite(error) || error instanceof RepeatedFailure
}

/** Reports whether the failure is not temporary. */
function isDefinite(error: unknown): error is UpstreamError {
  return error instanceof UpstreamError && ['absent', 'denied', 'invalid'].includes(error.failure)
}

/** Confirms a refused HEAD by a GET. A rate-limited GET confirms nothing: then this throws `refusal`, if it is given. */
async function confirmByGet<T>(refusal: UpstreamError | undefined, confirm: () => Promise<T>): Promise<T> {
  try {
    return await confirm()
  } catch (error) {
    throw refusal && error instanceof UpstreamError && error.failure === 'limited' ? refusal : error
  }
}

/** Starts the GET of a blob, reads its head, and drops the body. */
async function headBlobByGet(context: RequestContext, digest: Digest): Promise<BlobHead> {
  const access = await context.access()
  const open = (to: number | undefined) => context.upstream.blob(context.name, digest, { access, from: 0, to })
  let blob: FetchedBlob
  try {
    blob = await open(0)
  } catch (error) {
    // Some upstreams do not support ranges, and an empty blob has no byte 0.
    if (!(error instanceof UpstreamError) || error.failure !== 'invalid') throw error
    blob = await open(undefined)
  }
  await blob.body[Symbol.asyncIterator]().return?.()
  return { size: blob.size, identity: blob.identity }
}

function isEmpty(digest: Digest): boolean {
  return digest === computeDigest(new Uint8Array(), getDigestAlgorithm(digest))
}
