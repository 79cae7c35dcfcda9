import {
  type Digest,
  parseDigest,
  toCanonicalRegistry,
  isRepositoryName,
  looksLikeRegistry,
  parseReference,
  parseRegistryHost,
  type Reference,
} from './reference.ts'
import { OciError } from './errors.ts'
import { removeNamespace } from './headers.ts'

/** Describes a repository as the request names it. `registry` is undefined when the request names none. */
export interface Repository {
  readonly registry: string | undefined
  readonly name: string
  /** Is true when `?ns=` names the registry, as clients send it that are configured to mirror any registry. */
  readonly byNamespace: boolean
}

/**
 * Describes a parsed URL of a registry request. https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#endpoints
 */
export type Route =
  | { readonly kind: 'base' }
  | { readonly kind: 'catalog'; readonly registry: string | undefined; readonly page: Page }
  | ({ readonly kind: 'manifest'; readonly reference: Reference; readonly tags: readonly string[] } & Repository)
  | ({ readonly kind: 'blob'; readonly digest: Digest } & Repository)
  | ({ readonly kind: 'tags'; readonly page: Page } & Repository)
  | ({
      readonly kind: 'referrers'
      readonly digest: Digest
      readonly artifactType: string | undefined
      readonly page: Page
    } & Repository)
  | ({ readonly kind: 'uploads'; readonly wanted: UploadQuery } & Repository)
  | ({ readonly kind: 'upload'; readonly id: string; readonly wanted: UploadQuery } & Repository)

/** Holds the raw paging parameters of a list request. The list interprets them. */
export interface Page {
  readonly n: string | undefined
  readonly last: string | undefined
  /** Holds the whole query without `ns`, because registries may page by their own parameters. */
  readonly query: string
}

/** Holds the raw query parameters of a push. Only the push registry interprets them. */
interface UploadQuery {
  readonly digest: string | undefined
  readonly algorithm: string | undefined
  readonly mount: string | undefined
  readonly from: string | undefined
}

/**
 * Distinguishes the ways a listener addresses repositories. `proxy` accepts five forms: `?ns=`, a first segment that is a registry
 * (`host_port` for `host:port`), `upstream/<registry>/`, `/<registry>/v2/`, and none of them. `plain` uses names unchanged.
 */
export type Addressing = 'proxy' | 'plain'

/**
 * Parses a request target (`/v2/…?…`). Throws an OciError: 404 for a path outside the registry API, 400 for an invalid name, digest or
 * `ns`. An invalid tag is a 404 for readers, because no such tag can exist, and a 400 for a PUT.
 */
export function parseRoute(target: string, addressing: Addressing, method = 'GET'): Route {
  const mark = target.indexOf('?')
  const query = mark === -1 ? undefined : new URLSearchParams(target.slice(mark + 1))
  const segments = (mark === -1 ? target : target.slice(0, mark)).split('/').map(decodeSegment)
  if (segments[0] !== '') throw createUnknownUrlError()

  let prefix: string | undefined
  let at = 1
  if (addressing === 'proxy' && segments[1] !== 'v2' && segments[2] === 'v2') {
    prefix = parseRegistry(segments[1]!)
    at = 2
  }
  if (segments[at] !== 'v2') throw createUnknownUrlError()
  const path = segments.slice(at + 1)
  const ns = parseNamespace(query)
  const named = ns ?? prefix
  if (path.length === 0 || (path.length === 1 && path[0] === '')) return { kind: 'base' }
  if (path.length === 1 && path[0] === '_catalog') return { kind: 'catalog', registry: named, page: parsePage(target) }

  const repository = (end: number): Repository =>
    addressing === 'plain'
      ? { registry: undefined, name: parseName(path.slice(0, end)), byNamespace: false }
      : parseProxiedRepository(path.slice(0, end), named, ns !== undefined)
  const last = path.length - 1
  const [before, leaf] = [path[last - 1], path[last]!]

  if (before === 'manifests') {
    const tags = query?.getAll('tag') ?? []
    return { kind: 'manifest', ...repository(last - 1), reference: parseManifestReference(leaf, method), tags }
  }
  if (before === 'blobs' && leaf !== 'uploads')
    return { kind: 'blob', ...repository(last - 1), digest: parseRouteDigest(leaf) }
  if (before === 'tags' && leaf === 'list') return { kind: 'tags', ...repository(last - 1), page: parsePage(target) }
  if (before === 'referrers') {
    const artifactType = query?.get('artifactType') ?? undefined
    return {
      kind: 'referrers',
      ...repository(last - 1),
      digest: parseRouteDigest(leaf),
      artifactType,
      page: parsePage(target),
    }
  }
  const wanted = parseUploadQuery(query)
  if (before === 'blobs') return { kind: 'uploads', ...repository(last - 1), wanted }
  if (path[last - 2] === 'blobs' && before === 'uploads') {
    return leaf === ''
      ? { kind: 'uploads', ...repository(last - 2), wanted }
      : { kind: 'upload', ...repository(last - 2), id: leaf, wanted }
  }
  throw createUnknownUrlError()
}

