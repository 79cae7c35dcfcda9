import { isObject, JsonError, readJson } from '../lib/json.ts'
import type { ManifestLink } from './descriptor.ts'
import { type Digest, parseDigest } from './digest.ts'
import { OciError } from './errors.ts'
import { hasIndexMembers, imageTypes, indexTypes, presentMembers } from './manifest-members.ts'
import { isManifestType, mediaType } from './media-types.ts'

/** What a registry must know of a manifest that it is to hold. */
export interface ReadManifest {
  readonly mediaType: string
  readonly links: readonly ManifestLink[]
  readonly subject: Digest | undefined
  /** As a list of referrers gives it. */
  readonly artifactType: string | undefined
  readonly annotations: Readonly<Record<string, string>> | undefined
}

/**
 * Reads a manifest or index that a client pushes, and refuses what two readers could take for two things (CVE-2021-41190).
 * https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md
 */
export async function readPushedManifest(bytes: Uint8Array, contentType: string | undefined): Promise<ReadManifest> {
  const all = await parse(bytes)
  const json = presentMembers(all)
  if (json['schemaVersion'] === 1 || 'fsLayers' in json || 'signatures' in json)
    throw invalid('Manifests of schema version 1 are not supported; push with a newer client.')
  if (json['schemaVersion'] !== undefined && json['schemaVersion'] !== 2) throw invalid('schemaVersion is not 2.')

  const isIndex = hasIndexMembers(all, stringOf(json, 'mediaType') ?? contentType)
  if (isIndex && ('layers' in json || 'config' in json || 'blobs' in json))
    throw invalid('It has the fields of an image and of an index.')
  const type = pushedType(json, contentType, isIndex)
  if (isIndex ? imageTypes.includes(type) : indexTypes.includes(type))
    throw invalid(`Its fields are not those of ${type}.`)
  if ((isIndex || imageTypes.includes(type)) && json['schemaVersion'] !== 2) throw invalid('schemaVersion is not 2.')

  const config = json['config'] === undefined ? [] : [pushedLink('blob', json['config'], 'config')]
  const links = [
    ...pushedLinks('manifest', json, 'manifests'),
    ...config,
    ...pushedLinks('blob', json, 'layers'),
    ...pushedLinks('blob', json, 'blobs'),
  ]
  if (imageTypes.includes(type) && config.length === 0) throw invalid('It has no config.')
  const own = stringOf(json, 'artifactType')
  return {
    mediaType: type,
    links,
    subject: json['subject'] === undefined ? undefined : pushedLink('manifest', json['subject'], 'subject').digest,
    artifactType: own !== undefined && own !== '' ? own : config[0]?.mediaType,
    annotations: annotationsOf(json['annotations']),
  }
}

async function parse(bytes: Uint8Array): Promise<Record<string, unknown>> {
  let value: unknown
  try {
    value = await readJson(bytes, { unambiguous: true })
  } catch (error) {
    throw error instanceof JsonError ? invalid(error.message) : error
  }
  if (!isObject(value)) throw invalid('It is not a JSON object.')
  return value
}

function pushedType(json: Record<string, unknown>, contentType: string | undefined, isIndex: boolean): string {
  const own = stringOf(json, 'mediaType')
  if (own !== undefined && contentType !== undefined && own !== contentType)
    throw invalid(`Its mediaType is ${JSON.stringify(own.slice(0, 200))}, its Content-Type is ${contentType}.`)
  const type = own ?? contentType ?? (isIndex ? mediaType.ociIndex : mediaType.ociManifest)
  if (!isManifestType(type)) throw invalid('Its media type is not one of a manifest.')
  return type
}

function pushedLinks(kind: ManifestLink['kind'], json: Record<string, unknown>, field: string): ManifestLink[] {
  const list = json[field]
  if (list === undefined) return []
  if (!Array.isArray(list)) throw invalid(`${field} is not a list.`)
  return list.map((entry) => pushedLink(kind, entry, field))
}

function pushedLink(kind: ManifestLink['kind'], entry: unknown, field: string): ManifestLink {
  if (!isObject(entry)) throw invalid(`${field} holds something that is no descriptor.`)
  const { digest: text, size, mediaType: type } = entry
  const digest = typeof text === 'string' ? parseDigest(text) : undefined
  if (!digest) throw invalid(`${field} has a digest that is neither a sha256 nor a sha512 one.`)
  if (typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0)
    throw invalid(`${field} has a size that is not a number of bytes.`)
  return { kind, digest, size, mediaType: typeof type === 'string' ? type : mediaType.octetStream }
}

function annotationsOf(value: unknown): Record<string, string> | undefined {
  if (value === undefined) return undefined
  if (!isObject(value)) throw invalid('annotations is not a map of texts.')
  const annotations = presentMembers(value)
  if (!Object.values(annotations).every((text) => typeof text === 'string'))
    throw invalid('annotations is not a map of texts.')
  return annotations as Record<string, string>
}

function stringOf(json: Record<string, unknown>, field: string): string | undefined {
  const value = json[field]
  if (value === undefined) return undefined
  if (typeof value !== 'string') throw invalid(`${field} is not a text.`)
  return value
}

function invalid(why: string): OciError {
  return new OciError('MANIFEST_INVALID', 400, `The manifest is not valid. ${why}`)
}
