import type { ManifestLink } from '../oci/descriptor.ts'
import { createDigester, digestAlgorithm, type Digest } from '../oci/digest.ts'
import { bodyBudget } from '../lib/memory-budget.ts'
import type { BlobStore, OpenBlob } from '../store/blob-store.ts'
import { knownLinks, linksOf } from './manifest-links.ts'
import { smallContent } from './small-contents.ts'

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

/** Bytes of memory for each byte of a manifest: itself, and what is read out of it. */
const weight = 2

export function storedManifest(blobs: Pick<BlobStore, 'open' | 'read'>, digest: Digest, size: number): StoredManifest {
  const use: StoredManifest['use'] = async (task) => {
    const reservation = await bodyBudget.reserve(weight * size)
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

/** Whether the disk has it, with the bytes of its digest (decision D2); one that is damaged is moved aside. */
export async function isStored(
  blobs: Pick<BlobStore, 'open' | 'quarantine'>,
  digest: Digest,
  size: number,
): Promise<boolean> {
  const blob = await blobs.open(digest, size)
  if (!blob) return false
  try {
    const digester = createDigester(digestAlgorithm(digest))
    const buffer = new Uint8Array(stepBytes)
    for (let at = 0; at < size;) {
      const count = await blob.read(buffer, at)
      if (count === 0) break
      digester.update(buffer.subarray(0, count))
      at += count
    }
    if (digester.digest() === digest) return true
  } finally {
    await blob.close()
  }
  await blobs.quarantine(digest)
  return false
}
