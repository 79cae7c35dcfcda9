import type { Digest } from '../oci/digest.ts'
import { isForeignLayer } from '../oci/content.ts'
import { anonymousIdentity, type RepositoryRecord } from '../store/records.ts'

/**
 * An upstream's word that a repository holds some content (decision D5: having the bytes is not a right to serve them).
 * It comes from a manifest of that repository that names the content, or from an answer about the content itself.
 */
export interface Word {
  readonly identity: string
  readonly size: number
  /** Of a manifest; of a blob whatever its descriptor says. */
  readonly mediaType: string | undefined
}

/** Whether a word counts for this identity: it was given to nobody in particular, or to the same credential. */
export function isGoodFor(word: { readonly identity: string }, identity: string): boolean {
  return word.identity === anonymousIdentity || word.identity === identity
}

/** The word a repository's record holds on a blob, good for this identity. A manifest is a blob too. */
export function findWord(record: RepositoryRecord | undefined, digest: Digest, identity: string): Word | undefined {
  if (!record) return undefined
  const manifest = record.manifests.get(digest)
  if (manifest && isGoodFor(manifest, identity)) return manifest
  const blob = record.blobs.get(digest)
  if (blob && isGoodFor(blob, identity)) return { identity: blob.identity, size: blob.size, mediaType: undefined }
  for (const parent of record.manifests.values()) {
    if (!isGoodFor(parent, identity)) continue
    const link = parent.links.find((link) => link.digest === digest && !isForeignLayer(link.mediaType))
    if (link) return { identity: parent.identity, size: link.size, mediaType: link.mediaType }
  }
  return undefined
}

/** The word a repository's record holds on a manifest: a layer's digest is no manifest, whoever asks for it as one. */
export function findManifestWord(
  record: RepositoryRecord | undefined,
  digest: Digest,
  identity: string,
): (Word & { readonly mediaType: string }) | undefined {
  if (!record) return undefined
  const manifest = record.manifests.get(digest)
  if (manifest && isGoodFor(manifest, identity)) return manifest
  for (const parent of record.manifests.values()) {
    const link =
      isGoodFor(parent, identity) && parent.links.find((link) => link.kind === 'manifest' && link.digest === digest)
    if (link) return { identity: parent.identity, size: link.size, mediaType: link.mediaType }
  }
  return undefined
}

/** Whose word stands when a second one comes: nobody's in particular is the better one, for it is good for everybody. */
export function betterIdentity(known: string | undefined, learned: string): string {
  return known === anonymousIdentity ? known : learned
}

/** Takes back what one identity was told: the upstream has refused it. True when that changed the record. */
export function revokeWord(record: RepositoryRecord, identity: string): boolean {
  if (identity === anonymousIdentity) return false
  let changed = false
  const { tags, manifests, blobs, referrers } = record
  for (const entries of [tags, manifests, blobs, referrers] as Map<string, { identity: string }>[]) {
    for (const [key, entry] of entries) {
      if (entry.identity === identity) changed = entries.delete(key) || changed
    }
  }
  return changed
}
