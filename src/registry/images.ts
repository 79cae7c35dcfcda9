import { LRUCache } from 'lru-cache'
import { isObject, readJsonObject } from '../lib/json.ts'
import { imageTypes, maxManifestBytes } from '../oci/content.ts'
import { type Digest, parseDigest } from '../oci/reference.ts'
import type { BlobStore } from '../store/blob-store.ts'
import type { Manifest, Operation } from '../metadata/metadata.ts'
import type { PushedRepository } from './repositories.ts'

/** Describes an image of the local registry. */
export interface PushedImage {
  /** Names the image as `app:1.2`, or as `app@sha256:…` without a tag. */
  readonly name: string
  readonly digest: Digest
  /** Counts the bytes of all its content; content that images share counts for each of them. */
  readonly bytes: number
  /** Gives the wall-clock time, ms. */
  readonly pushedAt: number
}

/** Lists the pushed images: one per tag, and each untagged manifest that no other names and that is no referrer. Sorted by name. */
export async function listPushedImages(
  repositories: Iterable<PushedRepository>,
  links: StoredLinks,
): Promise<PushedImage[]> {
  const images: PushedImage[] = []
  for (const repository of repositories) {
    const { name, tags, manifests } = repository
    // Compute the size once, because an image may have many tags.
    const sizes = new Map<Digest, number>()
    const getSize = async (digest: Digest) => {
      const bytes = sizes.get(digest) ?? (await computeImageSize(repository, digest, links))
      sizes.set(digest, bytes)
      return bytes
    }
    for (const [tag, { digest, updatedAt }] of tags)
      images.push({ name: `${name}:${tag}`, digest, bytes: await getSize(digest), pushedAt: updatedAt })
    const referenced = await findReferencedManifests(repository, links)
    for (const [digest, { subject, updatedAt }] of manifests)
      if (!referenced.has(digest) && subject === undefined)
        images.push({ name: `${name}@${digest}`, digest, bytes: await getSize(digest), pushedAt: updatedAt })
  }
  return images.toSorted((a, b) => (a.name < b.name ? -1 : 1))
}

/**
 * Finds the images that operations remove from the repository, which must not have been applied: one per tag, and none for the manifests of
 * an index or for referrers. The result returns their names, also when the operations have been applied meanwhile.
 */
export function findRemovedImages(
  { name, tags, manifests }: PushedRepository,
  operations: readonly Operation[],
): (links: StoredLinks) => Promise<string[]> {
  const names: string[] = []
  const dropped = new Set<Digest>()
  for (const operation of operations) {
    if (operation.op === 'untag' && tags.has(operation.tag)) names.push(`${name}:${operation.tag}`)
    const manifest = operation.op === 'drop-manifest' && manifests.get(operation.digest)
    if (manifest && manifest.subject === undefined) dropped.add(operation.digest)
  }
  const parents: Digest[] = []
  if (dropped.size > 0) {
    for (const { digest } of tags.values()) dropped.delete(digest)
    for (const [digest, manifest] of manifests) if (mayNameManifests(manifest)) parents.push(digest)
  }
  return async (links) => {
    if (dropped.size > 0)
      for (const parent of parents) for (const link of (await links.read(parent)) ?? []) dropped.delete(link)
    return [...names, ...Array.from(dropped, (digest) => `${name}@${digest}`)]
  }
}

/** Finds the manifests that have a tag, or that another manifest names. */
async function findReferencedManifests(
  { tags, manifests }: PushedRepository,
  links: StoredLinks,
): Promise<Set<Digest>> {
  const referenced = new Set(Array.from(tags.values(), ({ digest }) => digest))
  for (const [digest, manifest] of manifests) {
    if (!mayNameManifests(manifest)) continue
    for (const link of (await links.read(digest)) ?? []) if (manifests.has(link)) referenced.add(link)
  }
  return referenced
}

async function computeImageSize(
  { manifests, blobs }: PushedRepository,
  root: Digest,
  links: StoredLinks,
): Promise<number> {
  const contents = new Set([root])
  let bytes = 0
  // Extend the set while it is walked: it never visits a digest twice.
  for (const digest of contents) {
    const manifest = manifests.get(digest)
    bytes += (manifest ?? blobs.get(digest))?.size ?? 0
    for (const link of (manifest && (await links.read(digest))) ?? []) contents.add(link)
  }
  return bytes
}

