import { readdir, rm } from 'node:fs/promises'
import { eachLimited, KeyedQueue } from '../lib/async.ts'
import { errnoOf } from '../lib/errors.ts'
import { readSmallFile, writeFileAtomic } from '../lib/fs.ts'
import type { Logger } from '../lib/logger.ts'
import { later, logFailure } from '../lib/time.ts'
import type { ManifestLink } from '../oci/content.ts'
import { type Digest, parseDigest } from '../oci/digest.ts'
import { isRepositoryName, isTag, parseRegistryHost } from '../oci/reference.ts'
import { parseIdentity } from '../oci/registry.ts'
import type { StoreLayout } from './layout.ts'
import {
  type BlobRecord,
  dropLeastRecentlyUsed,
  type ManifestRecord,
  type ReferrersRecord,
  type RefStore,
  type RepositoryRecord,
  type TagRecord,
  estimateBytes,
} from './records.ts'

interface FileRefStoreOptions {
  readonly layout: StoreLayout
  readonly logger: Logger
  /** How long changes of a record are gathered before they are written, ms. */
  readonly writeDelay?: number
  /** How long after a write that failed it is tried again, ms. */
  readonly retryDelay?: number
  /** Bytes that one record, and all together, may take in their files. Beyond that, what was used the longest ago is forgotten. */
  readonly maxBytes?: { readonly perRecord: number; readonly total: number }
}

const MiB = 1024 * 1024
const defaultMaxBytes = { perRecord: 16 * MiB, total: 64 * MiB }
/** This version writes no larger file; one may not fit into memory. */
const maxFileBytes = 24 * MiB
/** The share of a bound that is left after something had to be forgotten. */
const keptShare = 0.75

const readsAtOnce = 4
const writesAtOnce = 8

/** Repository records in memory, written behind. A write that fails is tried again. */
export class FileRefStore implements RefStore {
  readonly #options: FileRefStoreOptions
  readonly #records = new Map<string, RepositoryRecord>()
  readonly #changed = new Set<RepositoryRecord>()
  readonly #writes = new KeyedQueue<RepositoryRecord>()
  /** Bytes, as far as they were counted. */
  readonly #weights = new Map<RepositoryRecord, number>()
  #weight = 0
  /** Bytes beyond which something is forgotten. */
  #maxWeight: number
  readonly #listeners = new Set<(record: RepositoryRecord) => void>()
  #cancelFlush: (() => void) | undefined
  #closed = false

  private constructor(options: FileRefStoreOptions) {
    this.#options = options
    this.#maxWeight = (options.maxBytes ?? defaultMaxBytes).total
  }

