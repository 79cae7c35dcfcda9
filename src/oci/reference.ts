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
export function getDigestAlgorithm(digest: Digest): DigestAlgorithm {
  return digest.slice(0, digest.indexOf(':')) as DigestAlgorithm
}

/** Returns the hexadecimal part of a digest, which is safe as a file name. */
export function getDigestHex(digest: Digest): string {
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

const tagPattern = /^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$/
const hostLabel = /^[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?$/

/** Limits the characters of a repository name. Clients allow 255 for the name together with its registry. */
const maxNameLength = 255

/**
 * Checks whether the text is a repository name.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pulling-manifests
 */
export function isRepositoryName(text: string): boolean {
  if (text.length === 0 || text.length > maxNameLength) return false
  // Allow one separator between letters and digits: a slash, a dot, one or two underscores, or any number of hyphens.
  let separator = '/'
  for (let at = 0; at < text.length; at++) {
    const character = text[at]!
    if (isLowerAlphanumeric(character)) separator = ''
    else if (separator === '' && isSeparator(character)) separator = character
    else if (separator === '_' && character === '_') separator = '__'
    else if (separator !== '-' || character !== '-') return false
  }
  return separator === ''
}

function isSeparator(character: string): boolean {
  return character === '/' || character === '.' || character === '_' || character === '-'
}

function isLowerAlphanumeric(character: string): boolean {
  return (character >= 'a' && character <= 'z') || (character >= '0' && character <= '9')
}

/** Checks whether the text is a tag. */
export function isTag(text: string): boolean {
  return tagPattern.test(text)
}

/**
 * Parses a registry's `host` or `host:port` into lower case: a DNS name, an IPv4 address or a bracketed IPv6 address. Undefined for any
 * other text, such as one with a scheme, user info or a path.
 */
export function parseRegistryHost(text: string): string | undefined {
  const match = /^(\[[0-9a-fA-F:.]+\]|[^:[\]/@?#%\s]+)(?::(\d{1,5}))?$/.exec(text)
  if (!match || text.length > 255) return undefined
  const [, host, port] = match
  if (port !== undefined && (Number(port) < 1 || Number(port) > 65_535)) return undefined
  if (!host!.startsWith('[') && !host!.split('.').every((label) => label.length <= 63 && hostLabel.test(label)))
    return undefined
  return text.toLowerCase()
}

/**
 * Checks whether a first path segment names a registry rather than a part of a repository: it has a dot or a port, or is `localhost`.
 * All clients' reference parsers use this rule.
 */
export function looksLikeRegistry(segment: string): boolean {
  return segment === 'localhost' || segment.includes('.') || segment.includes(':')
}

/** Formats the mirror.yaml setting that mirrors registries: `upstreams: {ghcr.io: {}}`. Quotes names where YAML needs it. */
export function formatUpstreamSetting(...hosts: string[]): string {
  const keys = hosts.map((host) => (/^[a-z0-9.-]+$/.test(host) ? host : `'${host}'`))
  return `upstreams: {${keys.map((key) => `${key}: {}`).join(', ')}}`
}

/** Holds the last segment of a `/manifests/` URL: a mutable tag or an immutable digest. */
export type Reference =
  | { readonly kind: 'tag'; readonly tag: string }
  | { readonly kind: 'digest'; readonly digest: Digest }

/** Parses a tag or a digest; undefined for any other text. */
export function parseReference(text: string): Reference | undefined {
  if (text.includes(':')) {
    const digest = parseDigest(text)
    return digest && { kind: 'digest', digest }
  }
  return isTag(text) ? { kind: 'tag', tag: text } : undefined
}

/** Returns the reference as it appears in a URL. */
export function formatReference(reference: Reference): string {
  return reference.kind === 'tag' ? reference.tag : reference.digest
}

/** Returns the name of a registry in image references: `docker.io` for each host name of Docker Hub. */
export function toCanonicalRegistry(host: string): string {
  return host === 'index.docker.io' || host === 'registry-1.docker.io' ? 'docker.io' : host
}

/** Returns the base URL of a registry, without a trailing slash. Docker Hub's name (`docker.io`) is not its host. */
export function toRegistryUrl(registry: string): string {
  return registry === 'docker.io' ? 'https://registry-1.docker.io' : `https://${registry}`
}
