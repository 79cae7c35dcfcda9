import { readdir, rename, utimes } from 'node:fs/promises'
import { errnoOf } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { OciError } from '../oci/errors.ts'
import type { StoreLayout } from '../store/layout.ts'
import { readJournal } from '../store/read-journal.ts'
import { type GrowingRepository, isEmptyRepository } from './repository.ts'

/** A repository of the local registry whose record is not what it was. */
export interface DamagedRepository {
  /** Undefined where not even its name can be read. */
  readonly name: string | undefined
  /** The file that cannot be read, or a copy of one that is served without its damaged lines. */
  readonly path: string
  /** Where a sound one belongs. */
  readonly original: string
  readonly reason: string
  /** Whether it is served all the same. */
  readonly isServed: boolean
}

interface DamagedJournal {
  readonly path: string
  readonly reason: string
  /** What its lines tell, where all that is lost is the name: whoever asks for the repository knows that. */
  readonly held: GrowingRepository | undefined
}

/**
 * Journals that could not be loaded, by the path where a sound one belongs. What they hold is neither served nor lost: nothing is
 * written in their place until the repository is removed.
 */
export class DamagedJournals {
  readonly #layout: StoreLayout
  readonly #logger: Logger
  readonly #journals = new Map<string, DamagedJournal>()

  constructor(layout: StoreLayout, logger: Logger) {
    this.#layout = layout
    this.#logger = logger
  }

  get size(): number {
    return this.#journals.size
  }

  *all(): Generator<DamagedRepository, void> {
    for (const [original, { path, reason }] of this.#journals)
      yield { name: undefined, path, original, reason, isServed: false }
  }

  /** Finds those that earlier starts have set aside. `isLoaded`: whether there is a journal in its place. */
  async find(isLoaded: (journal: string) => boolean): Promise<void> {
    for (const name of await readdir(this.#layout.quarantine)) {
      const journal = this.#layout.originOf(name)
      if (journal === undefined) continue
      const path = this.#layout.entry(this.#layout.quarantine, name)
      const known = this.#journals.get(journal)
      if (known?.path === path) continue
      if (known || isLoaded(journal)) await this.#release(journal, path)
      else await this.#add(journal, path)
    }
  }

  /** Moves a journal out of the way; it keeps being known. */
  async setAside(journal: string): Promise<void> {
    const movedTo = this.#layout.setAsideForGood(journal)
    await rename(journal, movedTo)
    await touch(movedTo)
    const fields = { path: journal, movedTo }
    this.#logger.error(fields, 'the journal of a pushed repository is damaged beyond reading')
    await this.#add(journal, movedTo)
  }

  /** Leaves a journal where it is, because nothing in it is known to be damaged. */
  leave(journal: string, reason: string): void {
    this.#logger.error({ path: journal, reason }, 'the journal of a pushed repository cannot be read')
    this.#journals.set(journal, { path: journal, reason, held: undefined })
  }

  /** Throws an OciError 500 for a repository whose journal cannot be loaded. */
  refuse(name: string): void {
    const damaged = this.#journals.size > 0 && this.#journals.get(this.#layout.journal(name))
    if (!damaged) return
    throw new OciError(
      'UNKNOWN',
      500,
      `The record of the repository ${name} is damaged: ${damaged.reason}. See "mirror status" for the file: restore it from a backup and restart the mirror, or give the repository up with "mirror registry rm ${name}" and push it again.`,
    )
  }

  has(name: string): boolean {
    return this.#journals.size > 0 && this.#journals.has(this.#layout.journal(name))
  }

  /** What a damaged journal tells of a repository whose name is all that was lost. */
  heldBy(name: string): GrowingRepository | undefined {
    const held = this.#journals.size > 0 && this.#journals.get(this.#layout.journal(name))?.held
    return held ? { ...held, name } : undefined
  }

  /** Gives a damaged journal up: its file stays for a week, as evidence. */
  async giveUp(name: string): Promise<void> {
    const journal = this.#layout.journal(name)
    const damaged = this.#journals.get(journal)
    if (!damaged) return
    this.#journals.delete(journal)
    try {
      await this.#release(journal, damaged.path)
    } catch (error) {
      this.#journals.set(journal, damaged)
      throw error
    }
  }

  async #release(journal: string, path: string): Promise<void> {
    const movedTo = this.#layout.setAside(journal)
    await rename(path, movedTo)
    await touch(movedTo)
  }

  async #add(journal: string, path: string): Promise<void> {
    try {
      const { repository } = await readJournal(path)
      const held = isEmptyRepository(repository) ? undefined : repository
      this.#journals.set(journal, { path, held, reason: 'its first line, which names the repository, cannot be read' })
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
      const reason = reasonOf(error)
      this.#logger.error({ path, reason }, 'the journal of a pushed repository cannot be read')
      this.#journals.set(journal, { path, reason, held: undefined })
    }
  }
}

export function reasonOf(error: unknown): string {
  return `the system does not give it out (${errnoOf(error) ?? String(error)})`
}

/** What is set aside stays for a time, counted from now. */
export async function touch(path: string): Promise<void> {
  const now = new Date()
  await utimes(path, now, now)
}
