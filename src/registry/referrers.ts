import { LRUCache } from 'lru-cache'
import { isObject, readJsonObject } from '../lib/json.ts'
import { toArtifactTypeKey, maxManifestBytes, mediaType, dropNullMembers, type ReadManifest } from '../oci/content.ts'
import type { Digest } from '../oci/reference.ts'
import { paginate } from '../oci/lists.ts'
import type { Page } from '../oci/route.ts'
import type { Manifest } from '../metadata/metadata.ts'
import type { PushedRepository } from './repositories.ts'

/**
 * Is a descriptor in a list of referrers.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-referrers
 */
export interface ReferrerEntry {
  readonly mediaType: string
  readonly digest: Digest
  readonly size: number
  readonly artifactType?: string
  readonly annotations?: Readonly<Record<string, string>>
}

/** Limits the bytes of a page's entries, because clients refuse an index that is larger than a manifest. */
const maxPageBytes = maxManifestBytes - 64 * 1024
const maxPageEntries = 1000

/** Converts a manifest to its descriptor. `size`: bytes of the manifest. */
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

/** Picks the members of a manifest that its descriptor has as well. */
type DescribedManifest = Pick<ReadManifest, 'mediaType' | 'artifactType' | 'annotations'>

interface ReferrersQuery {
  readonly subject: Digest
  readonly artifactType: string | undefined
  readonly page: Pick<Page, 'n' | 'last'>
}

/** Limits the memory for descriptors, and of a single one, in UTF-16 code units. */
const [cachedLength, maxCachedLength] = [2 * 1024 * 1024, 64 * 1024]

/** Lists the referrers of manifests. Caches descriptors, because their annotations are only in the manifests themselves. */
export class ReferrersLists {
  readonly #entries = new LRUCache<string, string>({
    maxSize: cachedLength,
    maxEntrySize: maxCachedLength,
    sizeCalculation: (entry, key) => entry.length + key.length,
  })

  /**
   * Lists one page of the referrers of a manifest, sorted by digest and filtered by the artifact type if one is given. Returns the
   * index, and the query of the next page. `read` returns the bytes of a manifest, which have the annotations; manifests are read
   * one after the other until the page is full.
   */
  async list(
    repository: PushedRepository | undefined,
    { subject, artifactType, page }: ReferrersQuery,
    read: ReadManifestBytes,
  ): Promise<{ readonly index: Uint8Array<ArrayBuffer>; readonly next: string | undefined }> {
    const key = artifactType === undefined ? undefined : toArtifactTypeKey(artifactType)
    const all = new Map<string, Manifest>()
    for (const digest of repository?.getReferrers(subject) ?? []) {
      const manifest = repository!.manifests.get(digest)
      if (manifest && (key === undefined || manifest.artifactType === key)) all.set(digest, manifest)
    }
    const pageQuery = { n: page.n ?? String(maxPageEntries), last: page.last }
    const { entries: digests, next } = paginate([...all.keys()].toSorted(), pageQuery)
    const entries: string[] = []
    let last: string | undefined
    let bytes = 0
    let bytesRead = 0
    for (const digest of digests as Digest[]) {
      const manifest = all.get(digest)!
      const cacheKey = `${digest} ${manifest.mediaType}`
      const known = this.#entries.get(cacheKey)
      if (known === undefined) bytesRead += manifest.size
      if (bytesRead > maxPageBytes && entries.length > 0) break
      const { entry, isComplete } =
        known === undefined ? await readEntry(digest, manifest, read) : { entry: known, isComplete: false }
      if (isComplete) this.#entries.set(cacheKey, entry)
      bytes += Buffer.byteLength(entry) + 1
      if (bytes > maxPageBytes && entries.length > 0) break
      entries.push(entry)
      last = digest
    }
    const index = formatIndex(entries)
    const isCut = entries.length < digests.length
    if (last === undefined || (next === undefined && !isCut)) return { index, next: undefined }
    const type = artifactType === undefined ? '' : `&artifactType=${encodeURIComponent(artifactType)}`
    return { index, next: `n=${pageQuery.n}&last=${encodeURIComponent(last)}${type}` }
  }
}

type ReadManifestBytes = (digest: Digest, size: number) => Promise<Uint8Array | undefined>

/** Reads the descriptor of a referrer, as JSON; without annotations, and not complete, if its manifest cannot be read. */
async function readEntry(
  digest: Digest,
  manifest: Manifest,
  read: ReadManifestBytes,
): Promise<{ readonly entry: string; readonly isComplete: boolean }> {
  const { mediaType: type, size, artifactType } = manifest
  const bytes = await read(digest, size)
  const description = bytes && (await readDescription(bytes, type))
  const known = description ?? { mediaType: type, artifactType, annotations: undefined }
  return { entry: JSON.stringify(toReferrerEntry(digest, size, known)), isComplete: description !== undefined }
}

/** Reads the members for a descriptor from a manifest that was validated when it was pushed. */
async function readDescription(bytes: Uint8Array, type: string): Promise<DescribedManifest | undefined> {
  const all = await readJsonObject(bytes)
  if (!all) return undefined
  const { artifactType: ownArtifactType, config, annotations } = dropNullMembers(all)
  const configType = isObject(config) ? config['mediaType'] : undefined
  const configArtifactType =
    config === undefined ? undefined : typeof configType === 'string' ? configType : mediaType.octetStream
  return {
    mediaType: type,
    artifactType: typeof ownArtifactType === 'string' && ownArtifactType !== '' ? ownArtifactType : configArtifactType,
    annotations: isObject(annotations) ? (dropNullMembers(annotations) as Record<string, string>) : undefined,
  }
}

/** Formats an image index of descriptors that are JSON already. */
function formatIndex(entries: readonly string[]): Uint8Array<ArrayBuffer> {
  const empty = JSON.stringify({ schemaVersion: 2, mediaType: mediaType.ociIndex, manifests: [] })
  return new TextEncoder().encode(`${empty.slice(0, -2)}${entries.join(',')}]}`)
}

/**
 * Adds an entry to a list of referrers that a client has pushed, or removes the digest if there is no entry. Returns undefined
 * when nothing changes, or when the bytes are not such a list.
 */
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
