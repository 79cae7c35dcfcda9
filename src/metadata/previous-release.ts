import { open, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { getErrno } from '../lib/errors.ts'
import { isForeignLayer, type ManifestLink, toArtifactTypeKey } from '../oci/content.ts'
import { isRepositoryName, isTag, parseRegistryHost } from '../oci/reference.ts'
import { parseIdentity } from '../oci/registry.ts'
import { formatLine, type LogDamage } from './log.ts'
import type { Operation } from './metadata.ts'
import { packLinks, readDigest, readList, readNumber, readText, throwDamaged } from './operations.ts'

/** Receives the content of the files of release 0.1. */
interface PreviousReader {
  onOperations(host: string, name: string, operations: readonly Operation[]): void
  onDamage(damage: LogDamage): void
  pause(): Promise<void>
}

const lineFeed = 0x0a

type JsonObject = Record<string, unknown>

/**
 * Reads the records of release 0.1: a JSON file for each repository of the cache, a journal in JSON Lines for each pushed repository. Changes
 * nothing. Returns the journals that could not be read; the content of a repository of the cache is requested from the upstream again.
 */
export async function readPreviousRecords(folder: string, reader: PreviousReader): Promise<string[]> {
  const unreadable: string[] = []
  for (const file of (await readdir(folder)).toSorted()) {
    const path = join(folder, file)
    const read = file.endsWith('.json') ? readRecord : file.endsWith('.jsonl') ? readJournal : undefined
    try {
      await read?.(path, reader)
    } catch (error) {
      if (!(error instanceof SyntaxError) && getErrno(error) === undefined) throw error
      if (read === readJournal) unreadable.push(path)
    }
    await reader.pause()
  }
  return unreadable
}

async function readRecord(path: string, reader: PreviousReader): Promise<void> {
  let record: JsonObject | undefined
  for await (const { value } of readLines(path)) record = value
  const { format, host, name, tags, manifests, blobs, referrers } = record ?? throwDamaged()
  const registry = readText(host)
  const repository = readText(name)
  if (format !== 1 || parseRegistryHost(registry) !== registry || !isRepositoryName(repository)) return throwDamaged()
  const operations = [
    ...readList(blobs).map((entry) => toBlob(readObject(entry))),
    ...readList(manifests).map((entry) => toManifest(readObject(entry))),
    ...readList(tags).map((entry) => toTag(readObject(entry))),
    ...readList(referrers ?? []).map((entry) => toReferrers(readObject(entry))),
  ]
  reader.onOperations(registry, repository, operations)
}

async function readJournal(path: string, reader: PreviousReader): Promise<void> {
  let name: string | undefined
  for await (const { text, value } of readLines(path)) {
    if (name === undefined) {
      const head = readObject(value)
      name = readText(head['name'])
      if (readNumber(head['format']) > 2 || !isRepositoryName(name)) return throwDamaged()
      continue
    }
    try {
      const changes = readList(value).map((change) => toChange(readObject(change)))
      reader.onOperations('', name, changes)
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error
      const line = formatLine({ sequence: 0, repository: `/${name}`, operations: text })
      reader.onDamage({ path, repository: `/${name}`, bytes: Buffer.from(line.slice(0, -1)) })
    }
    await reader.pause()
  }
  if (name === undefined) return throwDamaged()
}

/**
 * Yields the lines with their JSON value, which is undefined for a damaged one. A crash may have left a part of a line at the end, which was
 * never acknowledged.
 */
async function* readLines(
  path: string,
): AsyncGenerator<{ readonly text: string; readonly value: JsonObject | undefined }> {
  const file = await open(path, 'r')
  try {
    const { size } = await file.stat()
    const last = Buffer.alloc(1)
    await file.read(last, 0, 1, Math.max(0, size - 1))
    let damaged: string | undefined
    for await (const text of file.readLines({ start: 0, autoClose: false })) {
      if (damaged !== undefined) yield { text: damaged, value: undefined }
      damaged = undefined
      try {
        yield { text, value: JSON.parse(text) as JsonObject }
      } catch (error) {
        if (!(error instanceof SyntaxError)) throw error
        damaged = text
      }
    }
    if (damaged !== undefined && last[0] === lineFeed) yield { text: damaged, value: undefined }
  } finally {
    await file.close()
  }
}

/** Converts a change of a journal. */
function toChange(value: JsonObject): Operation {
  const { op } = value
  const identity = { identity: 'anonymous' }
  switch (op) {
    case 'tag':
      return toTag({ ...value, ...identity, checkedAt: value['pushedAt'], pulls: 0, lastPulled: 0 })
    case 'untag': {
      const { pushedAt } = value
      return { op, tag: readTag(value['tag']), ...(pushedAt !== undefined && { updatedAt: readNumber(pushedAt) }) }
    }
    case 'manifest': {
      const { subject, artifactType, heldSince } = value
      const manifest = toManifest({ ...value, ...identity, usedAt: heldSince, pulls: 0, lastPulled: 0, links: [] })
      return {
        ...manifest,
        updatedAt: readNumber(value['pushedAt']),
        ...(subject !== undefined && { subject: readDigest(subject) }),
        ...(artifactType !== undefined && { artifactType: toArtifactTypeKey(readText(artifactType)) }),
      }
    }
    case 'blob':
      return toBlob({ ...value, ...identity, usedAt: value['heldSince'] })
    case 'drop-manifest':
    case 'drop-blob':
      return { op, digest: readDigest(value['digest']) }
    default:
      return throwDamaged()
  }
}

function toTag(value: JsonObject): Operation {
  return {
    op: 'tag',
    tag: readTag(value['tag']),
    digest: readDigest(value['digest']),
    identity: parseIdentity(readText(value['identity'])),
    updatedAt: readNumber(value['checkedAt']),
    pulls: readNumber(value['pulls']),
    lastPulled: readNumber(value['lastPulled']),
  }
}

function toManifest(value: JsonObject): Extract<Operation, { op: 'manifest' }> {
  const links = readList(value['links']).map(toLink)
  return {
    op: 'manifest',
    digest: readDigest(value['digest']),
    mediaType: readText(value['mediaType']),
    size: readNumber(value['size']),
    identity: parseIdentity(readText(value['identity'])),
    updatedAt: 0,
    pulls: readNumber(value['pulls']),
    lastPulled: readNumber(value['lastPulled']),
    usedAt: readNumber(value['usedAt']),
    // Release 0.1 once recorded foreign layers, which grant nothing.
    links: packLinks(links.filter((link) => !isForeignLayer(link.mediaType))),
  }
}

function toLink(json: unknown): ManifestLink {
  const { kind, mediaType, digest, size } = readObject(json)
  if (kind !== 'manifest' && kind !== 'blob') return throwDamaged()
  return { kind, mediaType: readText(mediaType), digest: readDigest(digest), size: readNumber(size) }
}

function toBlob(value: JsonObject): Operation {
  return {
    op: 'blob',
    digest: readDigest(value['digest']),
    size: readNumber(value['size']),
    identity: parseIdentity(readText(value['identity'])),
    usedAt: readNumber(value['usedAt']),
  }
}

function toReferrers(value: JsonObject): Operation {
  const optional = (name: string) => (value[name] === undefined ? undefined : readText(value[name]))
  return {
    op: 'referrers',
    subject: readDigest(value['subject']),
    identity: parseIdentity(readText(value['identity'])),
    query: readText(value['query']),
    digest: readDigest(value['digest']),
    size: readNumber(value['size']),
    next: optional('next'),
    filtersApplied: optional('filtersApplied'),
    isWithoutApi: value['isWithoutApi'] === true,
    usedAt: readNumber(value['usedAt']),
  }
}

function readObject(value: unknown): JsonObject {
  return typeof value === 'object' && value !== null ? (value as JsonObject) : throwDamaged()
}

function readTag(value: unknown): string {
  const tag = readText(value)
  return isTag(tag) ? tag : throwDamaged()
}
