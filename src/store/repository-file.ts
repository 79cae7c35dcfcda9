import type { Digest } from '../oci/digest.ts'
import { isRepositoryName, parseRegistryHost } from '../oci/reference.ts'
import {
  damaged,
  readDigest,
  readJson,
  readLink,
  readList,
  readNumber,
  readObject,
  readTag,
  readText,
} from './read-fields.ts'
import type { BlobRecord, ManifestRecord, ReferrersRecord, RepositoryRecord, TagRecord } from './records.ts'

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
    referrers: [...record.referrers.values()],
  })
}

/** The record in a repository's file; undefined when any part of it is not what it should be. */
export function parseRepository(text: string): RepositoryRecord | undefined {
  return readJson(text, readRepository)
}

function readRepository(json: unknown): RepositoryRecord {
  const value = readObject(json)
  if (value['format'] !== format) return damaged()
  const host = readText(value['host'])
  const name = readText(value['name'])
  if (parseRegistryHost(host) !== host || !isRepositoryName(name)) return damaged()
  return {
    host,
    name,
    tags: new Map(readList(value['tags']).map(readTagRecord)),
    manifests: new Map(readList(value['manifests']).map(readManifest)),
    blobs: new Map(readList(value['blobs']).map(readBlob)),
    // Records of earlier versions have none.
    referrers: new Map(readList(value['referrers'] ?? []).map(readReferrers)),
  }
}

function readTagRecord(json: unknown): [string, TagRecord] {
  const value = readObject(json)
  return [
    readTag(value['tag']),
    {
      digest: readDigest(value['digest']),
      identity: readText(value['identity']),
      checkedAt: readNumber(value['checkedAt']),
      pulls: readNumber(value['pulls']),
      lastPulled: readNumber(value['lastPulled']),
    },
  ]
}

function readManifest(json: unknown): [Digest, ManifestRecord] {
  const value = readObject(json)
  return [
    readDigest(value['digest']),
    {
      mediaType: readText(value['mediaType']),
      size: readNumber(value['size']),
      identity: readText(value['identity']),
      links: readList(value['links']).map(readLink),
      pulls: readNumber(value['pulls']),
      lastPulled: readNumber(value['lastPulled']),
      usedAt: readNumber(value['usedAt']),
    },
  ]
}

function readBlob(json: unknown): [Digest, BlobRecord] {
  const value = readObject(json)
  const record = {
    size: readNumber(value['size']),
    identity: readText(value['identity']),
    usedAt: readNumber(value['usedAt']),
  }
  return [readDigest(value['digest']), record]
}

/** Under which key a record holds a list of referrers. */
export function referrersKey({
  subject,
  identity,
  query,
}: Pick<ReferrersRecord, 'subject' | 'identity' | 'query'>): string {
  return JSON.stringify([subject, identity, query])
}

function readReferrers(json: unknown): [string, ReferrersRecord] {
  const value = readObject(json)
  const optional = (name: string) => (value[name] === undefined ? undefined : readText(value[name]))
  const record = {
    subject: readDigest(value['subject']),
    identity: readText(value['identity']),
    query: readText(value['query']),
    digest: readDigest(value['digest']),
    size: readNumber(value['size']),
    next: optional('next'),
    filtersApplied: optional('filtersApplied'),
    isWithoutApi: value['isWithoutApi'] === true,
    usedAt: readNumber(value['usedAt']),
  }
  return [referrersKey(record), record]
}
