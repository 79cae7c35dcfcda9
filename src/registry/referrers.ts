import { isObject, readJsonObject } from '../lib/json.ts'
import { artifactTypeKey, largestManifest, mediaType, presentMembers, type ReadManifest } from '../oci/content.ts'
import type { Digest } from '../oci/digest.ts'
import { pageOf } from '../oci/lists.ts'
import type { Page } from '../oci/route.ts'
import type { PushedManifest, PushedRepository } from './repository.ts'

/** A referrer as an index lists it. https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-referrers */
export interface ReferrerEntry {
  readonly mediaType: string
  readonly digest: Digest
  readonly size: number
  readonly artifactType?: string
  readonly annotations?: Readonly<Record<string, string>>
}

/** Bytes of a page's entries: clients take no index beyond the size of a manifest. */
const maxPageBytes = largestManifest - 64 * 1024
const maxPageEntries = 1000

/** `size`: of the manifest, in bytes. */
export function toReferrerEntry(
  digest: Digest,
  size: number,
  { mediaType: type, artifactType, annotations }: DescribedManifest,
): ReferrerEntry {
  return {
    mediaType: type,
    digest,
    size,
    ...(artifactType === undefined ? {} : { artifactType }),
    ...(annotations === undefined ? {} : { annotations }),
  }
}

/** What an entry takes from its manifest. */
type DescribedManifest = Pick<ReadManifest, 'mediaType' | 'artifactType' | 'annotations'>

interface ReferrersQuery {
  readonly subject: Digest
  readonly artifactType: string | undefined
  readonly page: Pick<Page, 'n' | 'last'>
}

/**
 * One page of what refers to a manifest, by digest, of one artifact type if one is given; and the query of the next. `read` gives
 * the bytes of a manifest: its annotations stand there. They are read one after the other until the page is full.
 */
export async function listReferrers(
  repository: PushedRepository | undefined,
  { subject, artifactType, page }: ReferrersQuery,
  read: (digest: Digest, size: number) => Promise<Uint8Array | undefined>,
): Promise<{ readonly index: Uint8Array<ArrayBuffer>; readonly next: string | undefined }> {
  const key = artifactType === undefined ? undefined : artifactTypeKey(artifactType)
  const all = new Map<string, PushedManifest>()
  for (const [digest, manifest] of repository?.manifests ?? [])
    if (manifest.subject === subject && (key === undefined || manifest.artifactType === key)) all.set(digest, manifest)
  const wanted = { n: page.n ?? String(maxPageEntries), last: page.last }
  const { entries: digests, next } = pageOf([...all.keys()].toSorted(), wanted)
  const entries: string[] = []
  let last: string | undefined
  let bytes = 0
  let bytesRead = 0
  for (const digest of digests as Digest[]) {
    const manifest = all.get(digest)!
    bytesRead += manifest.size
    if (bytesRead > maxPageBytes && entries.length > 0) break
    const entry = JSON.stringify(await readEntry(digest, manifest, read))
    bytes += Buffer.byteLength(entry) + 1
    if (bytes > maxPageBytes && entries.length > 0) break
    entries.push(entry)
    last = digest
  }
  const index = formatIndex(entries)
  const isCut = entries.length < digests.length
  if (last === undefined || (next === undefined && !isCut)) return { index, next: undefined }
  const type = artifactType === undefined ? '' : `&artifactType=${encodeURIComponent(artifactType)}`
  return { index, next: `n=${wanted.n}&last=${encodeURIComponent(last)}${type}` }
}

/** A referrer whose manifest cannot be read is listed without what stands in it. */
async function readEntry(
  digest: Digest,
  manifest: PushedManifest,
  read: (digest: Digest, size: number) => Promise<Uint8Array | undefined>,
): Promise<ReferrerEntry> {
  const { mediaType: type, size, artifactType } = manifest
  const bytes = await read(digest, size)
  const known = { mediaType: type, artifactType, annotations: undefined }
  return toReferrerEntry(digest, size, (bytes && (await readDescription(bytes, type))) ?? known)
}

/** What an entry takes from a manifest that was checked when it was pushed. */
async function readDescription(bytes: Uint8Array, type: string): Promise<DescribedManifest | undefined> {
  const all = await readJsonObject(bytes)
  if (!all) return undefined
  const { artifactType: own, config, annotations } = presentMembers(all)
  const configType = isObject(config) ? config['mediaType'] : undefined
  const ofConfig =
    config === undefined ? undefined : typeof configType === 'string' ? configType : mediaType.octetStream
  return {
    mediaType: type,
    artifactType: typeof own === 'string' && own !== '' ? own : ofConfig,
    annotations: isObject(annotations) ? (presentMembers(annotations) as Record<string, string>) : undefined,
  }
}

/** An image index of entries in JSON. */
function formatIndex(entries: readonly string[]): Uint8Array<ArrayBuffer> {
  const empty = JSON.stringify({ schemaVersion: 2, mediaType: mediaType.ociIndex, manifests: [] })
  return new TextEncoder().encode(`${empty.slice(0, -2)}${entries.join(',')}]}`)
}

/** A client's own list of referrers with one entry changed; undefined when it is none that can be read, or says so already. */
export async function changeReferrersList(
  bytes: Uint8Array,
  digest: Digest,
  entry: ReferrerEntry | undefined,
): Promise<Uint8Array<ArrayBuffer> | undefined> {
  const index = await readJsonObject(bytes)
  const list = index?.['manifests'] ?? []
  if (!index || !Array.isArray(list)) return undefined
  const entries = list as { digest?: unknown }[]
  const has = entries.some((other) => other.digest === digest)
  if (has === (entry !== undefined)) return undefined
  const manifests = entry ? [...entries, entry] : entries.filter((other) => other.digest !== digest)
  return new TextEncoder().encode(JSON.stringify({ ...index, mediaType: mediaType.ociIndex, manifests }))
}
