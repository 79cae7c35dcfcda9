import { readdir } from 'node:fs/promises'
import { getErrno } from '../lib/errors.ts'
import { ignoreMissing } from '../lib/fs.ts'
import { countDamagedLines, type LogDamage } from '../metadata/log.ts'
import type { Operation, Repository } from '../metadata/metadata.ts'
import { isRemoval } from '../metadata/operations.ts'
import type { MetadataStore } from '../metadata/metadata-store.ts'
import { openMetadata, readMetadata } from '../metadata/open-metadata.ts'
import type { Digest } from '../oci/reference.ts'
import type { StoreLayout } from '../store/layout.ts'
import { type ClaimedStore, claimStore, readStore, type Store, type StoreOptions } from '../store/open-store.ts'

/** Is a repository of the local registry: its host is empty, and its manifests have no links. */
export type PushedRepository = Repository

/** Limits the removals in one commit. Unlike other operations, removals may be applied without each other. */
const maxRemovals = 100_000

/** Keeps the repositories of the local registry, and the claims of running requests. */
export class PushedRepositories {
  readonly #layout: StoreLayout
  readonly #metadata: MetadataStore
  readonly #claims = new Map<Digest, number>()
  #quarantined = { isAny: false, repositories: [] as DamagedRepository[] }

  private constructor(layout: StoreLayout, metadata: MetadataStore) {
    this.#layout = layout
    this.#metadata = metadata
  }

  static async open(layout: StoreLayout, metadata: MetadataStore): Promise<PushedRepositories> {
    const repositories = new PushedRepositories(layout, metadata)
    await repositories.findDamage()
    return repositories
  }

  /** Looks for damaged records in the quarantine. */
  async findDamage(): Promise<void> {
    this.#quarantined = await listQuarantinedDamage(this.#layout)
  }

  /** Is true while a record is damaged: then content without a reference may belong to it, and must stay. */
  get isIncomplete(): boolean {
    return this.#quarantined.isAny || this.#metadata.hasUnkeptDamage || this.#metadata.unreadable.length > 0
  }

  /** Lists the damaged repositories, for the user. */
  get damaged(): DamagedRepository[] {
    const { hasUnkeptDamage, damage, unreadable } = this.#metadata
    return [
      ...this.#quarantined.repositories,
      ...(hasUnkeptDamage ? describeUnkeptDamage(damage) : []),
      ...unreadable.map((path) => describeUnreadableJournal(path, path)),
    ]
  }

  /** Returns undefined when there is no such repository. */
  get(name: string): PushedRepository | undefined {
    return this.#metadata.get('', name)
  }

