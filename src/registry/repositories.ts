import { copyFile, link, readdir, rm } from 'node:fs/promises'
import { eachLimited } from '../lib/async.ts'
import { getErrno } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import type { Digest } from '../oci/reference.ts'
import type { StoreLayout } from '../store/layout.ts'
import { openStore, type Store, type StoreOptions } from '../store/open-store.ts'
import {
  DamagedJournals,
  type DamagedRepository,
  readJournal,
  type ReadJournal,
  describeReadError,
  touchFile,
} from './journal-reader.ts'
import { RepositoryJournal } from './journal.ts'
import {
  createEmptyRepository,
  Holders,
  isEmptyRepository,
  type PushedChange,
  type PushedRepository,
} from './repository.ts'

const maxConcurrentReads = 8

/** Keeps the repositories of the local registry in memory, each with its journal on disk. */
export class PushedRepositories {
  readonly #layout: StoreLayout
  readonly #logger: Logger
  readonly #journals = new Map<string, RepositoryJournal>()
  readonly #damaged: DamagedJournals
  /** Holds the repositories that lost damaged lines when they were loaded. */
  readonly #repaired: DamagedRepository[] = []
  readonly #holders = new Holders()
  readonly #claims = new Map<Digest, number>()
  #hasCopies = false
  /** Is true when a damaged journal could not be copied, so that the next push overwrites its damaged lines. */
  #hasUncopied = false

  private constructor(layout: StoreLayout, logger: Logger) {
    this.#layout = layout
    this.#logger = logger
    this.#damaged = new DamagedJournals(layout, logger)
  }

