import { LRUCache } from 'lru-cache'
import { isObject, JsonError, readJson, readJsonObject } from '../lib/json.ts'
import { type Digest, computeDigest, parseDigest } from './reference.ts'
import { OciError } from './errors.ts'

/**
 * Lists the media types of the OCI specification and of Docker v2.
 * https://github.com/opencontainers/image-spec/blob/v1.1.1/media-types.md
 */
export const mediaType = {
  ociIndex: 'application/vnd.oci.image.index.v1+json',
  ociManifest: 'application/vnd.oci.image.manifest.v1+json',
  ociConfig: 'application/vnd.oci.image.config.v1+json',
  ociLayerGzip: 'application/vnd.oci.image.layer.v1.tar+gzip',
  dockerList: 'application/vnd.docker.distribution.manifest.list.v2+json',
  dockerManifest: 'application/vnd.docker.distribution.manifest.v2+json',
  dockerConfig: 'application/vnd.docker.container.image.v1+json',
  dockerLayer: 'application/vnd.docker.image.rootfs.diff.tar.gzip',
  octetStream: 'application/octet-stream',
} as const

/** Holds the `Accept` header of manifest requests to upstreams: every current type, never schema 1. */
export const manifestAccept = [
  mediaType.ociIndex,
  mediaType.ociManifest,
  mediaType.dockerList,
  mediaType.dockerManifest,
  'application/vnd.oci.artifact.manifest.v1+json',
].join(', ')

/** Lists the media types of an index. */
const indexTypes: readonly string[] = [mediaType.ociIndex, mediaType.dockerList]
/** Lists the media types of an image manifest, which names no other manifest. */
export const imageTypes: readonly string[] = [mediaType.ociManifest, mediaType.dockerManifest]

/**
 * Sets the size limit of manifests, bytes: 4 MiB, which registries should accept and clients read (decision D4).
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pushing-manifests
 */
export const maxManifestBytes = 4 * 1024 * 1024

/** Limits the content that is sent as a string, which is faster, bytes. Larger manifests are sent from disk. */
export const maxStringBytes = 64 * 1024
/** Limits the characters of a media type. https://www.rfc-editor.org/rfc/rfc6838#section-4.2 */
const maxMediaTypeLength = 255

/** Checks whether a media type is one of a foreign layer, whose content a registry need not hold. The mirror does not fetch its `urls`. */
export function isForeignLayer(type: string): boolean {
  return type.includes('.foreign.') || type.includes('.nondistributable.')
}

/**
 * Checks whether a manifest may be served with this media type: `application/…` without parameters (RFC 6838 §4.2), and no type that
 * a browser displays or runs.
 */
export function isManifestType(type: string): boolean {
  return /^application\/[a-z\d][a-z\d!#$&^_.+-]{0,126}$/i.test(type) && !/(?:xml|pdf|script)$/i.test(type)
}

/** Checks whether a media type is that of an index. */
export function isIndexType(type: string): boolean {
  return indexTypes.includes(type)
}

/** Returns a Content-Type without its parameters, in lower case. */
export function stripMediaType(contentType: string): string {
  return contentType.split(';', 1)[0]!.trim().toLowerCase()
}

/** Describes a reference to content by its digest. https://github.com/opencontainers/image-spec/blob/v1.1.1/descriptor.md */
interface Descriptor {
  readonly mediaType: string
  readonly digest: Digest
  /** Bytes. */
  readonly size: number
}

/** Describes a descriptor in a manifest, with the endpoint that serves it: `/manifests/` or `/blobs/`. */
export interface ManifestLink extends Descriptor {
  readonly kind: 'manifest' | 'blob'
}

/** Collects the blobs and manifests of an image that mirror builds, by digest, as a registry serves them. */
export class ImageContents {
  readonly blobs = new Map<Digest, Uint8Array>()
  readonly manifests = new Map<Digest, { readonly mediaType: string; readonly bytes: Uint8Array<ArrayBuffer> }>()

  /** Adds a layer or a config. Returns its descriptor for a manifest. */
  addBlob(mediaType: string, bytes: Uint8Array): Descriptor {
    const digest = computeDigest(bytes)
    this.blobs.set(digest, bytes)
    return { mediaType, digest, size: bytes.length }
  }

  /** Adds a manifest or an index with this content. Returns its descriptor for an index. */
  addManifest(mediaType: string, content: object): Descriptor {
    const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType, ...content }))
    const digest = computeDigest(bytes)
    this.manifests.set(digest, { mediaType, bytes })
    return { mediaType, digest, size: bytes.length }
  }
}

/** Holds the parts of a manifest that the cache needs. */
export interface ManifestOutline {
  /** Holds the type to serve it with: the upstream's, or the manifest's own when the upstream's is not a manifest type. */
  readonly mediaType: string
  readonly links: readonly ManifestLink[]
}

type OutlineProblem = 'not-a-manifest' | 'schema1'

/**
 * Parses a manifest or index of any current kind; links that are invalid or to foreign layers are left out.
 * https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md, …/image-index.md, Docker's v2 types alike.
 */
