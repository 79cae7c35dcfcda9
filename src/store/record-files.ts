import { readdir, rm } from 'node:fs/promises'
import { eachLimited, KeyedQueue } from '../lib/async.ts'
import { getErrno } from '../lib/errors.ts'
import { readSmallFile, writeFileAtomic } from '../lib/fs.ts'
import type { Logger } from '../lib/logger.ts'
import { runLater, logFailure } from '../lib/time.ts'
import { isForeignLayer, type ManifestLink } from '../oci/content.ts'
import { type Digest, parseDigest, isRepositoryName, isTag, parseRegistryHost } from '../oci/reference.ts'
import { parseIdentity } from '../oci/registry.ts'
import type { StoreLayout } from './layout.ts'
import {
  type BlobRecord,
  dropLeastRecentlyUsed,
  type ManifestRecord,
  ManifestRecords,
  type ReferrersRecord,
  type RefStore,
  type RepositoryRecord,
  type TagRecord,
  estimateBytes,
} from './records.ts'

const format = 1
const MiB = 1024 * 1024
const defaultMaxBytes = { perRecord: 16 * MiB, total: 64 * MiB }
/** Limits the record files that are read, bytes. This version writes none so large, and a larger one might not fit into memory. */
const maxFileBytes = 24 * MiB
/** Sets the share of a limit that is kept when parts are dropped. */
const keptShare = 0.75
const readsAtOnce = 4
const writesAtOnce = 8

interface FileRefStoreOptions {
  readonly layout: StoreLayout
  readonly logger: Logger
  /** Sets the delay in which changes are collected before a write, ms. */
  readonly writeDelay?: number
  /** Sets the delay before a failed write is repeated, ms. */
  readonly retryDelay?: number
  /** Limits the bytes of one record and of all records in their files. Beyond that, the least recently used parts are dropped. */
  readonly maxBytes?: { readonly perRecord: number; readonly total: number }
}

/** Keeps repository records in memory, and writes changes to files with a delay. Repeats failed writes. */
export class FileRefStore implements RefStore {
  readonly #options: FileRefStoreOptions
  readonly #records = new Map<string, RepositoryRecord>()
  readonly #changed = new Set<RepositoryRecord>()
  readonly #writes = new KeyedQueue<RepositoryRecord>()
  /** Estimates the bytes of each record that was counted. */
  readonly #weights = new Map<RepositoryRecord, number>()
  #weight = 0
  /** Sets the total bytes beyond which parts are dropped. */
  #maxWeight: number
  readonly #listeners = new Set<(record: RepositoryRecord) => void>()
  #cancelFlush: (() => void) | undefined
  #closed = false

  private constructor(options: FileRefStoreOptions) {
    this.#options = options
    this.#maxWeight = (options.maxBytes ?? defaultMaxBytes).total
  }

