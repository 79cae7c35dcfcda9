import { createHash } from 'node:crypto'
import { open, readdir } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { getErrno } from '../lib/errors.ts'
import { isForeignLayer, type ManifestLink, toArtifactTypeKey } from '../oci/content.ts'
import { isRepositoryName, isTag, parseRegistryHost } from '../oci/reference.ts'
import { type LogDamage, toDamage } from './log.ts'
import type { Operation } from './metadata.ts'
import { packLinks, readDigest, readList, readNumber, readOperation, readText, throwDamaged } from './operations.ts'

/** Receives the content of the files of release 0.1. */
interface PreviousReader {
  onOperations(host: string, name: string, operations: readonly Operation[]): void
  onDamage(damage: LogDamage): void
  /** Is called for the unreadable record of a repository of the cache. */
  onDropped(path: string): void
  pause(): Promise<void>
}

/** Lists the errors that say nothing about the file: another start may read it. */
const refusals = ['EACCES', 'EPERM', 'EMFILE', 'ENFILE', 'ENOMEM']
const lineFeed = 0x0a
const chunkBytes = 256 * 1024
/** Limits a record of the cache, bytes, as release 0.1 did: a larger one would not fit into the memory of the server. */
const maxRecordBytes = 24 * 1024 * 1024
/** Limits a line of a journal, bytes: more than any commit. */
const maxLineBytes = 64 * 1024 * 1024

type JsonObject = Record<string, unknown>

/**
 * Reads the records of release 0.1: a JSON file for each repository of the cache, a journal in JSON Lines for each pushed repository. Changes
 * nothing. Returns the journals that could not be read; the content of a repository of the cache is requested from the upstream again.
 * Throws the system's error when it refuses to read a file.
 */
export async function readPreviousRecords(folder: string, reader: PreviousReader): Promise<string[]> {
  const unreadable: string[] = []
  for (const file of (await readdir(folder)).toSorted()) {
    const path = join(folder, file)
    const read = file.endsWith('.json') ? readRecord : file.endsWith('.jsonl') ? readJournal : undefined
    try {
      await read?.(path, reader)
    } catch (error) {
      const code = getErrno(error)
      if (!(error instanceof SyntaxError) && (code === undefined || refusals.includes(code))) throw error
      if (read === readJournal) unreadable.push(path)
      else reader.onDropped(path)
    }
    await reader.pause()
  }
  return unreadable
}

async function readRecord(path: string, reader: PreviousReader): Promise<void> {
  let record: JsonObject | undefined
  for await (const { value } of readLines(path, maxRecordBytes)) record = value
  const { format, host, name, tags, manifests, blobs, referrers } = record ?? throwDamaged()
  const registry = readText(host)
  const repository = readText(name)
  if (format !== 1 || parseRegistryHost(registry) !== registry || !isRepositoryName(repository)) return throwDamaged()
  if (!isFileOf(path, `${registry}/${repository}`)) return throwDamaged()
  const operations = [
    ...readList(blobs).map((entry) => readOperation('blob', readObject(entry))),
    ...readList(manifests).map((entry) => toManifest(readObject(entry))),
    ...readList(tags).map((entry) => toTag(readObject(entry))),
    ...readList(referrers ?? []).map((entry) => readOperation('referrers', readObject(entry))),
  ]
  reader.onOperations(registry, repository, operations)
}

async function readJournal(path: string, reader: PreviousReader): Promise<void> {
  let name: string | undefined
  for await (const { bytes, value } of readLines(path, maxLineBytes)) {
    if (name === undefined) {
      const head = readObject(value)
      name = readText(head['name'])
      if (readNumber(head['format']) > 2 || !isRepositoryName(name) || !isFileOf(path, name)) return throwDamaged()
      continue
    }
    try {
      const changes = readList(value).map((change) => toChange(readObject(change)))
      reader.onOperations('', name, changes)
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error
      reader.onDamage(toDamage(path, { sequence: 0, repository: `/${name}`, operations: bytes.toString('latin1') }))
    }
    await reader.pause()
  }
  if (name === undefined) return throwDamaged()
}

