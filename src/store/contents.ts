import { fstat } from 'node:fs'
import { promisify } from 'node:util'
import { LRUCache } from 'lru-cache'
import { SingleFlight } from '../lib/async.ts'
import { upstreamBodies } from '../lib/body-memory.ts'
import { getCachedLinks, getManifestLinks, type SmallContent, toSmallContent } from '../oci/content.ts'
import { createDigester, type Digest, getDigestAlgorithm } from '../oci/reference.ts'
import type { OpenBlob, StoredManifest } from '../oci/registry.ts'
import type { BlobStore } from './blob-store.ts'

/** Estimates the overhead of a cache entry, bytes. */
const entryBytes = 256
/** Bytes of memory per byte of a manifest: the bytes themselves, and the parsed JSON. */
const bytesPerManifestByte = 2
const stepBytes = 256 * 1024

/** Caches in memory, by least recent use, stored manifests and configs, each verified when it is loaded (decision D2). */
export class SmallContents {
  readonly #blobs: Pick<BlobStore, 'read' | 'stat'>
  readonly #memory: LRUCache<Digest, SmallContent>

  constructor(blobs: Pick<BlobStore, 'read' | 'stat'>, memoryBytes: number) {
    this.#blobs = blobs
    this.#memory = new LRUCache({ maxSize: memoryBytes, sizeCalculation: ({ size }) => size + entryBytes })
  }

  /** Loads content of at most `limit` bytes from memory or disk. Content in memory may no longer be on disk. */
  async load(digest: Digest, limit: number): Promise<SmallContent | undefined> {
    const known = this.#memory.get(digest)
    if (known) return known
    const bytes = await this.#blobs.read(digest, limit)
    if (!bytes) return undefined
    const content = toSmallContent(bytes)
    this.set(digest, content)
    return content
  }

  /** Loads content that is still on disk with this size. */
  async loadStored(digest: Digest, size: number): Promise<SmallContent | undefined> {
    if ((await this.#blobs.stat(digest)) !== size) return undefined
    const content = await this.load(digest, size)
    return content?.size === size ? content : undefined
  }

  /** Returns content that is in memory. */
  get(digest: Digest): SmallContent | undefined {
    return this.#memory.get(digest)
  }

  set(digest: Digest, content: SmallContent): void {
    this.#memory.set(digest, content)
  }

  /** Drops all entries, so that content is read from disk again. */
  clear(): void {
    this.#memory.clear()
  }
}

const stat = promisify(fstat)

/** Creates the access to a large stored manifest, which reserves memory before it reads the manifest as a whole. */
export function openStoredManifest(
  blobs: Pick<BlobStore, 'open' | 'read'>,
  digest: Digest,
  size: number,
): StoredManifest {
  const use: StoredManifest['use'] = async (task) => {
    const reservation = await upstreamBodies.reserve(bytesPerManifestByte * size)
    try {
      const bytes = await blobs.read(digest, size)
      return bytes && (await task(bytes))
    } finally {
      reservation.release()
    }
  }
  return {
    open: () => blobs.open(digest, size),
    use,
    async links() {
      const known = getCachedLinks(digest)
      return known ?? (await use((bytes) => getManifestLinks(digest, toSmallContent(bytes)))) ?? []
    },
  }
}

/** Remembers files that this process has verified, by `identifyFile`. */
const soundFiles = new LRUCache<string, true>({ max: 10_000 })
const hashing = new SingleFlight<boolean>()

/**
 * Checks whether an intact blob of this digest is on disk (decision D2), and quarantines a damaged one. Hashes a file once until it is
 * replaced or changed; concurrent callers share the hashing.
 */
export async function isStored(
  blobs: Pick<BlobStore, 'open' | 'quarantine'>,
  digest: Digest,
  size: number,
): Promise<boolean> {
  const blob = await blobs.open(digest, size)
  if (!blob) return false
  let isOpen = true
  const close = async () => {
    if (isOpen) await blob.close()
    isOpen = false
  }
  try {
    const file = await identifyFile(blob)
    if (soundFiles.has(file)) return true
    const { result, joined } = hashing.run(file, async () => {
      if (!(await isIntact(blob, digest))) {
        await blobs.quarantine(blob)
        return false
      }
      // Do not record a file that was changed meanwhile, because both versions may have been read in part.
      if ((await identifyFile(blob)) === file) soundFiles.set(file, true)
      return true
    })
    // Close the descriptor early, because a caller that only waits needs none.
    if (joined) await close()
    return await result
  } finally {
    await close()
  }
}

/** Returns a key of a file and its content, which differs after each change of the file. */
async function identifyFile({ digest, fd }: OpenBlob): Promise<string> {
  const { dev, ino, size, mtimeNs, ctimeNs } = await stat(fd, { bigint: true })
  return [digest, dev, ino, size, mtimeNs, ctimeNs].join(' ')
}

/** Hashes a blob in steps, between which the event loop runs. */
async function isIntact(blob: OpenBlob, digest: Digest): Promise<boolean> {
  const digester = createDigester(getDigestAlgorithm(digest))
  const buffer = new Uint8Array(Math.min(stepBytes, blob.size))
  for (let at = 0; at < blob.size;) {
    const count = await blob.read(buffer, at)
    if (count === 0) break
    digester.update(buffer.subarray(0, count))
    at += count
  }
  return digester.digest() === digest
}