export async function outlineManifest(
  bytes: Uint8Array,
  contentType: string,
): Promise<ManifestOutline | OutlineProblem> {
  const all = await readJsonObject(bytes)
  if (!all) return 'not-a-manifest'
  const json = dropNullMembers(all)
  if (json['schemaVersion'] === 1 || 'fsLayers' in json) return 'schema1'
  if (json['schemaVersion'] !== 2 && !('mediaType' in json)) return 'not-a-manifest'

  const links: ManifestLink[] = []
  const add = (kind: ManifestLink['kind'], list: unknown) => {
    for (const entry of Array.isArray(list) ? list : []) {
      const link = parseLink(kind, entry)
      // Leave out foreign layers: the upstream need not have them, so that a manifest proves nothing about them.
      if (link && !isForeignLayer(link.mediaType)) links.push(link)
    }
  }
  add('manifest', json['manifests'])
  add('blob', [json['config']])
  add('blob', json['layers'])
  add('blob', json['blobs'])
  return { mediaType: chooseMediaType(all, contentType), links }
}

const linkCache = new LRUCache<Digest, readonly ManifestLink[]>({
  maxSize: 50_000,
  sizeCalculation: (links) => links.length + 1,
})

/** Returns the links of a manifest, from a cache by digest, so that a manifest that is pulled often is parsed once. */
export async function getManifestLinks(digest: Digest, content: SmallContent): Promise<readonly ManifestLink[]> {
  let links = linkCache.get(digest)
  if (links === undefined) {
    const outline = await outlineManifest(toBytes(content), '')
    links = typeof outline === 'string' ? [] : outline.links
    linkCache.set(digest, links)
  }
  return links
}

/** Returns the links of a manifest if they are in the cache. */
export function getCachedLinks(digest: Digest): readonly ManifestLink[] | undefined {
  return linkCache.get(digest)
}

function parseLink(kind: ManifestLink['kind'], entry: unknown): ManifestLink | undefined {
  if (!isObject(entry)) return undefined
  const { digest: text, size, mediaType: type } = entry
  const digest = typeof text === 'string' ? parseDigest(text) : undefined
  if (!digest || typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0) return undefined
  return { kind, digest, size, mediaType: isMediaTypeText(type) ? type : mediaType.octetStream }
}

/** Checks that a media type is a text of at most 255 characters. */
function isMediaTypeText(type: unknown): type is string {
  return typeof type === 'string' && type.length <= maxMediaTypeLength
}

/**
 * Chooses the media type to serve a manifest with. Upstreams that store manifests as plain files send them as `application/json`, or
 * even as `text/html`.
 */
function chooseMediaType(json: Record<string, unknown>, contentType: string): string {
  const sent = stripMediaType(contentType)
  if (sent.startsWith('application/vnd.') && isManifestType(sent)) return sent
  const own = json['mediaType']
  if (typeof own === 'string' && isManifestType(own)) return own
  return hasIndexMembers(json, undefined) ? mediaType.ociIndex : mediaType.ociManifest
}

type Members = Readonly<Record<string, unknown>>

/** Returns the members of an object that are not null. Go and other languages write null for absent members. */
export function dropNullMembers(object: Members): Record<string, unknown> {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== null))
}

/**
 * Checks by its members whether a manifest is an index. `type`: its declared media type, if any, which decides when `manifests` is
 * null, as in an index without children.
 */
function hasIndexMembers(json: Members, type: string | undefined): boolean {
  if (!('manifests' in json)) return false
  if (json['manifests'] !== null) return true
  if (type !== undefined) return indexTypes.includes(type)
  return ['config', 'layers', 'blobs'].every((name) => (json[name] ?? null) === null)
}

/** Returns the key of an artifact type in memory: the type itself, or its digest when it is too long for a media type. */
export function toArtifactTypeKey(type: string): string {
  return type.length <= maxMediaTypeLength ? type : computeDigest(Buffer.from(type))
}

/** Holds the parts of a pushed manifest that the registry stores. */
export interface ReadManifest {
  readonly mediaType: string
  readonly links: readonly ManifestLink[]
  readonly subject: Digest | undefined
  /** Holds the artifact type for lists of referrers: `artifactType`, or the media type of the config. */
  readonly artifactType: string | undefined
  readonly annotations: Readonly<Record<string, string>> | undefined
}

/**
 * Parses a manifest or index that a client pushes. Throws an OciError (MANIFEST_INVALID, 400) for an invalid manifest, and for one that
 * two parsers could read differently (CVE-2021-41190).
 * https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md
 */
