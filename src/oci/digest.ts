import { createHash } from 'node:crypto'

export type DigestAlgorithm = 'sha256' | 'sha512'

declare const brand: unique symbol
/** `sha256:<64 hex>` or `sha512:<128 hex>` in lower case. Only `parseDigest` and `Digester` create one. */
export type Digest = `${DigestAlgorithm}:${string}` & { readonly [brand]: true }

const hexLength: Record<string, number> = { sha256: 64, sha512: 128 }

/**
 * Parses a sha256 or sha512 digest; undefined for any other text.
 * https://github.com/opencontainers/image-spec/blob/v1.1.1/descriptor.md#digests
 */
export function parseDigest(text: string): Digest | undefined {
  const colon = text.indexOf(':')
  const length = hexLength[text.slice(0, colon)]
  if (length === undefined || text.length !== colon + 1 + length) return undefined
  for (let at = colon + 1; at < text.length; at++) {
    const code = text.charCodeAt(at)
    if (!((code >= 48 && code <= 57) || (code >= 97 && code <= 102))) return undefined
  }
  return text as Digest
}

/** Returns the algorithm of a digest. */
export function digestAlgorithm(digest: Digest): DigestAlgorithm {
  return digest.slice(0, digest.indexOf(':')) as DigestAlgorithm
}

/** Returns the hexadecimal part of a digest, which is safe as a file name. */
export function digestHex(digest: Digest): string {
  return digest.slice(digest.indexOf(':') + 1)
}

/** Hashes bytes as they arrive. */
export interface Digester {
  update(chunk: Uint8Array): void
  /** Returns the digest of all bytes so far. No further calls are allowed. */
  digest(): Digest
}

/** Creates a digester. */
export function createDigester(algorithm: DigestAlgorithm): Digester {
  const hash = createHash(algorithm)
  return {
    update: (chunk) => void hash.update(chunk),
    digest: () => `${algorithm}:${hash.digest('hex')}` as Digest,
  }
}

/** Computes the digest of bytes in memory. */
export function computeDigest(bytes: Uint8Array, algorithm: DigestAlgorithm = 'sha256'): Digest {
  const digester = createDigester(algorithm)
  digester.update(bytes)
  return digester.digest()
}
