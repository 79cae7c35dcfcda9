import { isObject, readJsonObject } from '../lib/json.ts'
import { mediaType } from './content.ts'
import { type Digest, getDigestAlgorithm, getDigestHex } from './reference.ts'
import { OciError } from './errors.ts'
import { isSamePage } from './headers.ts'
import type { Page } from './route.ts'

const maxPageSize = 1000

/**
 * Returns one page of a sorted list, at most 1000 entries: `n` entries after `last`, and the query of the next page if there is one.
 * Throws an OciError (400) when `n` is not a number.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-tags
 */
export function paginate(
  sorted: readonly string[],
  page: Pick<Page, 'n' | 'last'>,
): { readonly entries: string[]; readonly next: string | undefined } {
  if (page.n !== undefined && !/^\d+$/.test(page.n))
    throw new OciError('UNSUPPORTED', 400, 'The query parameter n is not a number.')
  const limit = page.n === undefined ? sorted.length : Math.min(Number(page.n), maxPageSize)
  const { last } = page
  const rest = last === undefined ? sorted : sorted.filter((entry) => entry > last)
  const entries = rest.slice(0, limit)
  const more = limit > 0 && rest.length > entries.length
  return { entries, next: more ? `n=${limit}&last=${encodeURIComponent(entries.at(-1)!)}` : undefined }
}

/**
 * Returns the tag under which registries without the referrers API keep the list of an image's referrers.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#referrers-tag-schema
 */
export function toReferrersTag(digest: Digest): string {
  return `${getDigestAlgorithm(digest).slice(0, 32)}-${getDigestHex(digest).slice(0, 64)}`
}

/** Creates an image index of these descriptors; only those with the artifact type, when one is given. */
export function createReferrersIndex(
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
 * Parses an upstream's list of tags and replaces the repository name by the mirror's; undefined for any other content. Unknown members
 * are kept.
 */
export async function readTagsList(bytes: Uint8Array, name: string): Promise<Uint8Array<ArrayBuffer> | undefined> {
  const list = await readJsonObject(bytes)
  if (!list) return undefined
  const tags = list['tags'] ?? []
  const isList = 'tags' in list && Array.isArray(tags) && tags.every((tag) => typeof tag === 'string')
  return isList ? encode({ ...list, name, tags }) : undefined
}

/** Parses an upstream's list of referrers; undefined for any other content. The entries are kept unchanged. */
export async function readReferrersIndex(
  bytes: Uint8Array,
): Promise<{ readonly manifests: readonly unknown[]; readonly bytes: Uint8Array<ArrayBuffer> } | undefined> {
  const index = await readJsonObject(bytes)
  if (!index) return undefined
  const manifests: unknown = index['manifests'] ?? []
  if (!('manifests' in index) || !Array.isArray(manifests)) return undefined
  return { manifests, bytes: encode({ ...index, schemaVersion: 2, mediaType: mediaType.ociIndex, manifests }) }
}

/** Returns the query of the next page, unless it is the requested page: the client would never reach the end. */
export function dropRepeatedPage(asked: string, next: string | undefined): string | undefined {
  return next !== undefined && isSamePage(asked, next) ? undefined : next
}

function encode(value: Record<string, unknown>): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(JSON.stringify(value))
}
