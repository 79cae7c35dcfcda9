import type { Digest } from '../oci/digest.ts'
import { digestAlgorithm, digestHex } from '../oci/digest.ts'
import { OciError } from '../oci/errors.ts'
import { mediaType } from '../oci/media-types.ts'
import type { Page } from '../oci/route.ts'

const largestPage = 1000

/**
 * One page of a sorted list: `n` entries after `last`, and the query of the next page if there is one.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-tags
 */
export function pageOf(
  sorted: readonly string[],
  page: Page,
): { readonly entries: string[]; readonly next: string | undefined } {
  if (page.n !== undefined && !/^\d+$/.test(page.n))
    throw new OciError('UNSUPPORTED', 400, 'The parameter n is not a number of entries.')
  const limit = page.n === undefined ? sorted.length : Math.min(Number(page.n), largestPage)
  const { last } = page
  const rest = last === undefined ? sorted : sorted.filter((entry) => entry > last)
  const entries = rest.slice(0, limit)
  const more = limit > 0 && rest.length > entries.length
  return { entries, next: more ? `n=${limit}&last=${encodeURIComponent(entries.at(-1)!)}` : undefined }
}

/**
 * The tag under which registries without the referrers API keep the list of an image's referrers.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#referrers-tag-schema
 */
export function referrersTag(digest: Digest): string {
  return `${digestAlgorithm(digest).slice(0, 32)}-${digestHex(digest).slice(0, 64)}`
}

/** An image index that lists these descriptors; of one artifact type only, when one is given. */
export function referrersIndex(
  manifests: readonly unknown[],
  artifactType: string | undefined,
): Uint8Array<ArrayBuffer> {
  const kept =
    artifactType === undefined
      ? manifests
      : manifests.filter(
          (entry) =>
            typeof entry === 'object' &&
            entry !== null &&
            'artifactType' in entry &&
            entry.artifactType === artifactType,
        )
  return new TextEncoder().encode(JSON.stringify({ schemaVersion: 2, mediaType: mediaType.ociIndex, manifests: kept }))
}
