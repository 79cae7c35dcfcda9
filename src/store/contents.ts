import { fstat } from 'node:fs'
import { promisify } from 'node:util'
import { LRUCache } from 'lru-cache'
import { SingleFlight } from '../lib/async.ts'
import { upstreamBodies } from '../lib/body-memory.ts'
import { getCachedLinks, linksOf, type SmallContent, smallContent } from '../oci/content.ts'
import { createDigester, type Digest, digestAlgorithm } from '../oci/digest.ts'
import type { OpenBlob, StoredManifest } from '../oci/registry.ts'
import type { BlobStore } from './blob-store.ts'

/** What an entry costs besides its bytes. */
const entryBytes = 256

/** Stored manifests and configs that were asked for of late, in memory: bounded, and each hashed when it was loaded (decision D2). */
export class SmallContents {
  readonly #blobs: Pick<BlobStore, 'read' | 'stat'>
  readonly #memory: LRUCache<Digest, SmallContent>

  constructor(blobs: Pick<BlobStore, 'read' | 'stat'>, memoryBytes: number) {
    this.#blobs = blobs
    this.#memory = new LRUCache({ maxSize: memoryBytes, sizeCalculation: ({ size }) => size + entryBytes })
  }

  /** Stored content of at most so many bytes, whether or not the disk still has it: it is what it was. */
  async load(digest: Digest, limit: number): Promise<SmallContent | undefined> {
    const known = this.#memory.get(digest)
    if (known) return known
    const bytes = await this.#blobs.read(digest, limit)
    if (!bytes) return undefined
    const content = smallContent(bytes)
    this.set(digest, content)
    return content
  }

  /** The same of content that must still be stored with this size. */
  async loadStored(digest: Digest, size: number): Promise<SmallContent | undefined> {
    if ((await this.#blobs.stat(digest)) !== size) return undefined
    const content = await this.load(digest, size)
    return content?.size === size ? content : undefined
  }

  /** What is in memory now. */
  get(digest: Digest): SmallContent | undefined {
    return this.#memory.get(digest)
  }

  set(digest: Digest, content: SmallContent): void {
    this.#memory.set(digest, content)
  }

  /** Drops everything, so that the disk is asked again. */
  clear(): void {
    this.#memory.clear()
  }
}

const stat = promisify(fstat)

/** Bytes of memory for each byte of a manifest: itself, and what is read out of it. */
const bytesPerManifestByte = 2

export function storedManifest(blobs: Pick<BlobStore, 'open' | 'read'>, digest: Digest, size: number): StoredManifest {
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
      return known ?? (await use((bytes) => linksOf(digest, smallContent(bytes)))) ?? []
    },
  }
}

const stepBytes = 256 * 1024
/** Files that this process has hashed and found right; see `identifyFile`. */
const soundFiles = new LRUCache<string, true>({ max: 10_000 })
const hashing = new SingleFlight<boolean>()

/**
 * Whether the disk has it, with the bytes of its digest (decision D2); one that is damaged is moved aside. A file is hashed once,
 * until it is replaced or changed; callers that ask meanwhile share that.
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
      // What was changed while it was read may have been read half and half.
      if ((await identifyFile(blob)) === file) soundFiles.set(file, true)
      return true
    })
    // A caller that only waits needs no descriptor.
    if (joined) await close()
    return await result
  } finally {
    await close()
  }
}

/** Identifies a file and its content: the text is another one after each change. */
async function identifyFile({ digest, fd }: OpenBlob): Promise<string> {
  const { dev, ino, size, mtimeNs, ctimeNs } = await stat(fd, { bigint: true })
  return [digest, dev, ino, size, mtimeNs, ctimeNs].join(' ')
}

/** Reads step by step: everything else goes on in between. */
async function isIntact(blob: OpenBlob, digest: Digest): Promise<boolean> {
  const digester = createDigester(digestAlgorithm(digest))
  const buffer = new Uint8Array(Math.min(stepBytes, blob.size))
  for (let at = 0; at < blob.size;) {
    const count = await blob.read(buffer, at)
    if (count === 0) break
    digester.update(buffer.subarray(0, count))
    at += count
  }
  return digester.digest() === digest
}
