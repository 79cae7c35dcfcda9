import { isObject, readJsonObject } from '../lib/json.ts'
import { mediaType } from './content.ts'
import { type Digest, digestAlgorithm, digestHex } from './digest.ts'
import { OciError } from './errors.ts'
import { isSamePage } from './headers.ts'
import type { Page } from './route.ts'

const maxPageSize = 1000

/**
 * One page of a sorted list: `n` entries after `last`, and the query of the next page if there is one.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-tags
 */
export function pageOf(
  sorted: readonly string[],
  page: Pick<Page, 'n' | 'last'>,
): { readonly entries: string[]; readonly next: string | undefined } {
  if (page.n !== undefined && !/^\d+$/.test(page.n))
    throw new OciError('UNSUPPORTED', 400, 'The parameter n is not a number of entries.')
  const limit = page.n === undefined ? sorted.length : Math.min(Number(page.n), maxPageSize)
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
      : manifests.filter((entry) => isObject(entry) && entry['artifactType'] === artifactType)
  return new TextEncoder().encode(JSON.stringify({ schemaVersion: 2, mediaType: mediaType.ociIndex, manifests: kept }))
}

/**
 * A list of tags as an upstream sent it, under the name that its repository has here; undefined for what is none. Members that
 * the specification does not know are kept.
 */
export async function readTagsList(bytes: Uint8Array, name: string): Promise<Uint8Array<ArrayBuffer> | undefined> {
  const list = await readJsonObject(bytes)
  if (!list) return undefined
  const tags = list['tags'] ?? []
  const isList = 'tags' in list && Array.isArray(tags) && tags.every((tag) => typeof tag === 'string')
  return isList ? encode({ ...list, name, tags }) : undefined
}

/** A list of referrers as an upstream sent it; undefined for what is none. All that its entries say is kept. */
export async function readReferrersIndex(
  bytes: Uint8Array,
): Promise<{ readonly manifests: readonly unknown[]; readonly bytes: Uint8Array<ArrayBuffer> } | undefined> {
  const index = await readJsonObject(bytes)
  if (!index) return undefined
  const manifests: unknown = index['manifests'] ?? []
  if (!('manifests' in index) || !Array.isArray(manifests)) return undefined
  return { manifests, bytes: encode({ ...index, schemaVersion: 2, mediaType: mediaType.ociIndex, manifests }) }
}

/** The query of the next page, unless it is the page that was asked for: a client would never come to the end. */
export function nextUnlessSame(asked: string, next: string | undefined): string | undefined {
  return next !== undefined && isSamePage(asked, next) ? undefined : next
}

function encode(value: Record<string, unknown>): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(JSON.stringify(value))
}
