import { createDigester, type Digest, type DigestAlgorithm } from '../oci/digest.ts'
import type { HashPool } from '../store/hashing.ts'

/** Hashes what arrives, in order. */
export interface IntakeHash {
  /** `storedUpTo`: the size of the file with these bytes; undefined where it does not have them. */
  take(bytes: Uint8Array, storedUpTo: number | undefined): void
  /** Takes what the file has by now. Only where a thread reads it. */
  advance(size: number): void
  /** The digest of everything; the hash is used up. */
  digest(): Promise<Digest>
  /** Resolves when the file is not used any more. */
  close(): Promise<void>
}

/** On this thread: for what is hashed sooner than another thread wakes. */
export function hashHere(algorithm: DigestAlgorithm): IntakeHash {
  const digester = createDigester(algorithm)
  return {
    take: (bytes) => digester.update(bytes),
    advance() {
      throw new Error('nobody reads the file here')
    },
    digest: () => Promise.resolve(digester.digest()),
    close: () => Promise.resolve(),
  }
}

/** On a thread of its own, which reads the file as it grows. */
export function hashInThread(
  hashes: Pick<HashPool, 'follow'>,
  algorithm: DigestAlgorithm,
  descriptor: number,
): IntakeHash {
  const hash = hashes.follow(algorithm, descriptor)
  return {
    take(bytes, storedUpTo) {
      if (storedUpTo === undefined) hash.append(bytes)
      else hash.advance(storedUpTo)
    },
    advance: (size) => hash.advance(size),
    digest: () => hash.digest(),
    close: () => hash.close(),
  }
}
