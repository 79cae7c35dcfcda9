import { rename, rm } from 'node:fs/promises'
import { createPauses } from '../lib/async.ts'
import { getErrno } from '../lib/errors.ts'
import { pathExists } from '../lib/fs.ts'
import type { Logger } from '../lib/logger.ts'
import type { Clock } from '../lib/time.ts'
import { formatLine, type LogDamage, type LogLine, MetadataLog } from './log.ts'
import type { Operation } from './metadata.ts'
import { type LoadedMetadata, MetadataStore } from './metadata-store.ts'
import { parseOperations } from './operations.ts'
import { readPreviousRecords } from './previous-release.ts'
import { Repositories } from './repositories.ts'

const maxReads = 3
/** Estimates the bytes of a checkpoint for each link of a cached manifest, its share of the manifest and the tag included. */
const checkpointBytesPerLink = 110

export interface MetadataOptions {
  /** Holds the log. */
  readonly folder: string
  /** Holds the records of release 0.1, if they were not migrated. */
  readonly previousFolder: string
  /** Returns a path for a damaged file, or for a copy of its damaged lines. */
  readonly setAside: (path: string) => string
  readonly logger: Logger
  readonly clock: Clock
  /** See `Repositories`. */
  readonly countsHolders?: boolean
  /** See `MetadataStore`. */
  readonly maxWeight?: number | undefined
}

/**
 * Opens the metadata of a store whose lock the caller holds. Sets damaged lines aside, and replaces the records of release 0.1 by a
 * checkpoint. Throws the system's error when a file cannot be read.
 */
export async function openMetadata(options: MetadataOptions): Promise<MetadataStore> {
  const { folder } = options
  const { unreadable, ...loaded } = await load(options)
  if (unreadable) await rm(folder, { recursive: true, force: true })
  else await loaded.log.continue()
  const store = new MetadataStore({ ...options, loaded })
  if (unreadable) await store.writeCheckpoint()
  if (loaded.damage.length > 0) await reportDamage(store, options)
  if (unreadable) {
    await store.keepDamage()
    await removePrevious(options, unreadable)
  }
  return store
}

async function reportDamage(store: MetadataStore, { logger }: MetadataOptions): Promise<void> {
  const repositories = [...new Set(store.damage.map(({ repository }) => repository ?? 'unknown'))]
  const fields = { path: store.damage[0]!.path, lines: store.damage.length, repositories }
  logger.error(fields, 'the metadata have damaged lines')
  try {
    await store.keepDamage()
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    logger.error({ error: String(error) }, 'could not copy the damaged lines; trying again')
  }
  // Without a checkpoint, the next start would find the same lines.
  store.requestCheckpoint()
}

/** Reads the metadata and changes nothing on the disk. Changes of the result stay in memory. */
export async function readMetadata(options: MetadataOptions): Promise<MetadataStore> {
  for (let attempt = 1; ; attempt++) {
    try {
      return new MetadataStore({ ...options, loaded: await load(options), isReadOnly: true })
    } catch (error) {
      // A checkpoint of a running mirror may remove a file before it is read.
      if (getErrno(error) !== 'ENOENT' || attempt === maxReads) throw error
    }
  }
}

/** `unreadable`: the unreadable files of release 0.1; undefined for metadata of this format. */
async function load(options: MetadataOptions): Promise<LoadedMetadata & { readonly unreadable: string[] | undefined }> {
  const { folder, previousFolder, clock } = options
  const repositories = new Repositories(options.countsHolders ?? false)
  const log = new MetadataLog(folder)
  const damage: LogDamage[] = []
  const reader = {
    pause: createPauses(clock),
    onDamage: (found: LogDamage) => void damage.push(found),
    onOperations(host: string, name: string, operations: readonly Operation[]) {
      for (const operation of operations) repositories.apply(host, name, operation)
    },
    onLine(line: LogLine, path: string) {
      const slash = line.repository.indexOf('/')
      try {
        const operations = parseOperations(line.operations)
        reader.onOperations(line.repository.slice(0, slash), line.repository.slice(slash + 1), operations)
      } catch (error) {
        if (!(error instanceof SyntaxError)) throw error
        damage.push({ path, repository: line.repository, bytes: Buffer.from(formatLine(line).slice(0, -1)) })
      }
    },
  }
  const isPrevious = await pathExists(previousFolder)
  const unreadable = isPrevious ? await readPreviousRecords(previousFolder, reader) : undefined
  if (!isPrevious) repositories.reserveLinks((await log.measureCheckpoint()) / checkpointBytesPerLink)
  const sequence = isPrevious ? 0 : await log.read(reader)
  return { repositories, log, sequence, damage, unreadable }
}

/** Removes the files of release 0.1, after their checkpoint is on the disk and before the first commit. Keeps the unreadable ones. */
async function removePrevious(
  { folder, previousFolder, setAside, logger }: MetadataOptions,
  unreadable: readonly string[],
) {
  for (const path of unreadable) await rename(path, setAside(path))
  const removed = setAside(previousFolder)
  // Remove all at once, because a rest of them would be migrated again.
  await rename(previousFolder, removed)
  await rm(removed, { recursive: true, force: true })
  logger.info({ path: folder }, 'migrated the records of release 0.1')
}
