import { defaultConfig, type ListenAddress } from '../config/config.ts'
import { loadConfig } from '../config/load.ts'
import { mirrorPaths } from '../config/paths.ts'
import { exitCode, MirrorError, findNearest } from '../lib/errors.ts'
import { isLoopbackAddress, mirrorHostNames } from '../lib/network.ts'
import type { CommandEnvironment } from '../lib/process.ts'
import { parseDigest } from '../oci/reference.ts'
import { OciError } from '../oci/errors.ts'
import { parseRoute } from '../oci/route.ts'
import type { ListedImage, Naming, RemovalReport } from './api.ts'
import { findMatches, isPattern, splitImage } from './patterns.ts'

/** Holds a name as a user wrote it, and as the mirror knows it. */
interface UserName {
  readonly given: string
  readonly name: string
  /** Holds the images of the same short name on other upstreams, which the name does not mean. */
  readonly others: readonly string[]
  /** Is true for a name that a pattern matched. */
  readonly isMatch?: true
}

/**
 * Parses names as users write them, or copy them from a shell's history or another tool's output: `nginx:1.27`,
 * `docker://ghcr.io/a/b`, `127.0.0.1:5055/ghcr.io/a/b:1`, `nginx:1.27@sha256:…`, a digest or its first digits. Throws a
 * MirrorError for first digits that several images have. A pattern becomes the names that it matches; see `findMatches`. One that
 * matches nothing stays as it is, and is no image's name.
 */
export function parseUserNames(given: readonly string[], naming: Naming): UserName[] {
  return given.flatMap((text) => (isPattern(text) ? parsePattern(text, naming) : [parseUserName(text, naming)]))
}

function parsePattern(given: string, naming: Naming): UserName[] {
  const pattern = expandPattern(removeAddress(given.trim(), naming), naming)
  const matches = findMatches(pattern, naming.images)
  if (matches.length === 0) return [{ given, name: pattern, others: [] }]
  return matches.map((name) => ({ given, name, others: [], isMatch: true }))
}

/** Adds the registry to a pattern by the rules for names, which a name with letters in place of the wildcards shows. */
function expandPattern(text: string, naming: Naming): string {
  const { repository, separator = '', suffix = '' } = splitImage(text)
  if (repository.startsWith('**')) return text
  const stand = repository.replaceAll(/[*?]/g, 'x')
  const expanded = expandRepository(stand, naming).repository
  const added = expanded.endsWith(stand) ? expanded.slice(0, expanded.length - stand.length) : ''
  return `${added}${repository}${separator}${suffix}`
}

/** Returns the names that patterns match, when they mean several images, so that the user must agree to their removal. */
export function listMatches(given: readonly string[], naming: Naming): string[] {
  const names = parseUserNames(given, naming).flatMap(({ name, isMatch }) => (isMatch ? [name] : []))
  // A name may be a repository, which stands for all of its tags.
  const affected = naming.images.filter((image) => names.some((name) => belongsTo(image.name, name)))
  return affected.length > 1 ? [...new Set(names)] : []
}

function parseUserName(given: string, naming: Naming): UserName {
  const bare = removeAddress(given.trim(), naming)
  const { path, tag, digest } = splitName(bare)
  const fullDigest = digest === undefined ? undefined : completeDigest(given, path, digest, naming)
  if (path === '') return { given, name: fullDigest ?? bare, others: [] }
  const { repository, isShort } = expandRepository(path, naming)
  const suffix = fullDigest !== undefined ? `@${fullDigest}` : tag !== undefined ? `:${tag}` : ''
  const name = repository + suffix
  return { given, name, others: isShort ? findSameShortNames(name, path + suffix, naming.images) : [] }
}

