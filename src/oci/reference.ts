import { type Digest, parseDigest } from './digest.ts'

const tagPattern = /^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$/
const hostLabel = /^[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?$/

/** Longest repository name accepted: with its registry it must fit the 255 characters clients allow. */
const maxNameLength = 255

/**
 * Whether the text is a repository name.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pulling-manifests
 */
export function isRepositoryName(text: string): boolean {
  if (text.length === 0 || text.length > maxNameLength) return false
  // Between letters and digits: a slash, a dot, one or two underscores, or any number of hyphens. One look at each character.
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

export function isTag(text: string): boolean {
  return tagPattern.test(text)
}

/**
 * A registry's `host` or `host:port` in lower case, or undefined: DNS names, IPv4 and bracketed IPv6 literals, no scheme,
 * no user info, no path.
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
 * Whether a first path segment names a registry rather than a part of a repository: it has a dot or a port, or is
 * `localhost`. The rule of every client's reference parser.
 */
export function looksLikeRegistry(segment: string): boolean {
  return segment === 'localhost' || segment.includes('.') || segment.includes(':')
}

/** The setting of mirror.yaml by which registries are mirrored: `upstreams: {ghcr.io: {}}`; YAML needs quotes around some names. */
export function upstreamSetting(...hosts: string[]): string {
  const keys = hosts.map((host) => (/^[a-z0-9.-]+$/.test(host) ? host : `'${host}'`))
  return `upstreams: {${keys.map((key) => `${key}: {}`).join(', ')}}`
}

/** What stands after `/manifests/`: a mutable tag or an immutable digest. */
export type Reference =
  | { readonly kind: 'tag'; readonly tag: string }
  | { readonly kind: 'digest'; readonly digest: Digest }

export function parseReference(text: string): Reference | undefined {
  if (text.includes(':')) {
    const digest = parseDigest(text)
    return digest && { kind: 'digest', digest }
  }
  return isTag(text) ? { kind: 'tag', tag: text } : undefined
}

/** The reference as it stands in a URL. */
export function referenceText(reference: Reference): string {
  return reference.kind === 'tag' ? reference.tag : reference.digest
}

/** The name by which a registry's images go: Docker Hub is `docker.io` by whichever of its names it is called. */
export function canonicalRegistry(host: string): string {
  return host === 'index.docker.io' || host === 'registry-1.docker.io' ? 'docker.io' : host
}

/** The URL of a registry itself, without a trailing slash: Docker Hub's name is not its address. */
export function originOf(registry: string): string {
  return registry === 'docker.io' ? 'https://registry-1.docker.io' : `https://${registry}`
}
