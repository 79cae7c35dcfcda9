import { LRUCache } from 'lru-cache'
import type { Clock } from '../lib/time.ts'
import { isManifestType } from '../oci/content.ts'
import { type Digest, digestAlgorithm, digestOf } from '../oci/digest.ts'
import type { Reference } from '../oci/reference.ts'
import { RepeatedFailure, TransientError } from '../upstream/retry.ts'
import { type BlobHead, type FetchedBlob, type ManifestHead, UpstreamError } from '../upstream/upstream.ts'
import { findGranted, findManifestGrant, type RequestContext } from './grants.ts'
import type { HeldManifest, ManifestCache } from './manifests.ts'

/** What an upstream says of a manifest: its head, or the manifest itself where only a GET tells. */
export type ManifestHeadResult =
  | { readonly kind: 'head'; readonly head: ManifestHead }
  | { readonly kind: 'fetched'; readonly manifest: HeldManifest; readonly joined: boolean }

/** How long an upstream whose HEAD is of no use is asked by GET alone. */
const distrustMs = 10 * 60_000
/** HEADs in a row that failed where the GET did not: the first one may have met a moment's trouble. */
const failuresToDistrust = 2

type Content = 'manifests' | 'blobs'

/**
 * Questions by HEAD, and by GET where a HEAD is of no use.
 *
 * Some registries refuse every HEAD, and answer the GET of the same content. So one GET confirms a HEAD's "no", and such an
 * upstream is asked by GET for the next ten minutes. Docker Hub counts the GET of a manifest as a pull, and a HEAD as nothing:
 * no manifest is asked for by GET before a HEAD has failed, and a limit is never answered by a GET.
 */
export class Heads {
  /** Monotonic ms. */
  readonly #distrustedUntil = new LRUCache<string, number>({ max: 1000 })
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
  async manifest(context: RequestContext, reference: Reference, isHeld: boolean): Promise<ManifestHeadResult> {
    if (this.#isDistrusted(context, 'manifests')) return this.#fetch(context, reference)
    let head: ManifestHead
    try {
      head = await context.upstream.resolve(context.name, reference, { access: await context.access() })
    } catch (error) {
      if (!isRefusal(error)) throw error
      const fetched = await preferring(isHeld ? undefined : error, () => this.#fetch(context, reference))
      this.#wasWrong(context, 'manifests', error)
      return fetched
    }
    this.#failures.delete(keyOf(context, 'manifests'))
    return { kind: 'head', head: await described(context, head, reference) }
  }

  /** Throws the UpstreamError of the GET where a HEAD was refused. */
  async blob(context: RequestContext, digest: Digest): Promise<BlobHead> {
    if (this.#isDistrusted(context, 'blobs')) return openBlob(context, digest)
    try {
      const { size, identity } = await context.upstream.statBlob(context.name, digest, {
        access: await context.access(),
      })
      this.#failures.delete(keyOf(context, 'blobs'))
      return { size: size === 0 && !isEmpty(digest) ? undefined : size, identity }
    } catch (error) {
      if (!isRefusal(error)) throw error
      const head = await preferring(error, () => openBlob(context, digest))
      this.#wasWrong(context, 'blobs', error)
      return head
    }
  }

  /** A HEAD named one digest, and the GET after it another. The tag has moved in between, or the HEAD is wrong: asks again. */
  async checkDigest(context: RequestContext, tag: string, named: Digest): Promise<void> {
    try {
      const again = await context.upstream.resolve(
        context.name,
        { kind: 'tag', tag },
        { access: await context.access() },
      )
      if (again.digest === named) this.#distrust(context, 'manifests')
    } catch (error) {
      if (!(error instanceof UpstreamError)) throw error
    }
  }

  async #fetch(context: RequestContext, reference: Reference): Promise<ManifestHeadResult> {
    const { result, joined } = await this.#manifests.fetch(context, reference)
    return { kind: 'fetched', manifest: await result, joined }
  }

  /** A HEAD failed, and the GET after it did not. */
  #wasWrong(context: RequestContext, content: Content, error: UpstreamError): void {
    const key = keyOf(context, content)
    const failures = (this.#failures.get(key) ?? 0) + 1
    this.#failures.set(key, failures)
    // A tag may have been pushed between the HEAD and the GET.
    const isClear = isFinal(error) && error.failure !== 'absent'
    if (isClear || failures >= failuresToDistrust) this.#distrust(context, content)
  }

  #distrust(context: RequestContext, content: Content): void {
    this.#distrustedUntil.set(keyOf(context, content), this.#clock.monotonic() + distrustMs)
  }

  #isDistrusted(context: RequestContext, content: Content): boolean {
    return this.#clock.monotonic() < (this.#distrustedUntil.get(keyOf(context, content)) ?? 0)
  }
}

const keyOf = ({ host }: RequestContext, content: Content) => `${content} ${host}`

/** A head with what is known better: the descriptor in a manifest of this repository. No manifest has 0 bytes. */
async function described(context: RequestContext, head: ManifestHead, reference: Reference): Promise<ManifestHead> {
  const digest = reference.kind === 'digest' ? reference.digest : head.digest
  const known =
    digest && (await findGranted(context, (record, identity) => findManifestGrant(record, digest, identity)))
  return {
    ...head,
    size: known?.size ?? (head.size || undefined),
    mediaType: isManifestType(head.mediaType) ? head.mediaType : (known?.mediaType ?? ''),
  }
}

/** Whether a HEAD says all that a client may want to know of a manifest. */
export function isComplete({ digest, mediaType, size }: ManifestHead): boolean {
  return digest !== undefined && mediaType !== '' && size !== undefined
}

/** Whether an upstream answered a HEAD with what may only be its "no" to the method. */
function isRefusal(error: unknown): error is UpstreamError {
  if (error instanceof TransientError) return error.isAnswer && error.failure !== 'limited'
  return isFinal(error) || error instanceof RepeatedFailure
}

/** Whether the answer was no accident of the moment. */
function isFinal(error: unknown): error is UpstreamError {
  return error instanceof UpstreamError && ['absent', 'denied', 'invalid'].includes(error.failure)
}

/** Confirms a refusal. An upstream that limits the GET says nothing new: then `refusal` stands, if it is given. */
async function preferring<T>(refusal: UpstreamError | undefined, confirm: () => Promise<T>): Promise<T> {
  try {
    return await confirm()
  } catch (error) {
    throw refusal && error instanceof UpstreamError && error.failure === 'limited' ? refusal : error
  }
}

/** Begins to fetch a blob, which tells that it is there, and how long it is. */
async function openBlob(context: RequestContext, digest: Digest): Promise<BlobHead> {
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
