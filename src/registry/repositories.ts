import { copyFile, link, readdir, rm } from 'node:fs/promises'
import { eachLimited } from '../lib/async.ts'
import { errnoOf } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import type { Digest } from '../oci/digest.ts'
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
import { createEmptyRepository, isEmptyRepository, type PushedChange, type PushedRepository } from './repository.ts'

const maxConcurrentReads = 8

/** Every repository of the local registry, in memory; each with its journal on the disk. */
export class PushedRepositories {
  readonly #layout: StoreLayout
  readonly #logger: Logger
  readonly #journals = new Map<string, RepositoryJournal>()
  readonly #damaged: DamagedJournals
  /** Those that lost damaged lines when they were loaded. */
  readonly #repaired: DamagedRepository[] = []
  readonly #claims = new Map<Digest, number>()
  #hasCopies = false
  /** Whether the only copy of a damaged journal is the journal itself, up to the next push. */
  #hasUncopied = false

  private constructor(layout: StoreLayout, logger: Logger) {
    this.#layout = layout
    this.#logger = logger
    this.#damaged = new DamagedJournals(layout, logger)
  }

  /**
   * Loads every journal. One that cannot be loaded is set aside, and the others are served; of one that has damaged lines a
   * copy is set aside, and the rest of it stands.
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

  /** Looks whether copies of damaged journals are set aside. They go after a week. */
  async findCopies(): Promise<void> {
    this.#hasCopies = (await readdir(this.#layout.quarantine)).some((name) => name.includes('.jsonl-'))
  }

  /** Whether a damaged journal is set aside: what it said is held is not known here, and may be wanted back. */
  get isIncomplete(): boolean {
    return this.#hasCopies || this.#hasUncopied || this.#damaged.size > 0
  }

