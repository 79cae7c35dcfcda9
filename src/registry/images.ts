import { LRUCache } from 'lru-cache'
import { isObject, readJsonObject } from '../lib/json.ts'
import { imageTypes, maxManifestBytes } from '../oci/content.ts'
import { type Digest, parseDigest } from '../oci/reference.ts'
import type { BlobStore } from '../store/blob-store.ts'
import type { PushedChange, PushedManifest, PushedRepository } from './repository.ts'

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
    for (const [tag, { digest, pushedAt }] of tags)
      images.push({ name: `${name}:${tag}`, digest, bytes: await getSize(digest), pushedAt })
    const referenced = await findReferencedManifests(repository, links)
    for (const [digest, { subject, pushedAt }] of manifests)
      if (!referenced.has(digest) && subject === undefined)
        images.push({ name: `${name}@${digest}`, digest, bytes: await getSize(digest), pushedAt })
  }
  return images.toSorted((a, b) => (a.name < b.name ? -1 : 1))
}

/**
 * Returns the names of the images that `changes` remove from the repository as it was `before`: one per tag, and none for the
 * manifests of an index or for referrers.
 */
export async function getRemovedImageNames(
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
  const referenced = await findReferencedManifests(before, links)
  return [...names, ...dropped.filter((digest) => !referenced.has(digest)).map((digest) => `${name}@${digest}`)]
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
function mayNameManifests({ mediaType: type }: PushedManifest): boolean {
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
    const referrers = new Map<Digest, Digest[]>()
    for (const [digest, { subject }] of manifests) {
      if (subject === undefined || this.marked.has(digest)) continue
      if (this.marked.has(subject)) found.add(digest)
      const others = referrers.get(subject)
      if (others) others.push(digest)
      else referrers.set(subject, [digest])
    }
    // Extend the set while it is walked: it never visits a digest twice.
    for (const digest of found) for (const referrer of referrers.get(digest) ?? []) found.add(referrer)
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
