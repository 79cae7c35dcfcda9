import { copyFile, readdir, readFile, rename, rm, utimes } from 'node:fs/promises'
import { errnoOf } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import type { Digest } from '../oci/digest.ts'
import { eachLimited } from './each-limited.ts'
import { readJournal } from './journal-lines.ts'
import type { StoreLayout } from './layout.ts'
import { emptyRepository, type PushedChange, type PushedRepository } from './pushed-repository.ts'
import { RepositoryJournal } from './repository-journal.ts'

const readsAtOnce = 32

/** Every repository of the local registry, in memory; each with its journal on the disk. */
export class PushedRepositories {
  readonly #layout: StoreLayout
  readonly #journals = new Map<string, RepositoryJournal>()
  readonly #claims = new Map<Digest, number>()
  #hasGaps = false

  private constructor(layout: StoreLayout) {
    this.#layout = layout
  }

  /** Loads every journal. What cannot be read of one is set aside, whole, and the rest of it stands. */
  static async open(layout: StoreLayout, logger: Logger): Promise<PushedRepositories> {
    const repositories = new PushedRepositories(layout)
    const names = (await readdir(layout.repositories)).filter((name) => name.endsWith('.jsonl'))
    await eachLimited(names, readsAtOnce, (name) => repositories.#load(layout.entry(layout.repositories, name), logger))
    repositories.#hasGaps = (await readdir(layout.quarantine)).some((name) => name.includes('.jsonl-'))
    return repositories
  }

  /** Whether a damaged journal is set aside: what it said is held is not known here, and may be wanted back. */
  get hasGaps(): boolean {
    return this.#hasGaps
  }

  get(name: string): PushedRepository | undefined {
    return this.#journals.get(name)?.repository
  }

  /** Those that hold anything. */
  *all(): Generator<PushedRepository, void> {
    for (const { repository } of this.#journals.values()) if (!isEmpty(repository)) yield repository
  }

  /** Resolves when the changes are on the disk and can be seen; rejects with the disk's error, and then they are not. */
  commit(name: string, changes: readonly PushedChange[]): Promise<void> {
    let journal = this.#journals.get(name)
    if (!journal) {
      journal = new RepositoryJournal(this.#layout.journal(name), emptyRepository(name), 0)
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

  /** Whether any repository holds it, or somebody is about to. */
  isHeld(digest: Digest): boolean {
    if (this.isClaimed(digest)) return true
    for (const { repository } of this.#journals.values())
      if (repository.blobs.has(digest) || repository.manifests.has(digest)) return true
    return false
  }

  async #load(path: string, logger: Logger): Promise<void> {
    const read = readJournal(await readFile(path, 'utf8'))
    const name = read?.repository.name
    if (!read || name === undefined || this.#layout.journal(name) !== path) {
      const movedTo = this.#layout.setAside(path)
      await rename(path, movedTo)
      await touch(movedTo)
      logger.error({ path, movedTo }, 'the journal of a pushed repository is damaged beyond reading')
      return
    }
    const { repository, lines, isTorn, unreadable } = read
    // A journal that is not whole is written anew by the next commit.
    const journal = new RepositoryJournal(path, repository, isTorn || unreadable > 0 ? 0 : lines)
    if (unreadable > 0) await this.#setCopyAside(path, journal, unreadable, logger)
    if (isEmpty(repository)) await rm(path, { force: true })
    else this.#journals.set(name, journal)
  }

  async #setCopyAside(path: string, journal: RepositoryJournal, unreadable: number, logger: Logger): Promise<void> {
    const copiedTo = this.#layout.setAside(path)
    const about = { repository: journal.repository.name, unreadable, copiedTo }
    try {
      await copyFile(path, copiedTo)
      await touch(copiedTo)
      // Else the next start would set it aside once more.
      await journal.commit([])
      logger.error(about, 'the journal of a pushed repository has damaged lines')
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
      logger.error({ ...about, error: String(error) }, 'a damaged journal could not be set aside')
    }
  }
}

/** What is set aside stays for a time, counted from now. */
async function touch(path: string): Promise<void> {
  const now = new Date()
  await utimes(path, now, now)
}

function isEmpty({ tags, manifests, blobs }: PushedRepository): boolean {
  return tags.size + manifests.size + blobs.size === 0
}