/** Reports whether release 0.1 gave a repository this file: the name of the file is a hash of the repository's. */
function isFileOf(path: string, name: string): boolean {
  return basename(path).startsWith(`${createHash('sha256').update(name).digest('hex')}.`)
}

interface JsonLine {
  readonly bytes: Buffer
  /** Is undefined for a damaged line. */
  readonly value: JsonObject | undefined
}

/**
 * Yields the lines of a file. A crash may have left a part of a line at the end, which was never acknowledged. Only line feeds end a line:
 * `readline` ends one at U+2028 too, which JSON texts may contain.
 */
async function* readLines(path: string, maxBytes: number): AsyncGenerator<JsonLine, void> {
  const file = await open(path, 'r')
  try {
    const chunk = Buffer.allocUnsafeSlow(chunkBytes)
    let started: Buffer[] = []
    let startedBytes = 0
    const takeLine = (end: Buffer) => {
      const bytes = Buffer.concat([...started, end])
      started = []
      startedBytes = 0
      return { bytes, value: parseJson(bytes) }
    }
    for (let position = 0; ;) {
      const { bytesRead } = await file.read(chunk, 0, chunkBytes, position)
      if (bytesRead === 0) break
      position += bytesRead
      const read = chunk.subarray(0, bytesRead)
      let from = 0
      for (let end = read.indexOf(lineFeed); end !== -1; end = read.indexOf(lineFeed, from)) {
        yield takeLine(read.subarray(from, end))
        from = end + 1
      }
      started.push(Buffer.from(read.subarray(from)))
      startedBytes += bytesRead - from
      if (startedBytes > maxBytes) return throwDamaged()
    }
    const last = takeLine(Buffer.alloc(0))
    if (last.value !== undefined) yield last
  } finally {
    await file.close()
  }
}

function parseJson(bytes: Buffer): JsonObject | undefined {
  try {
    return JSON.parse(bytes.toString()) as JsonObject
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error
    return undefined
  }
}

/** Converts a change of a journal. */
function toChange(value: JsonObject): Operation {
  const pushed = { ...value, identity: 'anonymous', pulls: 0, lastPulled: 0, usedAt: value['heldSince'] }
  const { op, pushedAt, artifactType } = value
  switch (op) {
    case 'tag':
      return toTag({ ...pushed, checkedAt: pushedAt })
    case 'untag':
      return readOperation(op, { tag: readTag(value['tag']), updatedAt: pushedAt })
    case 'manifest': {
      const key = artifactType === undefined ? undefined : toArtifactTypeKey(readText(artifactType))
      return readOperation(op, { ...pushed, updatedAt: pushedAt, artifactType: key, links: undefined })
    }
    case 'blob':
      return readOperation(op, pushed)
    case 'drop-manifest':
    case 'drop-blob':
      return readOperation(op, value)
    default:
      return throwDamaged()
  }
}

function toTag(value: JsonObject): Operation {
  return readOperation('tag', { ...value, tag: readTag(value['tag']), updatedAt: value['checkedAt'] })
}

function toManifest(value: JsonObject): Operation {
  const links = readList(value['links']).map(toLink)
  return {
    ...readOperation('manifest', { ...value, updatedAt: 0, links: undefined }),
    // Release 0.1 once recorded foreign layers, which grant nothing.
    links: packLinks(links.filter((link) => !isForeignLayer(link.mediaType))),
  }
}

function toLink(json: unknown): ManifestLink {
  const { kind, mediaType, digest, size } = readObject(json)
  if (kind !== 'manifest' && kind !== 'blob') return throwDamaged()
  return { kind, mediaType: readText(mediaType), digest: readDigest(digest), size: readNumber(size) }
}

function readObject(value: unknown): JsonObject {
  return typeof value === 'object' && value !== null ? (value as JsonObject) : throwDamaged()
}

function readTag(value: unknown): string {
  const tag = readText(value)
  return isTag(tag) ? tag : throwDamaged()
}
