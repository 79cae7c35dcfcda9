import type { Digest } from '../oci/digest.ts'
import { changedCopy, type PushedChange, type PushedRepository } from '../store/pushed-repository.ts'

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
export function listPushedImages(repositories: Iterable<PushedRepository>): PushedImage[] {
  const images: PushedImage[] = []
  for (const repository of repositories) {
    const { name, tags, manifests } = repository
    const led = new Set<Digest>()
    for (const [tag, { digest, pushedAt }] of tags) {
      led.add(digest)
      images.push({ name: `${name}:${tag}`, digest, bytes: bytesOf(repository, digest), pushedAt })
    }
    for (const { links } of manifests.values()) for (const { digest } of links) led.add(digest)
    for (const [digest, { subject, pushedAt }] of manifests)
      if (!led.has(digest) && subject === undefined)
        images.push({ name: `${name}@${digest}`, digest, bytes: bytesOf(repository, digest), pushedAt })
  }
  return images.toSorted((a, b) => (a.name < b.name ? -1 : 1))
}

/**
 * The images that changes take away, by the names under which they are listed: one for a tag, and none for the manifests of
 * an index or for what is attached to an image.
 */
export function removedImages(repository: PushedRepository, changes: readonly PushedChange[]): string[] {
  const left = new Set(listedNames(changedCopy(repository, changes)))
  return listedNames(repository).filter((name) => !left.has(name))
}

function listedNames(repository: PushedRepository): string[] {
  return listPushedImages([repository]).map(({ name }) => name)
}

function bytesOf({ manifests, blobs }: PushedRepository, root: Digest): number {
  const contents = new Set([root])
  let bytes = 0
  // The set grows while it is walked, and never visits a digest twice.
  for (const digest of contents) {
    const manifest = manifests.get(digest)
    bytes += (manifest ?? blobs.get(digest))?.size ?? 0
    for (const link of manifest?.links ?? []) contents.add(link.digest)
  }
  return bytes
}
