import { mediaType } from './media-types.ts'

type Members = Readonly<Record<string, unknown>>

/** The media types of an index. */
export const indexTypes: readonly string[] = [mediaType.ociIndex, mediaType.dockerList]

/** The media types of an image's manifest, which names no other manifest. */
export const imageTypes: readonly string[] = [mediaType.ociManifest, mediaType.dockerManifest]

/** The members of an object without those that are null. Go and other languages write null for what is not there. */
export function presentMembers(object: Members): Record<string, unknown> {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== null))
}

/**
 * Whether a manifest is an index by its members. `type`: what it is said to be, if anybody says so: it tells an index without
 * children, whose `manifests` may be null, from something else that has that member.
 */
export function hasIndexMembers(json: Members, type: string | undefined): boolean {
  if (!('manifests' in json)) return false
  if (json['manifests'] !== null) return true
  if (type !== undefined) return indexTypes.includes(type)
  return ['config', 'layers', 'blobs'].every((name) => (json[name] ?? null) === null)
}