/** Removes a scheme, and an address of the mirror itself. */
function removeAddress(text: string, { isOwnAddress }: Naming): string {
  const bare = text.replace(/^(?:docker|oci|https?):\/\//i, '').replace(/\/+$/, '')
  const slash = bare.indexOf('/')
  return slash > 0 && isOwnAddress(bare.slice(0, slash).toLowerCase()) ? bare.slice(slash + 1) : bare
}

/** Splits a name. A digest takes precedence over a tag, as for clients. */
function splitName(text: string): { path: string; tag: string | undefined; digest: string | undefined } {
  // Accept first digits and an ellipsis, as lists print a digest.
  const match = /^(?:(.*)@)?(sha(?:256|512):[0-9a-f]*)…?$/.exec(text)
  if (match && (match[1] !== undefined || !text.includes('/')))
    return { path: splitTag(match[1] ?? '').path, tag: undefined, digest: match[2]! }
  return { ...splitTag(text), digest: undefined }
}

function splitTag(text: string): { path: string; tag: string | undefined } {
  const colon = text.indexOf(':', text.lastIndexOf('/') + 1)
  return colon === -1 ? { path: text, tag: undefined } : { path: text.slice(0, colon), tag: text.slice(colon + 1) }
}

const minDigestLength = 'sha256:'.length + 6

/** Completes first digits to the digest of an existing image. */
function completeDigest(given: string, path: string, digest: string, naming: Naming): string {
  if (parseDigest(digest) || digest.length < minDigestLength) return digest
  const repository = path === '' ? undefined : expandRepository(path, naming).repository
  const isMatch = ({ name, digest: imageDigest }: ListedImage) =>
    imageDigest.startsWith(digest) &&
    (repository === undefined || name.startsWith(`${repository}@`) || name.startsWith(`${repository}:`))
  const found = [...new Set(naming.images.filter(isMatch).map((image) => image.digest))]
  if (found.length <= 1) return found[0] ?? digest
  throw new MirrorError(`${given} is ambiguous: the digests of several images begin with these digits.`, {
    exit: exitCode.usage,
    hints: found,
  })
}

/** Returns the repository with its registry, by the rules for requests. */
function expandRepository(path: string, { defaultUpstream }: Naming): { repository: string; isShort: boolean } {
  if (defaultUpstream === undefined) return { repository: path, isShort: false }
  try {
    const route = parseRoute(`/v2/${encodeURI(path)}/tags/list`, 'proxy')
    if (route.kind !== 'tags') return { repository: path, isShort: false }
    const host = route.registry ?? defaultUpstream
    const isOfficial = host === 'docker.io' && !route.name.includes('/')
    const repository = `${host}/${isOfficial ? 'library/' : ''}${route.name}`
    return { repository, isShort: route.registry === undefined }
  } catch (error) {
    // Keeps a name that is invalid for repositories: it matches none.
    if (error instanceof OciError) return { repository: path, isShort: false }
    throw error
  }
}

function findSameShortNames(name: string, short: string, images: readonly ListedImage[]): string[] {
  const isSame = (other: string) => belongsTo(other.slice(other.indexOf('/') + 1), short) && !belongsTo(other, name)
  return images.flatMap(({ name: other }) => (isSame(other) ? [other] : []))
}

/** Finds `docker.io/library/redis:7` for `redsi:7`; the part before the last slash may be missing. */
function findNearestShort(name: string, names: readonly string[]): string | undefined {
  const found = findNearest(getShortName(name), names.map(getShortName))
  return names.find((other) => getShortName(other) === found)
}

function getShortName(name: string): string {
  return name.slice(name.lastIndexOf('/') + 1)
}

function belongsTo(image: string, name: string): boolean {
  return image === name || image.startsWith(`${name}:`) || image.startsWith(`${name}@`)
}

const maxSimilar = 3

/** Suggests existing images for a name that matches none. */
export function findSimilarNames({ name, others }: UserName, images: readonly ListedImage[]): string[] {
  const { path } = splitTag(name.replace(/@.*$/, ''))
  const names = images.map((image) => image.name)
  // The registry and the tag are alike in many names, so that only the name between them tells what is mistyped.
  const near = names.filter((other) => findNearest(getBaseName(name), [getBaseName(other)]) !== undefined)
  const mistyped = findNearest(name, near) ?? findNearestShort(name, near)
  const suggestions = [
    ...others,
    ...names.filter((other) => belongsTo(other, path)),
    ...names.filter((other) => getBaseName(other) === getBaseName(name)),
    ...(mistyped === undefined ? [] : [mistyped]),
  ]
  return [...new Set(suggestions)].slice(0, maxSimilar)
}

/** Creates a check whether `host:port` is an address of a listener: one of its ports, at any name of this machine. */
export function createAddressCheck(urls: readonly string[], names: readonly string[] = []): (host: string) => boolean {
  const known = new Set([...mirrorHostNames, ...names.map((name) => name.toLowerCase())])
  const ports = new Set<string>()
  for (const url of urls) {
    const { hostname, port, protocol } = new URL(url)
    known.add(hostname)
    ports.add(port === '' ? (protocol === 'https:' ? '443' : '80') : port)
  }
  return (host) => {
    const match = /^(\[[^\]]+\]|[^:]+):(\d+)$/.exec(host)
    if (!match || !ports.has(match[2]!)) return false
    return known.has(match[1]!) || isLoopbackAddress(match[1]!.replaceAll(/[[\]]/g, ''))
  }
}

