import { computeDigest, type Digest } from '../../../src/oci/reference.ts'
import { anonymousIdentity } from '../../../src/oci/registry.ts'
import { type ManifestRecord, ManifestRecords, type RepositoryRecord } from '../../../src/store/records.ts'

/** Returns a digest that stands for a name. */
export function digestFor(name: string): Digest {
  return computeDigest(Buffer.from(name))
}

export function emptyRecord(name = 'library/app', host = 'docker.io'): RepositoryRecord {
  return { host, name, tags: new Map(), manifests: new ManifestRecords(), blobs: new Map(), referrers: new Map() }
}

/** Adds a manifest, whose digest stands for the name, with its children, blobs and tags. */
export function addManifest(
  record: RepositoryRecord,
  name: string,
  content: { tags?: string[]; manifests?: string[]; blobs?: string[]; usedAt?: number },
): ManifestRecord {
  const link = (kind: 'manifest' | 'blob') => (child: string) => ({
    kind,
    mediaType: 'application/octet-stream',
    digest: digestFor(child),
    size: 1,
  })
  const manifest: ManifestRecord = {
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    size: 1,
    identity: anonymousIdentity,
    links: [...(content.manifests ?? []).map(link('manifest')), ...(content.blobs ?? []).map(link('blob'))],
    pulls: 0,
    lastPulled: 0,
    usedAt: content.usedAt ?? 0,
  }
  record.manifests.set(digestFor(name), manifest)
  for (const tag of content.tags ?? [])
    record.tags.set(tag, {
      digest: digestFor(name),
      identity: anonymousIdentity,
      checkedAt: 0,
      pulls: 0,
      lastPulled: 0,
    })
  return manifest
}

/** Converts the sizes of published blobs by name to sizes by digest. */
export function sizesOf(sizes: Record<string, number>): Map<Digest, number> {
  return new Map(Object.entries(sizes).map(([name, size]) => [digestFor(name), size]))
}