/** Finds the registry of a repository: `ns` first, then `upstream/<registry>/`, then a first segment that looks like a registry. */
function parseProxiedRepository(path: string[], named: string | undefined, byNamespace: boolean): Repository {
  if (named !== undefined) {
    const rest =
      path[0] === 'upstream' && path[1]?.toLowerCase() === named
        ? path.slice(2)
        : path[0]?.toLowerCase() === named
          ? path.slice(1)
          : path
    return { registry: named, name: parseName(rest.length === 0 ? path : rest), byNamespace }
  }
  if (path[0] === 'upstream' && path.length > 2 && looksLikeRegistry(path[1]!)) {
    return { registry: parseRegistrySegment(path[1]!), name: parseName(path.slice(2)), byNamespace }
  }
  if (path.length > 1 && looksLikeRegistry(path[0]!)) {
    return { registry: parseRegistrySegment(path[0]!), name: parseName(path.slice(1)), byNamespace }
  }
  return { registry: undefined, name: parseName(path), byNamespace }
}

function parseNamespace(query: URLSearchParams | undefined): string | undefined {
  const values = query?.getAll('ns') ?? []
  if (values.length > 1) throw new OciError('NAME_INVALID', 400, 'The query parameter ns is given more than once.')
  return values[0] === undefined || values[0] === '' ? undefined : parseRegistry(values[0])
}

/** Parses a registry in a path segment. An underscore may separate the port, because no image reference allows a colon there. */
function parseRegistrySegment(segment: string): string {
  return parseRegistry(segment.replace(/_(?=\d{1,5}$)/, ':'))
}

function parseRegistry(text: string): string {
  const host = parseRegistryHost(text)
  if (host === undefined)
    throw new OciError('NAME_INVALID', 400, 'The registry is not a host name with an optional port.')
  return toCanonicalRegistry(host)
}

function parseName(path: string[]): string {
  const name = path.join('/')
  if (!isRepositoryName(name)) throw new OciError('NAME_INVALID', 400, 'The repository name is not valid.')
  return name
}

function parseManifestReference(text: string, method: string): Reference {
  const reference = parseReference(text)
  if (reference) return reference
  if (text.includes(':')) throw createInvalidDigestError()
  const why = 'The reference is neither a tag nor a digest.'
  throw method === 'PUT' ? new OciError('MANIFEST_INVALID', 400, why) : new OciError('MANIFEST_UNKNOWN', 404, why)
}

function parseRouteDigest(text: string): Digest {
  const digest = parseDigest(text)
  if (!digest) throw createInvalidDigestError()
  return digest
}

function parsePage(target: string): Page {
  const mark = target.indexOf('?')
  const text = mark === -1 ? '' : target.slice(mark + 1)
  const query = new URLSearchParams(text)
  return { n: query.get('n') ?? undefined, last: query.get('last') ?? undefined, query: removeNamespace(text) }
}

function parseUploadQuery(query: URLSearchParams | undefined): UploadQuery {
  const value = (name: string) => query?.get(name) ?? undefined
  return { digest: value('digest'), algorithm: value('digest-algorithm'), mount: value('mount'), from: value('from') }
}

function decodeSegment(segment: string): string {
  if (!segment.includes('%')) return segment
  try {
    return decodeURIComponent(segment)
  } catch {
    throw new OciError('NAME_INVALID', 400, 'The path is not valid percent-encoded UTF-8.')
  }
}

const createInvalidDigestError = () =>
  new OciError('DIGEST_INVALID', 400, 'The digest is not a valid sha256 or sha512 digest.')
const createUnknownUrlError = () =>
  new OciError('UNSUPPORTED', 404, 'This path does not exist; the registry API is below /v2/.')
