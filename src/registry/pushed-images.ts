import type { Digest } from '../oci/digest.ts'
import type { PushedChange, PushedRepository } from './repository.ts'
import { mayNameManifests, type StoredLinks } from './images.ts'

/** Something a user would call an image. */
export interface PushedImage {
  /** `app:1.2`, or `app@sha256:…` of one without a tag. */
  readonly name: string
  readonly digest: Digest
  /** Of all it is made of; what images share is counted for each. */
  readonly bytes: number
  /** Wall clock ms. */
  readonly pushedAt: number
}

/** What was pushed, one image a tag, and those without one that no other names or is referred to by. Sorted by name. */
export async function listPushedImages(
  repositories: Iterable<PushedRepository>,
  links: StoredLinks,
): Promise<PushedImage[]> {
  const images: PushedImage[] = []
  for (const repository of repositories) {
    const { name, tags, manifests } = repository
    /** Images may have many tags. */
    const sizes = new Map<Digest, number>()
    const sizeOf = async (digest: Digest) => {
      const bytes = sizes.get(digest) ?? (await bytesOf(repository, digest, links))
      sizes.set(digest, bytes)
      return bytes
    }
    for (const [tag, { digest, pushedAt }] of tags)
      images.push({ name: `${name}:${tag}`, digest, bytes: await sizeOf(digest), pushedAt })
    const led = await digestsLedTo(repository, links)
    for (const [digest, { subject, pushedAt }] of manifests)
      if (!led.has(digest) && subject === undefined)
        images.push({ name: `${name}@${digest}`, digest, bytes: await sizeOf(digest), pushedAt })
  }
  return images.toSorted((a, b) => (a.name < b.name ? -1 : 1))
}

/**
 * The images that changes have taken away from the repository as it was `before`, by the names under which they were listed: one
 * for a tag, and none for the manifests of an index or for what is attached to an image.
 */
export async function removedImages(
  before: PushedRepository,
  changes: readonly PushedChange[],
  links: StoredLinks,
): Promise<string[]> {
  const { name, tags, manifests } = before
  const names: string[] = []
  const dropped: Digest[] = []
  for (const change of changes) {
    if (change.op === 'untag' && tags.has(change.tag)) names.push(`${name}:${change.tag}`)
    const isManifest = change.op === 'drop-manifest' && manifests.get(change.digest)
    if (isManifest && isManifest.subject === undefined) dropped.push(change.digest)
  }
  if (dropped.length === 0) return names
  const led = await digestsLedTo(before, links)
  return [...names, ...dropped.filter((digest) => !led.has(digest)).map((digest) => `${name}@${digest}`)]
}

/** The manifests that have a tag, or that another one names. */
async function digestsLedTo({ tags, manifests }: PushedRepository, links: StoredLinks): Promise<Set<Digest>> {
  const led = new Set(Array.from(tags.values(), ({ digest }) => digest))
  for (const [digest, manifest] of manifests) {
    if (!mayNameManifests(manifest)) continue
    for (const link of (await links.read(digest)) ?? []) if (manifests.has(link)) led.add(link)
  }
  return led
}

async function bytesOf({ manifests, blobs }: PushedRepository, root: Digest, links: StoredLinks): Promise<number> {
  const contents = new Set([root])
  let bytes = 0
  // The set grows while it is walked, and never visits a digest twice.
  for (const digest of contents) {
    const manifest = manifests.get(digest)
    bytes += (manifest ?? blobs.get(digest))?.size ?? 0
    for (const link of (manifest && (await links.read(digest))) ?? []) contents.add(link)
  }
  return bytes
}
