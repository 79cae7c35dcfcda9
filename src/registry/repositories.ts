import type { MetadataStore } from '../metadata/metadata-store.ts'
import { openMetadata, readMetadata } from '../metadata/open-metadata.ts'
import type { Operation } from '../metadata/operations.ts'
import type { Repository } from '../metadata/repositories.ts'
import type { Digest } from '../oci/reference.ts'
import type { StoreLayout } from '../store/layout.ts'
import { openStore, readStore, type Store, type StoreOptions } from '../store/open-store.ts'
import { type DamagedRepository, describeUnkeptDamage, listQuarantinedDamage } from './damage.ts'

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
    return this.#quarantined.isAny || this.#metadata.hasUnkeptDamage
  }

  /** Lists the damaged repositories, for the user. */
  get damaged(): DamagedRepository[] {
    const { hasUnkeptDamage, damage } = this.#metadata
    return [...this.#quarantined.repositories, ...(hasUnkeptDamage ? describeUnkeptDamage(damage) : [])]
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

function isRemoval({ op }: Operation): boolean {
  return op === 'untag' || op === 'drop-manifest' || op === 'drop-blob'
}

/** Stores the content of the local registry: like the cache's store, in a separate folder without eviction. */
export interface PushedStore extends Pick<Store<MetadataStore>, 'layout' | 'blobs' | 'runningClock' | 'close'> {
  readonly repositories: PushedRepositories
}

/** Opens the store, or creates an empty one. Throws a `MirrorError` as `openStore` does. */
export async function openPushedStore(options: Omit<StoreOptions, 'verifyReads'>): Promise<PushedStore> {
  const { logger, clock } = options
  const store = await openStore({ ...options, verifyReads: 'auto' }, (layout) =>
    openMetadata({ ...layout.metadataFiles, logger, clock, countsHolders: true }),
  )
  return addRepositories(store)
}

/** Opens the store to read it. Throws a `MirrorError` as `readStore` does. */
export async function readPushedStore(options: Pick<StoreOptions, 'root' | 'logger' | 'clock'>): Promise<PushedStore> {
  const { logger, clock } = options
  const store = await readStore(options, (layout) => readMetadata({ ...layout.metadataFiles, logger, clock }))
  return addRepositories({ ...store, runningClock: { now: () => store.metadata.findLatestUse() } })
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