  /** Loads every record. A damaged file is removed, and what it said is asked for again. */
  static async open(options: FileRefStoreOptions): Promise<FileRefStore> {
    const store = new FileRefStore(options)
    const { repositories } = options.layout
    const names = (await readdir(repositories)).filter((name) => name.endsWith('.json'))
    await eachLimited(names, readsAtOnce, (name) => store.#load(options.layout.entry(repositories, name)))
    return store
  }

  get(host: string, name: string): RepositoryRecord | undefined {
    return this.#records.get(keyOf(host, name))
  }

  ensure(host: string, name: string): RepositoryRecord {
    const known = this.get(host, name)
    if (known) return known
    const record = { host, name, tags: new Map(), manifests: new Map(), blobs: new Map(), referrers: new Map() }
    this.#records.set(keyOf(host, name), record)
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
    this.#cancelFlush = later(delay, () => this.flush(), onFailure)
  }

  async flush(): Promise<void> {
    this.#cancelFlush?.()
    this.#cancelFlush = undefined
    for (const record of this.#changed) this.#limitWeight(record)
    await eachLimited([...this.#changed], writesAtOnce, (record) => this.#writes.run(record, () => this.#write(record)))
    await this.#writes.idle()
  }

  /**
   * Keeps the records within their bounds, whatever upstreams send: they are in memory as long as the mirror runs, and are read
   * when it starts.
   */
  #limitWeight(record: RepositoryRecord): void {
    const most = this.#options.maxBytes ?? defaultMaxBytes
    if (this.#updateWeight(record) > most.perRecord) this.#dropLeastRecentlyUsed([record], most.perRecord)
    if (this.#weight <= this.#maxWeight) return
    this.#dropLeastRecentlyUsed(this.#records.values(), most.total)
    // Very many records are too much even when each holds nothing: all of them are not looked through for each that comes.
    this.#maxWeight = Math.max(most.total, this.#weight + most.total * (1 - keptShare))
  }

  #updateWeight(record: RepositoryRecord): number {
    const weight = estimateBytes(record)
    this.#weight += weight - (this.#weights.get(record) ?? 0)
    this.#weights.set(record, weight)
    return weight
  }

  #dropLeastRecentlyUsed(records: Iterable<RepositoryRecord>, most: number): void {
    const lightened = dropLeastRecentlyUsed(records, most * keptShare)
    for (const record of lightened) {
      this.#updateWeight(record)
      this.#changed.add(record)
    }
    this.#scheduleFlush(this.#options.writeDelay ?? 500)
    this.#options.logger.info({ records: lightened.size, most }, 'forgot what upstreams said of little used content')
  }

  /** Tells of every change from now on; the result ends it. */
  onTouch(listener: (record: RepositoryRecord) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /** Writes all changes; later ones stay in memory. */
  async close(): Promise<void> {
    this.#closed = true
    await this.flush()
  }

  async #load(path: string): Promise<void> {
    const { layout, logger } = this.#options
    try {
      const record = parseRepository(await readSmallFile(path, maxFileBytes))
      if (record && layout.repository(record.host, record.name) === path) {
        this.#records.set(keyOf(record.host, record.name), record)
        this.#limitWeight(record)
        return
      }
      logger.warn({ path }, 'a repository record is damaged; it will be built anew')
      await rm(path, { recursive: true, force: true })
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
      if (errnoOf(error) === 'EFBIG') await rm(path, { force: true })
      logger.warn({ path, error: String(error) }, 'a repository record cannot be read; it will be built anew')
    }
  }

  async #write(record: RepositoryRecord): Promise<void> {
    if (!this.#changed.delete(record)) return
    const { layout, logger } = this.#options
    const path = layout.repository(record.host, record.name)
    const isEmpty = record.tags.size + record.manifests.size + record.blobs.size + record.referrers.size === 0
    try {
      if (isEmpty) await rm(path, { force: true })
      else await writeFileAtomic(path, serializeRepository(record))
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
      this.#changed.add(record)
      logger.error({ path, error: String(error) }, 'could not write a repository record; trying again')
      this.#scheduleFlush(this.#options.retryDelay ?? 5000)
    }
  }
}

function keyOf(host: string, name: string): string {
  return `${host}/${name}`
}

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
    identity: parseIdentity(readText(value['identity'])),
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
    identity: parseIdentity(readText(value['identity'])),
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

/** Reads what is written down of a repository: each gives the value if it is what it should be, or throws a SyntaxError. */
export function readObject(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : damaged()
}

export function readList(value: unknown): unknown[] {
  return Array.isArray(value) ? value : damaged()
}

export function readText(value: unknown): string {
  return typeof value === 'string' ? value : damaged()
}

export function readNumber(value: unknown): number {
  return typeof value === 'number' && Number.isFinite(value) && value >= 0 ? value : damaged()
}

export function readTag(value: unknown): string {
  const tag = readText(value)
  return isTag(tag) ? tag : damaged()
}

export function readDigest(value: unknown): Digest {
  return parseDigest(readText(value)) ?? damaged()
}

function readLink(json: unknown): ManifestLink {
  const { kind, mediaType, digest, size } = readObject(json)
  if (kind !== 'manifest' && kind !== 'blob') return damaged()
  return { kind, mediaType: readText(mediaType), digest: readDigest(digest), size: readNumber(size) }
}

/** Parses a JSON text and reads it; undefined when it, or a part of it, is damaged. */
export function readJson<T>(text: string, read: (value: unknown) => T): T | undefined {
  try {
    return read(JSON.parse(text))
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
}

export function damaged(): never {
  throw new SyntaxError('not what stands in a record')
}