  /** What the user has to know of. */
  get damaged(): DamagedRepository[] {
    return [...this.#damaged.all(), ...this.#repaired]
  }

  isDamaged(name: string): boolean {
    return this.#find(name) === undefined && this.#damaged.has(name)
  }

  /** Gives a repository up whose journal cannot be loaded: a push of this name begins a new one. */
  discardDamaged(name: string): Promise<void> {
    this.#hasCopies = true
    return this.#damaged.discard(name)
  }

  /** Throws an OciError 500 when its journal cannot be loaded. */
  get(name: string): PushedRepository | undefined {
    const journal = this.#find(name)
    if (!journal) this.#damaged.throwIfDamaged(name)
    return journal?.repository
  }

  /** Those that hold anything. */
  *all(): Generator<PushedRepository, void> {
    for (const { repository } of this.#journals.values()) if (!isEmptyRepository(repository)) yield repository
  }

  /**
   * Resolves when the changes are on the disk and can be seen; rejects with the disk's error, and then they are not. Throws an
   * OciError 500 when the journal cannot be loaded.
   */
  commit(name: string, changes: readonly PushedChange[]): Promise<void> {
    let journal = this.#find(name)
    if (!journal) {
      this.#damaged.throwIfDamaged(name)
      journal = new RepositoryJournal(this.#layout.journal(name), createEmptyRepository(name), undefined)
      this.#journals.set(name, journal)
    }
    return journal.commit(changes)
  }

  /** Says that somebody is about to build on this content, so that nobody takes it away meanwhile. The result ends it. */
  claim(digests: Iterable<Digest>): () => void {
    const claimed = [...digests]
    for (const digest of claimed) this.#claims.set(digest, (this.#claims.get(digest) ?? 0) + 1)
    let isOver = false
    return () => {
      if (isOver) return
      isOver = true
      for (const digest of claimed) {
        const left = this.#claims.get(digest)! - 1
        if (left === 0) this.#claims.delete(digest)
        else this.#claims.set(digest, left)
      }
    }
  }

  isClaimed(digest: Digest): boolean {
    return this.#claims.has(digest)
  }

  /** Whether any repository holds it, or somebody is about to, or that cannot be known. */
  isHeld(digest: Digest): boolean {
    if (this.isIncomplete || this.isClaimed(digest)) return true
    for (const journal of this.#journals.values()) if (journal.holds(digest)) return true
    return false
  }

  #find(name: string): RepositoryJournal | undefined {
    return this.#journals.get(name) ?? this.#recover(name)
  }

  /** A repository whose journal has lost its name alone: whoever asks for it brings that back. */
  #recover(name: string): RepositoryJournal | undefined {
    const held = this.#damaged.getRecoverable(name)
    if (!held) return undefined
    const journal = new RepositoryJournal(this.#layout.journal(name), held, undefined)
    this.#journals.set(name, journal)
    this.#logger.warn({ repository: name }, 'a pushed repository has its damaged journal back')
    void this.#saveRecovered(name, journal)
    return journal
  }

  async #saveRecovered(name: string, journal: RepositoryJournal): Promise<void> {
    try {
      await journal.commit([])
      await this.discardDamaged(name)
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
      this.#logger.error({ repository: name, error: String(error) }, 'could not write a journal; trying again later')
    }
  }

  async #load(path: string): Promise<void> {
    let read: ReadJournal
    try {
      read = await readJournal(path)
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
      return this.#damaged.recordUnreadable(path, describeReadError(error))
    }
    const { head, repository, lines, bytes, isTorn, unreadable } = read
    if (!head || this.#layout.journal(head.name) !== path) return this.#damaged.setAside(path)
    if (head.version === 'newer') return this.#damaged.recordUnreadable(path, 'a newer version of mirror wrote it')
    // A journal that is not whole, or of an earlier format, is written anew before anything is added to it.
    const isWhole = !isTorn && unreadable === 0 && head.version === 'current'
    const journal = new RepositoryJournal(path, repository, isWhole ? { lines, bytes } : undefined)
    if (unreadable > 0) await this.#quarantineCopy(path, journal, unreadable)
    else if (head.version === 'older' || (isWhole && journal.isWasteful)) await this.#compact(path, journal)
    if (isEmptyRepository(repository)) await rm(path, { force: true })
    else this.#journals.set(head.name, journal)
  }

  /** Writes a journal anew at the start, so that the next one does not have to read so much again. */
  async #compact(path: string, journal: RepositoryJournal): Promise<void> {
    try {
      await journal.commit([])
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
      this.#logger.warn(
        { path, error: String(error) },
        'could not write a journal anew; trying again with the next push',
      )
    }
  }

  async #quarantineCopy(path: string, journal: RepositoryJournal, unreadable: number): Promise<void> {
    const { name } = journal.repository
    const copiedTo = this.#layout.setAside(path)
    const about = { repository: name, unreadable, copiedTo }
    const lines = unreadable === 1 ? '1 damaged line was' : `${unreadable} damaged lines were`
    const reason = `${lines} left out: push again what is missing`
    const report = { name, path: copiedTo, original: path, reason, isServed: true }
    this.#repaired.push(report)
    try {
      await linkOrCopy(path, copiedTo)
      await touchFile(copiedTo)
      // Else the next start would set it aside once more.
      await journal.commit([])
      this.#logger.error(about, 'the journal of a pushed repository has damaged lines')
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
      this.#hasUncopied = true
      report.path = path
      this.#logger.error({ ...about, error: String(error) }, 'a damaged journal could not be set aside')
    }
  }
}

/** Keeps a file that is about to be replaced: under a second name, where the file system has those. */
async function linkOrCopy(path: string, target: string): Promise<void> {
  try {
    await link(path, target)
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    await copyFile(path, target)
  }
}

/** What was pushed: a store like the cache's, in a folder of its own that no eviction enters. */
export interface PushedStore extends Pick<Store, 'layout' | 'blobs' | 'runningClock' | 'close'> {
  readonly repositories: PushedRepositories
}

/** Opens it, or makes an empty one. Throws `MirrorError` as `openStore` does. */
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