export async function readPushedManifest(bytes: Uint8Array, contentType: string | undefined): Promise<ReadManifest> {
  const all = await parseManifestJson(bytes)
  const json = dropNullMembers(all)
  if (json['schemaVersion'] === 1 || 'fsLayers' in json || 'signatures' in json)
    throw createInvalidError('Manifests of schema version 1 are not supported; push with a newer client.')
  if (json['schemaVersion'] !== undefined && json['schemaVersion'] !== 2)
    throw createInvalidError('schemaVersion is not 2.')

  const isIndex = hasIndexMembers(all, getString(json, 'mediaType') ?? contentType)
  if (isIndex && ('layers' in json || 'config' in json || 'blobs' in json))
    throw createInvalidError('It has fields of both an image and an index.')
  const type = checkMediaType(json, contentType, isIndex)
  if (isIndex ? imageTypes.includes(type) : indexTypes.includes(type))
    throw createInvalidError(`Its fields do not match the type ${type}.`)
  if ((isIndex || imageTypes.includes(type)) && json['schemaVersion'] !== 2)
    throw createInvalidError('schemaVersion is not 2.')

  const config = json['config'] === undefined ? [] : [checkLink('blob', json['config'], 'config')]
  const links = [
    ...checkLinks('manifest', json, 'manifests'),
    ...config,
    ...checkLinks('blob', json, 'layers'),
    ...checkLinks('blob', json, 'blobs'),
  ]
  if (imageTypes.includes(type) && config.length === 0) throw createInvalidError('It has no config.')
  const own = getString(json, 'artifactType')
  return {
    mediaType: type,
    links,
    subject: json['subject'] === undefined ? undefined : checkLink('manifest', json['subject'], 'subject').digest,
    artifactType: own !== undefined && own !== '' ? own : config[0]?.mediaType,
    annotations: getAnnotations(json['annotations']),
  }
}

async function parseManifestJson(bytes: Uint8Array): Promise<Record<string, unknown>> {
  let value: unknown
  try {
    value = await readJson(bytes, { unambiguous: true })
  } catch (error) {
    throw error instanceof JsonError ? createInvalidError(error.message) : error
  }
  if (!isObject(value)) throw createInvalidError('It is not a JSON object.')
  return value
}

function checkMediaType(json: Record<string, unknown>, contentType: string | undefined, isIndex: boolean): string {
  const own = getString(json, 'mediaType')
  if (own !== undefined && contentType !== undefined && own !== contentType)
    throw createInvalidError(
      `Its mediaType is ${JSON.stringify(own.slice(0, 200))}, its Content-Type is ${contentType}.`,
    )
  const type = own ?? contentType ?? (isIndex ? mediaType.ociIndex : mediaType.ociManifest)
  if (!isManifestType(type)) throw createInvalidError('Its media type is not a manifest type.')
  return type
}

function checkLinks(kind: ManifestLink['kind'], json: Record<string, unknown>, field: string): ManifestLink[] {
  const list = json[field]
  if (list === undefined) return []
  if (!Array.isArray(list)) throw createInvalidError(`${field} is not a list.`)
  return list.map((entry) => checkLink(kind, entry, field))
}

function checkLink(kind: ManifestLink['kind'], entry: unknown, field: string): ManifestLink {
  if (!isObject(entry)) throw createInvalidError(`${field} has an entry that is not a descriptor.`)
  const { digest: text, size, mediaType: type } = entry
  const digest = typeof text === 'string' ? parseDigest(text) : undefined
  if (!digest) throw createInvalidError(`${field} has a digest that is not a valid sha256 or sha512 digest.`)
  if (typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0)
    throw createInvalidError(`${field} has a size that is not a number of bytes.`)
  return { kind, digest, size, mediaType: typeof type === 'string' ? type : mediaType.octetStream }
}

function getAnnotations(value: unknown): Record<string, string> | undefined {
  if (value === undefined) return undefined
  if (!isObject(value)) throw createInvalidError('annotations is not a map of texts.')
  const annotations = dropNullMembers(value)
  if (!Object.values(annotations).every((text) => typeof text === 'string'))
    throw createInvalidError('annotations is not a map of texts.')
  return annotations as Record<string, string>
}

function getString(json: Record<string, unknown>, field: string): string | undefined {
  const value = json[field]
  if (value === undefined) return undefined
  if (typeof value !== 'string') throw createInvalidError(`${field} is not a string.`)
  return value
}

function createInvalidError(why: string): OciError {
  return new OciError('MANIFEST_INVALID', 400, `The manifest is not valid. ${why}`)
}

/** Holds content that is small enough to keep in memory. */
export interface SmallContent {
  /** Bytes. */
  readonly size: number
  /** Holds the bytes; short content as a latin1 string, which is sent together with the response head in one write. */
  readonly body: string | Uint8Array
}

/** Creates content from bytes: a latin1 string up to 64 KiB, the bytes themselves beyond. */
export function toSmallContent(bytes: Uint8Array<ArrayBuffer>): SmallContent {
  const { length: size } = bytes
  if (size > maxStringBytes) return { size, body: bytes }
  return { size, body: Buffer.from(bytes.buffer, bytes.byteOffset, size).toString('latin1') }
}

/** Returns the bytes of the content. */
export function toBytes({ body }: SmallContent): Uint8Array {
  return typeof body === 'string' ? Buffer.from(body, 'latin1') : body
}
