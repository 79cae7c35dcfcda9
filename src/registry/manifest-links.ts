import { LRUCache } from 'lru-cache'
import { isObject, readJsonObject } from '../lib/json.ts'
import type { ManifestLink } from '../oci/descriptor.ts'
import { type Digest, parseDigest } from '../oci/digest.ts'
import { hasIndexMembers, presentMembers } from '../oci/manifest-members.ts'
import { bareMediaType, isManifestType, mediaType } from '../oci/media-types.ts'
import { bytesOf, type SmallContent } from './small-contents.ts'

/** What a registry has to know of a manifest. Everything else in it is its clients' business. */
export interface ManifestOutline {
  /** The type to serve it with: the upstream's, or the manifest's own where the upstream's says nothing. */
  readonly mediaType: string
  readonly links: readonly ManifestLink[]
}

export type OutlineProblem = 'not-a-manifest' | 'schema1'

/**
 * Reads a manifest or index of any current kind.
 * https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md, …/image-index.md, Docker's v2 types alike.
 */
export async function outlineManifest(
  bytes: Uint8Array,
  contentType: string,
): Promise<ManifestOutline | OutlineProblem> {
  const all = await readJsonObject(bytes)
  if (!all) return 'not-a-manifest'
  const json = presentMembers(all)
  if (json['schemaVersion'] === 1 || 'fsLayers' in json) return 'schema1'
  if (json['schemaVersion'] !== 2 && !('mediaType' in json)) return 'not-a-manifest'

  const links: ManifestLink[] = []
  const add = (kind: ManifestLink['kind'], list: unknown) => {
    for (const entry of Array.isArray(list) ? list : []) {
      const link = linkOf(kind, entry)
      if (link) links.push(link)
    }
  }
  add('manifest', json['manifests'])
  add('blob', [json['config']])
  add('blob', json['layers'])
  add('blob', json['blobs'])
  return { mediaType: typeOf(all, contentType), links }
}

const known = new LRUCache<Digest, readonly ManifestLink[]>({
  maxSize: 50_000,
  sizeCalculation: (links) => links.length + 1,
})

/** What a manifest names. A digest names its content for ever, so that a manifest that is pulled often is read once. */
export async function linksOf(digest: Digest, content: SmallContent): Promise<readonly ManifestLink[]> {
  let links = known.get(digest)
  if (links === undefined) {
    const outline = await outlineManifest(bytesOf(content), '')
    links = typeof outline === 'string' ? [] : outline.links
    known.set(digest, links)
  }
  return links
}

/** What a manifest names, if it was read not long ago. */
export function knownLinks(digest: Digest): readonly ManifestLink[] | undefined {
  return known.get(digest)
}

function linkOf(kind: ManifestLink['kind'], entry: unknown): ManifestLink | undefined {
  if (!isObject(entry)) return undefined
  const { digest: text, size, mediaType: type } = entry
  const digest = typeof text === 'string' ? parseDigest(text) : undefined
  if (!digest || typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0) return undefined
  return { kind, digest, size, mediaType: isShort(type) ? type : mediaType.octetStream }
}

/** Whether it may be a media type. https://www.rfc-editor.org/rfc/rfc6838#section-4.2 */
function isShort(type: unknown): type is string {
  return typeof type === 'string' && type.length <= 255
}

/** Upstreams that store manifests as plain files send them as `application/json` or worse, `text/html` among it. */
function typeOf(json: Record<string, unknown>, contentType: string): string {
  const sent = bareMediaType(contentType)
  if (sent.startsWith('application/vnd.') && isManifestType(sent)) return sent
  const own = json['mediaType']
  if (typeof own === 'string' && isManifestType(own)) return own
  return hasIndexMembers(json, undefined) ? mediaType.ociIndex : mediaType.ociManifest
}
