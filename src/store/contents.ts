import { fstat } from 'node:fs'
import { promisify } from 'node:util'
import { LRUCache } from 'lru-cache'
import { SingleFlight } from '../lib/async.ts'
import { upstreamBodies } from '../lib/body-memory.ts'
import { knownLinks, linksOf, type ManifestLink } from '../oci/content.ts'
import { createDigester, type Digest, digestAlgorithm } from '../oci/digest.ts'
import { smallContent } from '../registry/small-contents.ts'
import type { BlobStore, OpenBlob } from './blob-store.ts'

/**
 * A manifest that is too large to lie in memory for every client that takes it. It leaves from the disk as a blob does, and is
 * read as a whole only within the memory for bodies.
 */
export interface StoredManifest {
  /** Undefined when it has gone in the meantime. */
  open(): Promise<OpenBlob | undefined>
  /** Reads all of it for as long as it is used; undefined when it has gone. Throws a BudgetError. */
  use<T>(task: (bytes: Uint8Array<ArrayBuffer>) => Promise<T>): Promise<T | undefined>
  /** What it names. Throws a BudgetError. */
  links(): Promise<readonly ManifestLink[]>
}

const stat = promisify(fstat)

/** Bytes of memory for each byte of a manifest: itself, and what is read out of it. */
const weight = 2

export function storedManifest(blobs: Pick<BlobStore, 'open' | 'read'>, digest: Digest, size: number): StoredManifest {
  const use: StoredManifest['use'] = async (task) => {
    const reservation = await upstreamBodies.reserve(weight * size)
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
      const known = knownLinks(digest)
      return known ?? (await use((bytes) => linksOf(digest, smallContent(bytes)))) ?? []
    },
  }
}

const stepBytes = 256 * 1024
/** Files that this process has hashed and found right; see `fileOf`. */
const sound = new LRUCache<string, true>({ max: 10_000 })
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
    const file = await fileOf(blob)
    if (sound.has(file)) return true
    const { result, joined } = hashing.run(file, async () => {
      if (!(await hashesTo(blob, digest))) {
        await blobs.quarantine(blob)
        return false
      }
      // What was changed while it was read may have been read half and half.
      if ((await fileOf(blob)) === file) sound.set(file, true)
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
async function fileOf({ digest, fd }: OpenBlob): Promise<string> {
  const { dev, ino, size, mtimeNs, ctimeNs } = await stat(fd, { bigint: true })
  return [digest, dev, ino, size, mtimeNs, ctimeNs].join(' ')
}

/** Reads step by step: everything else goes on in between. */
async function hashesTo(blob: OpenBlob, digest: Digest): Promise<boolean> {
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