  /** Returns the repositories that are there now. */
  all(): PushedRepository[] {
    return [...this.#metadata.all()]
  }

  /**
   * Resolves when the operations are on disk and visible. Rejects with the disk's error; then nothing has changed, except that of very many
   * removals some may be done. Removals are visible at once.
   */
  async commit(name: string, operations: readonly Operation[]): Promise<void> {
    const size = operations.every(isRemoval) ? maxRemovals : operations.length
    const commits: Promise<void>[] = []
    for (let at = 0; at < operations.length; at += size)
      commits.push(this.#metadata.commit({ host: '', name }, operations.slice(at, at + size), 'durable'))
    await Promise.all(commits)
  }

  /** Records a client's request. It is visible at once, and reaches the disk within a minute. */
  recordUse(name: string, use: Parameters<MetadataStore['recordUse']>[1]): void {
    this.#metadata.recordUse({ host: '', name }, use)
  }

  /** Protects content from removal while a request builds on it. Call the result to end the claim. */
  claim(digests: Iterable<Digest>): () => void {
    const claimed = [...digests]
    for (const digest of claimed) this.#claims.set(digest, (this.#claims.get(digest) ?? 0) + 1)
    let isReleased = false
    return () => {
      if (isReleased) return
      isReleased = true
      for (const digest of claimed) {
        const remaining = this.#claims.get(digest)! - 1
        if (remaining === 0) this.#claims.delete(digest)
        else this.#claims.set(digest, remaining)
      }
    }
  }

  isClaimed(digest: Digest): boolean {
    return this.#claims.has(digest)
  }

  /** Reports whether any repository has this content. */
  has(digest: Digest): boolean {
    return this.#metadata.isHeld(digest)
  }

  /** Reports whether any repository holds this content, or may: it is claimed, or a record is damaged. */
  isHeld(digest: Digest): boolean {
    return this.isIncomplete || this.isClaimed(digest) || this.has(digest)
  }
}

/** Stores the content of the local registry: like the cache's store, in a separate folder without eviction. */
export interface PushedStore extends Pick<Store<MetadataStore>, 'layout' | 'blobs' | 'runningClock' | 'close'> {
  readonly repositories: PushedRepositories
}

/** Opens the store, or creates an empty one. Throws a `MirrorError` as `openStore` does. */
export async function openPushedStore(options: Omit<StoreOptions, 'verifyReads'>): Promise<PushedStore> {
  return openClaimedPushedStore(await claimStore({ ...options, verifyReads: 'auto' }), options)
}

/** Opens a store that this process has locked. */
export async function openClaimedPushedStore(
  claimed: ClaimedStore,
  { logger, clock }: Pick<StoreOptions, 'logger' | 'clock'>,
): Promise<PushedStore> {
  const store = await claimed.open((layout) =>
    openMetadata({ ...layout.metadataFiles, logger, clock, countsHolders: true }),
  )
  return addRepositories(store)
}

/** Opens the store to read it. Throws a `MirrorError` as `readStore` does. */
export async function readPushedStore(options: Pick<StoreOptions, 'root' | 'logger' | 'clock'>): Promise<PushedStore> {
  const { logger, clock } = options
  const store = await readStore(options, (layout) =>
    readMetadata({ ...layout.metadataFiles, logger, clock, countsHolders: true }),
  )
  return addRepositories(store)
}

async function addRepositories(store: Omit<PushedStore, 'repositories'> & { readonly metadata: MetadataStore }) {
  const { layout, blobs, runningClock, metadata } = store
  try {
    const repositories = await PushedRepositories.open(layout, metadata)
    return { layout, blobs, runningClock, repositories, close: () => store.close() }
  } catch (error) {
    await store.close()
    throw error
  }
}

/** Describes a repository of the local registry whose record is damaged. */
export interface DamagedRepository {
  /** Is undefined when the name cannot be read. */
  readonly name: string | undefined
  /** Names the file with the damaged lines. */
  readonly path: string
  /** Names the file from which they come. */
  readonly original: string
  readonly reason: string
  /** Is true when the repository is served without the damaged lines. */
  readonly isServed: boolean
}

/**
 * Matches the names that `layout.setAside` gives to damaged lines. Those of release 0.1 are copies of a whole journal, which say no more than
 * that content may be missing.
 */
const damagedLinesPattern = /^(?:(\d{16}\.(?:log|checkpoint))|lines-(.+\.jsonl))-/
/** Matches the names of journals that the migration could not read. */
const unreadablePattern = /^unreadable-(.+\.jsonl)-/
const journalPattern = /\.jsonl-/

interface QuarantinedDamage {
  /** Is true when there is any file that may describe content of the store. */
  readonly isAny: boolean
  readonly repositories: DamagedRepository[]
}

/** Lists the damaged records in the quarantine. Copies stay there for a week, the other records until the user removes them. */
async function listQuarantinedDamage(layout: StoreLayout): Promise<QuarantinedDamage> {
  const repositories: DamagedRepository[] = []
  let isAny = false
  for (const file of ((await ignoreMissing(() => readdir(layout.quarantine))) ?? []).toSorted()) {
    const path = layout.entry(layout.quarantine, file)
    const origin = layout.originOf(file)
    const lines = damagedLinesPattern.exec(file)
    const unreadable = unreadablePattern.exec(file)?.[1]
    isAny ||= lines !== null || origin !== undefined || journalPattern.test(file)
    if (origin !== undefined) repositories.push(describeEarlierRecord(path, origin))
    else if (unreadable !== undefined)
      repositories.push(describeUnreadableJournal(path, layout.entry(layout.repositories, unreadable)))
    else if (lines) {
      const [, ofLog, ofJournal] = lines
      const original = ofLog ? layout.entry(layout.metadata, ofLog) : layout.entry(layout.repositories, ofJournal!)
      repositories.push(...toReports(await countLines(path), path, original))
    }
  }
  return { isAny, repositories }
}

/** Describes damaged lines that could not be copied to the quarantine. */
function describeUnkeptDamage(damage: readonly LogDamage[]): DamagedRepository[] {
  const path = damage[0]?.path ?? ''
  const counts = new Map<string | undefined, number>()
  for (const { repository } of damage) counts.set(repository, (counts.get(repository) ?? 0) + 1)
  return toReports(counts, path, path)
}

/** Counts the damaged lines by repository; those of a file that cannot be read as one line without a repository. */
async function countLines(path: string): Promise<ReadonlyMap<string | undefined, number>> {
  try {
    return await countDamagedLines(path)
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    return new Map([[undefined, 1]])
  }
}

function toReports(
  counts: ReadonlyMap<string | undefined, number>,
  path: string,
  original: string,
): DamagedRepository[] {
  return Array.from(counts, ([repository, count]) => {
    const lines = count === 1 ? '1 damaged line was' : `${count} damaged lines were`
    // Such a line stands for a gap, too.
    const what = repository === undefined ? 'some records are damaged or missing' : `${lines} skipped`
    return {
      name: repository?.slice(repository.indexOf('/') + 1),
      path,
      original,
      reason: `${what}: push the missing images again`,
      isServed: true,
    }
  })
}

function describeEarlierRecord(path: string, original: string): DamagedRepository {
  const reason =
    'release 0.1 could not read it, and nothing is deleted while it is there: push the missing images again, then remove the file'
  return { name: undefined, path, original, reason, isServed: false }
}

function describeUnreadableJournal(path: string, original: string): DamagedRepository {
  const reason =
    'it cannot be read, and nothing is deleted while it is there, for a week: push the images of its repository again'
  return { name: undefined, path, original, reason, isServed: false }
}
