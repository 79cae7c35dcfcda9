import { LRUCache } from 'lru-cache'
import type { Clock } from '../lib/time.ts'
import { isManifestType } from '../oci/content.ts'
import { type Digest, digestAlgorithm, digestOf } from '../oci/digest.ts'
import type { Reference } from '../oci/reference.ts'
import { RepeatedFailure, TransientError } from '../upstream/retry.ts'
import { type BlobHead, type FetchedBlob, type ManifestHead, UpstreamError } from '../upstream/upstream.ts'
import { findForCaller, findManifestGrant, type RequestContext } from './grants.ts'
import type { CachedManifest, ManifestCache } from './manifests.ts'

/** What an upstream says of a manifest: its head, or the manifest itself where only a GET tells. */
export type ManifestHeadResult =
  | { readonly kind: 'head'; readonly head: ManifestHead }
  | { readonly kind: 'fetched'; readonly manifest: CachedManifest; readonly joined: boolean }

/** How long an upstream whose HEAD is of no use is asked by GET alone. */
const unreliableMs = 10 * 60_000
/** HEADs in a row that failed where the GET did not: the first one may have met a moment's trouble. */
const maxFailures = 2

type ContentKind = 'manifests' | 'blobs'

/**
 * Questions by HEAD, and by GET where a HEAD is of no use.
 *
 * Some registries refuse every HEAD, and answer the GET of the same content. So one GET confirms a HEAD's "no", and such an
 * upstream is asked by GET for the next ten minutes. Docker Hub counts the GET of a manifest as a pull, and a HEAD as nothing:
 * no manifest is asked for by GET before a HEAD has failed, and a limit is never answered by a GET.
 */
export class HeadRequests {
  /** Monotonic ms. */
  readonly #unreliableUntil = new LRUCache<string, number>({ max: 1000 })
  /** HEADs in a row that failed where the GET did not. */
  readonly #failures = new LRUCache<string, number>({ max: 1000 })
  readonly #manifests: Pick<ManifestCache, 'fetch'>
  readonly #clock: Clock

  constructor(manifests: Pick<ManifestCache, 'fetch'>, clock: Clock) {
    this.#manifests = manifests
    this.#clock = clock
  }

  /**
   * Throws the UpstreamError of the GET where a HEAD was refused. `isHeld`: a copy is at hand, so that an upstream that limits the
   * GET has not confirmed anything.
   */
  async headManifest(context: RequestContext, reference: Reference, isHeld: boolean): Promise<ManifestHeadResult> {
    if (this.#isUnreliable(context, 'manifests')) return this.#fetchManifest(context, reference)
    let head: ManifestHead
    try {
      head = await context.upstream.resolve(context.name, reference, { access: await context.access() })
    } catch (error) {
      if (!mayRejectHead(error)) throw error
      const fetched = await confirmByGet(isHeld ? undefined : error, () => this.#fetchManifest(context, reference))
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

  /** A HEAD named one digest, and the GET after it another. The tag has moved in between, or the HEAD is wrong: asks again. */
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

  /** A HEAD failed, and the GET after it did not. */
  #recordFailure(context: RequestContext, content: ContentKind, error: UpstreamError): void {
    const key = toKey(context, content)
    const failures = (this.#failures.get(key) ?? 0) + 1
    this.#failures.set(key, failures)
    // A tag may have been pushed between the HEAD and the GET.
    const isClear = isDefinite(error) && error.failure !== 'absent'
    if (isClear || failures >= maxFailures) this.#markUnreliable(context, content)
  }

  #markUnreliable(context: RequestContext, content: ContentKind): void {
    this.#unreliableUntil.set(toKey(context, content), this.#clock.monotonic() + unreliableMs)
  }

  #isUnreliable(context: RequestContext, content: ContentKind): boolean {
    return this.#clock.monotonic() < (this.#unreliableUntil.get(toKey(context, content)) ?? 0)
  }
}

const toKey = ({ host }: RequestContext, content: ContentKind) => `${content} ${host}`

/** A head with what is known better: the descriptor in a manifest of this repository. No manifest has 0 bytes. */
async function completeHead(context: RequestContext, head: ManifestHead, reference: Reference): Promise<ManifestHead> {
  const digest = reference.kind === 'digest' ? reference.digest : head.digest
  const known =
    digest && (await findForCaller(context, (record, identity) => findManifestGrant(record, digest, identity)))
  return {
    ...head,
    size: known?.size ?? (head.size || undefined),
    mediaType: isManifestType(head.mediaType) ? head.mediaType : (known?.mediaType ?? ''),
  }
}

/** Whether a HEAD says all that a client may want to know of a manifest. */
export function isCompleteHead({ digest, mediaType, size }: ManifestHead): boolean {
  return digest !== undefined && mediaType !== '' && size !== undefined
}

/** Whether an upstream answered a HEAD with what may only be its "no" to the method. */
function mayRejectHead(error: unknown): error is UpstreamError {
  if (error instanceof TransientError) return error.isAnswer && error.failure !== 'limited'
  return isDefinite(error) || error instanceof RepeatedFailure
}

/** Whether the answer was no accident of the moment. */
function isDefinite(error: unknown): error is UpstreamError {
  return error instanceof UpstreamError && ['absent', 'denied', 'invalid'].includes(error.failure)
}

/** Confirms a refusal. An upstream that limits the GET says nothing new: then `refusal` stands, if it is given. */
async function confirmByGet<T>(refusal: UpstreamError | undefined, confirm: () => Promise<T>): Promise<T> {
  try {
    return await confirm()
  } catch (error) {
    throw refusal && error instanceof UpstreamError && error.failure === 'limited' ? refusal : error
  }
}

/** Begins to fetch a blob, which tells that it is there, and how long it is. */
async function headBlobByGet(context: RequestContext, digest: Digest): Promise<BlobHead> {
  const access = await context.access()
  const ask = (to: number | undefined) => context.upstream.blob(context.name, digest, { access, from: 0, to })
  let blob: FetchedBlob
  try {
    blob = await ask(0)
  } catch (error) {
    // Some know no ranges, and a blob without a byte has none.
    if (!(error instanceof UpstreamError) || error.failure !== 'invalid') throw error
    blob = await ask(undefined)
  }
  await blob.body[Symbol.asyncIterator]().return?.()
  return { size: blob.size, identity: blob.identity }
}

function isEmpty(digest: Digest): boolean {
  return digest === digestOf(new Uint8Array(), digestAlgorithm(digest))
}