/** Returns `nginx` for `docker.io/library/nginx:1.27`. */
function getBaseName(name: string): string {
  return splitTag(name.replace(/@.*$/, '')).path.replace(/^.*\//, '')
}

/** Reports a removal with names as the user wrote them. */
export interface NamedRemoval extends RemovalReport {
  /** Holds the names that matched nothing. */
  readonly missing: readonly UserName[]
  /** Holds the notes on ambiguous short names. */
  readonly notes: readonly string[]
}

/** Removes images by names as users write them; `unknown` in the result holds names as given. */
export async function removeByName(
  given: readonly string[],
  naming: Naming,
  remove: (names: string[]) => Promise<RemovalReport>,
): Promise<NamedRemoval> {
  const parsed = parseUserNames(given, naming)
  const removal = await remove([...new Set(parsed.map(({ name }) => name))])
  const missing = parsed.filter(({ name }) => removal.unknown.includes(name))
  const notes = parsed.flatMap(({ given: text, name, others }) =>
    others.length > 0 && !removal.unknown.includes(name)
      ? [`${text} means ${name}; this image of another registry stays: ${others.slice(0, maxSimilar).join(', ')}`]
      : [],
  )
  return { ...removal, unknown: missing.map(({ given: text }) => text), missing, notes }
}

/** Creates a MirrorError for names that matched nothing, with suggestions. */
export function createNotFoundError(
  what: string,
  missing: readonly UserName[],
  images: readonly ListedImage[],
  { rm, ls }: { readonly rm: string; readonly ls: string },
): MirrorError {
  const names = missing.map(({ given, name }) => (given === name ? given : `${given} (${name})`))
  const typed = missing.filter(({ given }) => !isPattern(given))
  const suggestions = [...new Set(typed.flatMap((name) => findSimilarNames(name, images)))]
  return new MirrorError(`${what}: ${names.join(', ')}`, {
    exit: exitCode.usage,
    hints: [...suggestions.map((name, at) => `${rm} ${name}${at === 0 ? '   (did you mean this?)' : ''}`), ls],
  })
}

/**
 * Loads the settings that concern names. Uses the defaults when mirror.yaml is invalid, because a running mirror can be used all
 * the same.
 */
export async function loadNaming(
  surroundings: CommandEnvironment,
): Promise<{ cache: string[]; registry: string[]; names: string[]; defaultUpstream: string }> {
  const config = await loadConfig({ ...surroundings, paths: mirrorPaths(surroundings) }).catch((error: unknown) => {
    if (error instanceof MirrorError) return defaultConfig()
    throw error
  })
  return {
    cache: toUrls(config.cache.listen),
    registry: toUrls(config.registry.listen),
    names: config.allowedHosts,
    defaultUpstream: config.defaultUpstream,
  }
}

function toUrls(listen: readonly ListenAddress[]): string[] {
  return listen.map(({ host, port }) => `http://${host.includes(':') ? `[${host}]` : host}:${port}`)
}
