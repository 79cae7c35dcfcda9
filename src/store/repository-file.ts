import type { ManifestLink } from '../oci/descriptor.ts'
import { parseDigest, type Digest } from '../oci/digest.ts'
import { isRepositoryName, isTag, parseRegistryHost } from '../oci/name.ts'
import type { BlobRecord, ManifestRecord, RepositoryRecord, TagRecord } from './ref-store.ts'

const format = 1

/** What stands in a repository's file. Lists, not objects keyed by tag: `__proto__` is a valid tag. */
export function serializeRepository(record: RepositoryRecord): string {
  return JSON.stringify({
    format,
    host: record.host,
    name: record.name,
    tags: Array.from(record.tags, ([tag, value]) => ({ tag, ...value })),
    manifests: Array.from(record.manifests, ([digest, value]) => ({ digest, ...value })),
    blobs: Array.from(record.blobs, ([digest, value]) => ({ digest, ...value })),
  })
}

/** The record in a repository's file; undefined when any part of it is not what it should be. */
export function parseRepository(text: string): RepositoryRecord | undefined {
  try {
    return readRepository(JSON.parse(text))
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
}

function readRepository(json: unknown): RepositoryRecord {
  const value = object(json)
  if (value['format'] !== format) return damaged()
  const host = string(value['host'])
  const name = string(value['name'])
  if (parseRegistryHost(host) !== host || !isRepositoryName(name)) return damaged()
  return {
    host,
    name,
    tags: new Map(list(value['tags']).map(readTag)),
    manifests: new Map(list(value['manifests']).map(readManifest)),
    blobs: new Map(list(value['blobs']).map(readBlob)),
  }
}

function readTag(json: unknown): [string, TagRecord] {
  const value = object(json)
  const tag = string(value['tag'])
  if (!isTag(tag)) return damaged()
  return [
    tag,
    {
      digest: digest(value['digest']),
      identity: string(value['identity']),
      checkedAt: number(value['checkedAt']),
      pulls: number(value['pulls']),
      lastPulled: number(value['lastPulled']),
    },
  ]
}

function readManifest(json: unknown): [Digest, ManifestRecord] {
  const value = object(json)
  return [
    digest(value['digest']),
    {
      mediaType: string(value['mediaType']),
      size: number(value['size']),
      identity: string(value['identity']),
      links: list(value['links']).map(readLink),
      pulls: number(value['pulls']),
      lastPulled: number(value['lastPulled']),
      usedAt: number(value['usedAt']),
    },
  ]
}

function readLink(json: unknown): ManifestLink {
  const value = object(json)
  const kind = value['kind']
  if (kind !== 'manifest' && kind !== 'blob') return damaged()
  return {
    kind,
    mediaType: string(value['mediaType']),
    digest: digest(value['digest']),
    size: number(value['size']),
  }
}

function readBlob(json: unknown): [Digest, BlobRecord] {
  const value = object(json)
  const record = {
    size: number(value['size']),
    identity: string(value['identity']),
    usedAt: number(value['usedAt']),
  }
  return [digest(value['digest']), record]
}

function object(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : damaged()
}

function list(value: unknown): unknown[] {
  return Array.isArray(value) ? value : damaged()
}

function string(value: unknown): string {
  return typeof value === 'string' ? value : damaged()
}

function number(value: unknown): number {
  return typeof value === 'number' && Number.isFinite(value) && value >= 0 ? value : damaged()
}

function digest(value: unknown): Digest {
  return parseDigest(string(value)) ?? damaged()
}

function damaged(): never {
  throw new SyntaxError('not a repository record')
}