  /**
   * Loads all journals. A journal that cannot be loaded is quarantined, and the other repositories are served. A journal with
   * damaged lines is copied to the quarantine and served without those lines.
   */
  static async open(layout: StoreLayout, logger: Logger): Promise<PushedRepositories> {
    const repositories = new PushedRepositories(layout, logger)
    const names = (await readdir(layout.repositories)).filter((name) => name.endsWith('.jsonl'))
    await eachLimited(names, maxConcurrentReads, (name) => repositories.#load(layout.entry(layout.repositories, name)))
    const loaded = new Set(Array.from(repositories.#journals.keys(), (name) => layout.journal(name)))
    await repositories.#damaged.loadQuarantined((journal) => loaded.has(journal))
    await repositories.findCopies()
    return repositories
  }

  /** Checks whether there are copies of damaged journals in quarantine. They are removed after a week. */
  async findCopies(): Promise<void> {
    this.#hasCopies = (await readdir(this.#layout.quarantine)).some((name) => name.includes('.jsonl-'))
  }

  /** Is true when a journal is damaged: then content without a reference may belong to it, and must stay. */
  get isIncomplete(): boolean {
    return this.#hasCopies || this.#hasUncopied || this.#damaged.size > 0
  }

  /** Lists the damaged repositories, for the user. */
  get damaged(): DamagedRepository[] {
    return [...this.#damaged.all(), ...this.#repaired]
  }

  /** Reports whether the repository's journal cannot be loaded. */
  isDamaged(name: string): boolean {
    return this.#find(name) === undefined && this.#damaged.has(name)
  }

  /** Discards a repository whose journal cannot be loaded: the next push to this name starts a new one. */
  discardDamaged(name: string): Promise<void> {
    this.#hasCopies = true
    return this.#damaged.discard(name)
  }

  /** Returns undefined when there is no such repository. Throws an OciError 500 when its journal cannot be loaded. */
  get(name: string): PushedRepository | undefined {
    const journal = this.#find(name)
    if (!journal) this.#damaged.throwIfDamaged(name)
    return journal?.repository
  }

  /** Yields the repositories that are not empty. */
  *all(): Generator<PushedRepository, void> {
    for (const { repository } of this.#journals.values()) if (!isEmptyRepository(repository)) yield repository
  }

  /**
   * Resolves when the changes are on disk and visible. Rejects with the disk's error; then nothing has changed. Throws an OciError
   * 500 when the journal cannot be loaded.
   */
  commit(name: string, changes: readonly PushedChange[]): Promise<void> {
    let journal = this.#find(name)
    if (!journal) {
      this.#damaged.throwIfDamaged(name)
      journal = new RepositoryJournal(this.#layout.journal(name), createEmptyRepository(name), undefined, this.#holders)
      this.#journals.set(name, journal)
    }
    return journal.commit(changes)
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

  /** Reports whether any repository holds this content, or may: it is claimed, or a journal is damaged. */
  isHeld(digest: Digest): boolean {
    if (this.isIncomplete || this.isClaimed(digest)) return true
    return this.#holders.has(digest)
  }

  #find(name: string): RepositoryJournal | undefined {
    return this.#journals.get(name) ?? this.#recover(name)
  }

  /** Restores a repository whose journal has lost only its name, which the request provides. */
  #recover(name: string): RepositoryJournal | undefined {
    const state = this.#damaged.getRecoverable(name)
    if (!state) return undefined
    const journal = new RepositoryJournal(this.#layout.journal(name), state, undefined, this.#holders)
    this.#journals.set(name, journal)
    this.#logger.warn({ repository: name }, 'recovered a pushed repository from its damaged journal')
    void this.#saveRecovered(name, journal)
    return journal
  }

  async #saveRecovered(name: string, journal: RepositoryJournal): Promise<void> {
    try {
      await journal.commit([])
      await this.discardDamaged(name)
    } catch (error) {
      if (getErrno(error) === undefined) throw error
      this.#logger.error({ repository: name, error: String(error) }, 'could not write a journal; trying again later')
    }
  }

  async #load(path: string): Promise<void> {
    let read: ReadJournal
    try {
      read = await readJournal(path)
    } catch (error) {
      if (getErrno(error) === undefined) throw error
      return this.#damaged.recordUnreadable(path, describeReadError(error))
    }
    const { head, repository, lines, bytes, isTorn, unreadable } = read
    if (!head || this.#layout.journal(head.name) !== path) return this.#damaged.quarantine(path)
    if (head.version === 'newer') return this.#damaged.recordUnreadable(path, 'a newer version of mirror wrote it')
    // Omit the length of a journal that is incomplete or has an older format, so that the next commit rewrites it.
    const isIntact = !isTorn && unreadable === 0 && head.version === 'current'
    const journal = new RepositoryJournal(path, repository, isIntact ? { lines, bytes } : undefined, this.#holders)
    if (unreadable > 0) await this.#quarantineCopy(path, journal, unreadable)
    else if (head.version === 'older' || (isIntact && journal.isWasteful)) await this.#compact(path, journal)
    if (isEmptyRepository(repository)) await rm(path, { force: true })
    else this.#journals.set(head.name, journal)
  }

  /** Rewrites a journal at the start, so that the next start reads less. */
  async #compact(path: string, journal: RepositoryJournal): Promise<void> {
    try {
      await journal.commit([])
    } catch (error) {
      if (getErrno(error) === undefined) throw error
      this.#logger.warn({ path, error: String(error) }, 'could not rewrite a journal; trying again with the next push')
    }
  }

  async #quarantineCopy(path: string, journal: RepositoryJournal, unreadable: number): Promise<void> {
    const { name } = journal.repository
    const copiedTo = this.#layout.setAside(path)
    const fields = { repository: name, unreadable, copiedTo }
    const lines = unreadable === 1 ? '1 damaged line was' : `${unreadable} damaged lines were`
    const reason = `${lines} skipped: push the missing images again`
    const report = { name, path: copiedTo, original: path, reason, isServed: true }
    this.#repaired.push(report)
    try {
      await linkOrCopy(path, copiedTo)
      await touchFile(copiedTo)
      // Rewrite it now: else the next start would copy it again.
      await journal.commit([])
      this.#logger.error(fields, 'the journal of a pushed repository has damaged lines')
    } catch (error) {
      if (getErrno(error) === undefined) throw error
      this.#hasUncopied = true
      report.path = path
      this.#logger.error({ ...fields, error: String(error) }, 'could not copy a damaged journal')
    }
  }
}

/** Preserves a file that is about to be replaced: by a hard link, or by a copy where the file system has no hard links. */
async function linkOrCopy(path: string, target: string): Promise<void> {
  try {
    await link(path, target)
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    await copyFile(path, target)
  }
}

/** Stores the content of the local registry: like the cache's store, in a separate folder without eviction. */
export interface PushedStore extends Pick<Store, 'layout' | 'blobs' | 'runningClock' | 'close'> {
  readonly repositories: PushedRepositories
}

/** Opens the store, or creates an empty one. Throws a `MirrorError` as `openStore` does. */
export async function openPushedStore(options: Omit<StoreOptions, 'verifyReads'>): Promise<PushedStore> {
  const store = await openStore({ ...options, verifyReads: 'auto' })
  try {
    const repositories = await PushedRepositories.open(store.layout, options.logger)
    const { layout, blobs, runningClock } = store
    return { layout, blobs, runningClock, repositories, close: () => store.close() }
  } catch (error) {
    await store.close()
    throw error
  }
}
