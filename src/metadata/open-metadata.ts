import { rename, rm, utimes } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { createPauses } from '../lib/async.ts'
import { getErrno } from '../lib/errors.ts'
import { pathExists, syncFolder } from '../lib/fs.ts'
import { logFailure } from '../lib/time.ts'
import { type LogDamage, type LogLine, MetadataLog, toDamage } from './log.ts'
import type { Operation } from './metadata.ts'
import { type LoadedMetadata, MetadataStore, type MetadataStoreOptions } from './metadata-store.ts'
import { parseOperations } from './operations.ts'
import { readPreviousRecords } from './previous-release.ts'
import { Repositories } from './repositories.ts'

const maxReads = 3
/** Estimates the bytes of a checkpoint for each link of a cached manifest, its share of the manifest and the tag included. */
const checkpointBytesPerLink = 110

export interface MetadataOptions extends Omit<MetadataStoreOptions, 'isReadOnly'> {
  /** Holds the log. */
  readonly folder: string
  /** Holds the records of release 0.1, if they were not migrated. */
  readonly previousFolder: string
  /** See `Repositories`. */
  readonly countsHolders?: boolean
  /** Is called when lines are damaged, before the checkpoint that replaces them. */
  readonly onDamage?: (store: MetadataStore) => void
}

/**
 * Opens the metadata of a store whose lock the caller holds. Sets damaged lines aside, and replaces the records of release 0.1 by a
 * checkpoint. Throws the system's error when a file cannot be read, or the checkpoint cannot be written.
 */
export async function openMetadata(options: MetadataOptions): Promise<MetadataStore> {
  const { isPrevious, ...loaded } = await load(options)
  if (isPrevious) {
    await migrate(options, loaded)
    return new MetadataStore({ ...loaded, damage: [], unreadable: [] }, options)
  }
  await loaded.log.continue(loaded.sequence)
  const store = new MetadataStore(loaded, options)
  if (loaded.damage.length > 0) await reportDamage(store, options)
  return store
}

/** Replaces the files of release 0.1 by a checkpoint, before the first commit. */
async function migrate(options: MetadataOptions, loaded: LoadedMetadata): Promise<void> {
  const { folder, previousFolder, setAside, logger } = options
  // Remove what an earlier attempt has left.
  await rm(folder, { recursive: true, force: true })
  const setAsideAs = (kind: string) => (path: string) => setAside(join(dirname(path), `${kind}-${basename(path)}`))
  const store = new MetadataStore(loaded, { ...options, isReadOnly: true, setAside: setAsideAs('lines') })
  if (store.damage.length > 0) logDamage(store, options)
  await store.writeCheckpoint()
  for (const path of loaded.unreadable) {
    const movedTo = setAsideAs('unreadable')(path)
    // Let its week begin now. A file of another user refuses that.
    const now = new Date()
    await utimes(path, now, now).catch(() => {})
    await rename(path, movedTo)
    await syncFolder(dirname(movedTo))
    logger.error({ path, movedTo }, 'a journal of release 0.1 cannot be read')
  }
  const removed = setAside(previousFolder)
  // Remove all at once, because a rest of them would be migrated again.
  await rename(previousFolder, removed)
  // Make it durable before the first commit, because files that come back would replace it.
  for (const changed of [dirname(removed), dirname(previousFolder)]) await syncFolder(changed)
  await rm(removed, { recursive: true, force: true })
  logger.info({ path: folder }, 'migrated the records of release 0.1')
}

function logDamage({ damage }: MetadataStore, { logger }: MetadataOptions): void {
  const repositories = [...new Set(damage.map(({ repository }) => repository?.replace(/^\//, '') ?? 'unknown'))]
  logger.error({ path: damage[0]!.path, lines: damage.length, repositories }, 'some metadata are damaged or missing')
}

async function reportDamage(store: MetadataStore, options: MetadataOptions): Promise<void> {
  logDamage(store, options)
  options.onDamage?.(store)
  await store.keepDamage().catch(logFailure(options.logger, 'could not copy the damaged lines; trying again'))
  // Without a checkpoint, the next start would find the same lines.
  store.requestCheckpoint()
}

/** Reads the metadata and changes nothing on the disk. Changes of the result stay in memory. */
export async function readMetadata(options: MetadataOptions): Promise<MetadataStore> {
  for (let attempt = 1; ; attempt++) {
    try {
      return new MetadataStore(await load(options), { ...options, isReadOnly: true })
    } catch (error) {
      // A checkpoint of a running mirror may remove a file before it is read.
      if (getErrno(error) !== 'ENOENT' || attempt === maxReads) throw error
    }
  }
}

async function load(options: MetadataOptions): Promise<LoadedMetadata & { readonly isPrevious: boolean }> {
  const { folder, previousFolder, clock } = options
  const repositories = new Repositories(options.countsHolders ?? false)
  const log = new MetadataLog(folder)
  const damage: LogDamage[] = []
  const reader = {
    pause: createPauses(clock),
    onDamage: (found: LogDamage) => void damage.push(found),
    onDropped: (path: string) =>
      options.logger.warn({ path }, 'a record of release 0.1 cannot be read; its content is requested again'),
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
        damage.push(toDamage(path, line))
      }
    },
  }
  const isPrevious = await pathExists(previousFolder)
  const unreadable = isPrevious ? await readPreviousRecords(previousFolder, reader) : []
  if (!isPrevious) repositories.reserveLinks((await log.measureCheckpoint()) / checkpointBytesPerLink)
  // A migrated store begins at 1, because a segment that begins at 0 needs no checkpoint before it.
  const sequence = isPrevious ? 1 : await log.read(reader, options.isNew)
  return { repositories, log, sequence, damage, unreadable, isPrevious }
}