/**
 * Reads the links of pushed manifests from their bytes, one manifest at a time, because the records do not have them. Caches the
 * links of the most recently read manifests.
 */
export class StoredLinks {
  readonly #blobs: Pick<BlobStore, 'read'>
  readonly #known = new LRUCache<Digest, readonly Digest[]>({
    maxSize: 50_000,
    sizeCalculation: (links) => links.length + 1,
  })

  constructor(blobs: Pick<BlobStore, 'read'>) {
    this.#blobs = blobs
  }

  /** Reads the digests that a manifest names; undefined when it cannot be read. */
  async read(manifest: Digest): Promise<readonly Digest[] | undefined> {
    const known = this.#known.get(manifest)
    if (known) return known
    const bytes = await this.#blobs.read(manifest, maxManifestBytes)
    const links = bytes && (await parseLinks(bytes))
    if (links) this.#known.set(manifest, links)
    return links
  }
}

/** Parses the digests that a manifest names; undefined when the bytes are no JSON object. */
async function parseLinks(bytes: Uint8Array): Promise<Digest[] | undefined> {
  const json = await readJsonObject(bytes)
  if (!json) return undefined
  const links: Digest[] = []
  for (const list of [json['manifests'], [json['config']], json['layers'], json['blobs']]) {
    for (const entry of Array.isArray(list) ? list : []) {
      const text: unknown = isObject(entry) ? entry['digest'] : undefined
      const digest = typeof text === 'string' ? parseDigest(text) : undefined
      if (digest) links.push(digest)
    }
  }
  return links
}

/** Reports whether a manifest may name other manifests. */
function mayNameManifests({ mediaType: type }: Manifest): boolean {
  return !imageTypes.includes(type)
}

interface ManifestMarkerOptions {
  readonly links: StoredLinks
  /** Is called with each digest that a marked manifest names. Without it only manifests that may name others are read. */
  readonly onLink?: (digest: Digest) => void
}

/**
 * Marks the manifests that are reachable from roots: those that they name, their referrers (signatures, SBOMs), and so on. The
 * repository may change meanwhile, so the caller repeats `findUnmarked` and `mark` until nothing is unmarked.
 */
export class ManifestMarker {
  readonly marked = new Set<Digest>()
  readonly #repository: PushedRepository
  readonly #options: ManifestMarkerOptions
  #isIncomplete = false

  constructor(repository: PushedRepository, options: ManifestMarkerOptions) {
    this.#repository = repository
    this.#options = options
  }

  /** Is true when a marked manifest could not be read, so that more manifests may be reachable. */
  get isIncomplete(): boolean {
    return this.#isIncomplete
  }

  /** Finds the unmarked ones among the roots, their referrers, and the referrers of marked manifests. */
  findUnmarked(roots: Iterable<Digest>): Digest[] {
    const { manifests } = this.#repository
    const found = new Set<Digest>()
    for (const root of roots) if (manifests.has(root) && !this.marked.has(root)) found.add(root)
    const addReferrers = (subject: Digest) => {
      for (const referrer of this.#repository.getReferrers(subject)) if (!this.marked.has(referrer)) found.add(referrer)
    }
    for (const digest of this.marked) addReferrers(digest)
    // Extend the set while it is walked: it never visits a digest twice.
    for (const digest of found) addReferrers(digest)
    return [...found]
  }

  /** Marks these manifests and those that they name. */
  async mark(digests: Iterable<Digest>): Promise<void> {
    const { manifests } = this.#repository
    const { links, onLink } = this.#options
    const queue = [...digests]
    for (const digest of queue) this.marked.add(digest)
    for (let digest = queue.pop(); digest !== undefined; digest = queue.pop()) {
      const manifest = manifests.get(digest)
      if (!manifest || (!onLink && !mayNameManifests(manifest))) continue
      const named = await links.read(digest)
      if (!named && manifests.has(digest)) this.#isIncomplete = true
      for (const link of named ?? []) {
        onLink?.(link)
        if (!manifests.has(link) || this.marked.has(link)) continue
        this.marked.add(link)
        queue.push(link)
      }
    }
  }
}
