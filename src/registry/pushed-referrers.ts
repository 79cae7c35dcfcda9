import type { Digest } from '../oci/digest.ts'
import { largestManifest } from '../oci/largest-manifest.ts'
import { mediaType } from '../oci/media-types.ts'
import type { Page } from '../oci/route.ts'
import type { PushedManifest, PushedRepository } from '../store/pushed-repository.ts'
import { pageOf } from './listings.ts'

/** A referrer as an index lists it. https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-referrers */
export interface ReferrerEntry {
  readonly mediaType: string
  readonly digest: Digest
  readonly size: number
  readonly artifactType?: string
  readonly annotations?: Readonly<Record<string, string>>
}

/** Bytes of a page's entries: clients take no index beyond the size of a manifest. */
const largestBody = largestManifest - 64 * 1024
const longestPage = 1000

export function referrerEntry(digest: Digest, manifest: PushedManifest): ReferrerEntry {
  const { size, artifactType, annotations } = manifest
  return {
    mediaType: manifest.mediaType,
    digest,
    size,
    ...(artifactType === undefined ? {} : { artifactType }),
    ...(annotations === undefined ? {} : { annotations }),
  }
}

/** One page of what refers to a manifest, by digest, of one artifact type if one is given; and the query of the next. */
export function pageOfReferrers(
  repository: PushedRepository | undefined,
  subject: Digest,
  artifactType: string | undefined,
  page: Pick<Page, 'n' | 'last'>,
): { readonly entries: ReferrerEntry[]; readonly next: string | undefined } {
  const all = new Map<string, ReferrerEntry>()
  for (const [digest, manifest] of repository?.manifests ?? [])
    if (manifest.subject === subject && (artifactType === undefined || manifest.artifactType === artifactType))
      all.set(digest, referrerEntry(digest, manifest))
  const wanted = { n: page.n ?? String(longestPage), last: page.last }
  const { entries: digests, next } = pageOf([...all.keys()].toSorted(), wanted)
  const entries: ReferrerEntry[] = []
  let bytes = 0
  for (const digest of digests) {
    const entry = all.get(digest)!
    bytes += JSON.stringify(entry).length + 1
    if (bytes > largestBody && entries.length > 0) break
    entries.push(entry)
  }
  const last = entries.at(-1)?.digest
  const isCut = entries.length < digests.length
  if (last === undefined || (next === undefined && !isCut)) return { entries, next: undefined }
  const type = artifactType === undefined ? '' : `&artifactType=${encodeURIComponent(artifactType)}`
  return { entries, next: `n=${wanted.n}&last=${encodeURIComponent(last)}${type}` }
}

/** A client's own list of referrers with one entry changed; undefined when it is none, or says so already. */
export function changeReferrersList(
  bytes: Uint8Array,
  digest: Digest,
  entry: ReferrerEntry | undefined,
): Uint8Array<ArrayBuffer> | undefined {
  const index = JSON.parse(new TextDecoder().decode(bytes)) as { mediaType?: unknown; manifests?: unknown }
  const list = index.manifests ?? []
  if (!Array.isArray(list)) return undefined
  const entries = list as { digest?: unknown }[]
  const has = entries.some((other) => other.digest === digest)
  if (has === (entry !== undefined)) return undefined
  const manifests = entry ? [...entries, entry] : entries.filter((other) => other.digest !== digest)
  return new TextEncoder().encode(JSON.stringify({ ...index, mediaType: mediaType.ociIndex, manifests }))
}