  /** Loads all records. Removes damaged files; their content is requested from the upstreams again. */
  static async open(options: FileRefStoreOptions): Promise<FileRefStore> {
    const store = new FileRefStore(options)
    const { repositories } = options.layout
    const names = (await readdir(repositories)).filter((name) => name.endsWith('.json'))
    await eachLimited(names, readsAtOnce, (name) => store.#load(options.layout.entry(repositories, name)))
    return store
  }

  get(host: string, name: string): RepositoryRecord | undefined {
    return this.#records.get(toKey(host, name))
  }

  ensure(host: string, name: string): RepositoryRecord {
    const known = this.get(host, name)
    if (known) return known
    const record = {
      host,
      name,
      tags: new Map(),
      manifests: new ManifestRecords(),
      blobs: new Map(),
      referrers: new Map(),
    }
    this.#records.set(toKey(host, name), record)
    return record
  }

  all(): Iterable<RepositoryRecord> {
    return this.#records.values()
  }

  touch(record: RepositoryRecord): void {
    this.#changed.add(record)
    for (const listener of this.#listeners) listener(record)
    this.#scheduleFlush(this.#options.writeDelay ?? 500)
  }

  #scheduleFlush(delay: number): void {
    if (this.#closed || this.#cancelFlush) return
    const onFailure = logFailure(this.#options.logger, 'could not write the repository records')
    this.#cancelFlush = runLater(delay, () => this.flush(), onFailure)
  }

  async flush(): Promise<void> {
    this.#cancelFlush?.()
    this.#cancelFlush = undefined
    for (const record of this.#changed) this.#limitWeight(record)
    await eachLimited([...this.#changed], writesAtOnce, (record) => this.#writes.run(record, () => this.#write(record)))
    await this.#writes.idle()
  }

  /**
   * Keeps the records within their limits whatever upstreams send, because they stay in memory while the mirror runs, and are read when
   * it starts.
   */
  #limitWeight(record: RepositoryRecord): void {
    const { perRecord, total } = this.#options.maxBytes ?? defaultMaxBytes
    if (this.#updateWeight(record) > perRecord) this.#dropLeastRecentlyUsed([record], perRecord)
    if (this.#weight <= this.#maxWeight) return
    this.#dropLeastRecentlyUsed(this.#records.values(), total)
    // Raise the limit when many empty records exceed it, so that not every new record causes a pass over all of them.
    this.#maxWeight = Math.max(total, this.#weight + total * (1 - keptShare))
  }

  #updateWeight(record: RepositoryRecord): number {
    const weight = estimateBytes(record)
    this.#weight += weight - (this.#weights.get(record) ?? 0)
    this.#weights.set(record, weight)
    return weight
  }

  #dropLeastRecentlyUsed(records: Iterable<RepositoryRecord>, maxBytes: number): void {
    const changed = dropLeastRecentlyUsed(records, maxBytes * keptShare)
    for (const record of changed) {
      this.#updateWeight(record)
      this.#changed.add(record)
    }
    this.#scheduleFlush(this.#options.writeDelay ?? 500)
    this.#options.logger.info(
      { records: changed.size, most: maxBytes },
      'dropped records of the least recently used content',
    )
  }

  /** Calls the listener for each change from now on. Returns the function that removes it. */
  onTouch(listener: (record: RepositoryRecord) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /** Writes all changes. Later changes stay in memory. */
  async close(): Promise<void> {
    this.#closed = true
    await this.flush()
  }

  async #load(path: string): Promise<void> {
    const { layout, logger } = this.#options
    try {
      const record = parseRepositoryRecord(await readSmallFile(path, maxFileBytes))
      if (record && layout.repository(record.host, record.name) === path) {
        this.#records.set(toKey(record.host, record.name), record)
        this.#limitWeight(record)
        return
      }
      logger.warn({ path }, 'a repository record is damaged; it will be rebuilt')
      await rm(path, { recursive: true, force: true })
    } catch (error) {
      if (getErrno(error) === undefined) throw error
      if (getErrno(error) === 'EFBIG') await rm(path, { force: true })
      logger.warn({ path, error: String(error) }, 'a repository record cannot be read; it will be rebuilt')
    }
  }

  async #write(record: RepositoryRecord): Promise<void> {
    if (!this.#changed.delete(record)) return
    const { layout, logger } = this.#options
    const path = layout.repository(record.host, record.name)
    const isEmpty = record.tags.size + record.manifests.size + record.blobs.size + record.referrers.size === 0
    try {
      if (isEmpty) await rm(path, { force: true })
      else await writeFileAtomic(path, serializeRepositoryRecord(record))
    } catch (error) {
      if (getErrno(error) === undefined) throw error
      this.#changed.add(record)
      logger.error({ path, error: String(error) }, 'could not write a repository record; trying again')
      this.#scheduleFlush(this.#options.retryDelay ?? 5000)
    }
  }
}

function toKey(host: string, name: string): string {
  return `${host}/${name}`
}

/** Serializes a record as JSON. Uses lists, not objects keyed by tag, because `__proto__` is a valid tag. */
export function serializeRepositoryRecord(record: RepositoryRecord): string {
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

/** Parses the record of a repository's file; undefined when any part of it is damaged. */
export function parseRepositoryRecord(text: string): RepositoryRecord | undefined {
  return parseRecordJson(text, readRepository)
}

function readRepository(json: unknown): RepositoryRecord {
  const value = readObject(json)
  if (value['format'] !== format) return throwDamaged()
  const host = readText(value['host'])
  const name = readText(value['name'])
  if (parseRegistryHost(host) !== host || !isRepositoryName(name)) return throwDamaged()
  return {
    host,
    name,
    tags: new Map(readList(value['tags']).map(readTagRecord)),
    manifests: new ManifestRecords(readList(value['manifests']).map(readManifest)),
    blobs: new Map(readList(value['blobs']).map(readBlobRecord)),
    // Accept records of earlier versions, which have no referrers.
    referrers: new Map(readList(value['referrers'] ?? []).map(readReferrers)),
  }
}

function readTagRecord(json: unknown): [string, TagRecord] {
  const value = readObject(json)
  return [
    readTag(value['tag']),
    {
      digest: readDigest(value['digest']),
      identity: parseIdentity(readText(value['identity'])),
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
      identity: parseIdentity(readText(value['identity'])),
      // Earlier versions recorded foreign layers too.
      links: readList(value['links'])
        .map(readLink)
        .filter((link) => !isForeignLayer(link.mediaType)),
      pulls: readNumber(value['pulls']),
      lastPulled: readNumber(value['lastPulled']),
      usedAt: readNumber(value['usedAt']),
    },
  ]
}

function readBlobRecord(json: unknown): [Digest, BlobRecord] {
  const value = readObject(json)
  const record = {
    size: readNumber(value['size']),
    identity: parseIdentity(readText(value['identity'])),
    usedAt: readNumber(value['usedAt']),
  }
  return [readDigest(value['digest']), record]
}

/** Returns the key of a list of referrers in a record. */
export function toReferrersKey({
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
    identity: parseIdentity(readText(value['identity'])),
    query: readText(value['query']),
    digest: readDigest(value['digest']),
    size: readNumber(value['size']),
    next: optional('next'),
    filtersApplied: optional('filtersApplied'),
    isWithoutApi: value['isWithoutApi'] === true,
    usedAt: readNumber(value['usedAt']),
  }
  return [toReferrersKey(record), record]
}

/** Returns the value if it is an object; throws a SyntaxError otherwise. */
export function readObject(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : throwDamaged()
}

/** Returns the value if it is a list; throws a SyntaxError otherwise. */
export function readList(value: unknown): unknown[] {
  return Array.isArray(value) ? value : throwDamaged()
}

/** Returns the value if it is a string; throws a SyntaxError otherwise. */
export function readText(value: unknown): string {
  return typeof value === 'string' ? value : throwDamaged()
}

/** Returns the value if it is a finite number that is not negative; throws a SyntaxError otherwise. */
export function readNumber(value: unknown): number {
  return typeof value === 'number' && Number.isFinite(value) && value >= 0 ? value : throwDamaged()
}

/** Returns the value if it is a tag; throws a SyntaxError otherwise. */
export function readTag(value: unknown): string {
  const tag = readText(value)
  return isTag(tag) ? tag : throwDamaged()
}

/** Returns the value if it is a digest; throws a SyntaxError otherwise. */
export function readDigest(value: unknown): Digest {
  return parseDigest(readText(value)) ?? throwDamaged()
}

function readLink(json: unknown): ManifestLink {
  const { kind, mediaType, digest, size } = readObject(json)
  if (kind !== 'manifest' && kind !== 'blob') return throwDamaged()
  return { kind, mediaType: readText(mediaType), digest: readDigest(digest), size: readNumber(size) }
}

/** Parses a JSON text and passes it to `read`; undefined when a SyntaxError shows that the text or a part of it is damaged. */
export function parseRecordJson<T>(text: string, read: (value: unknown) => T): T | undefined {
  try {
    return read(JSON.parse(text))
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
}

/** Throws a SyntaxError, which marks a record as damaged. */
export function throwDamaged(): never {
  throw new SyntaxError('a record has an unexpected value')
}
