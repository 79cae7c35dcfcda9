import { KeyedQueue } from '../lib/async.ts'
import type { Logger } from '../lib/logger.ts'
import { type Clock, runEvery, logFailure } from '../lib/time.ts'
import { type Digest, parseDigest } from '../oci/reference.ts'
import { parseAttachedTag, collectGarbage, type GarbageOptions, planRemovals } from './garbage.ts'
import type { Operation } from '../metadata/metadata.ts'
import { findRemovedImages, listPushedImages, type PushedImage, StoredLinks } from './images.ts'
import type { PushedRepository, PushedStore } from './repositories.ts'

/** Protects unreferenced content for this time, because a manifest that names it may follow; running time ms. */
export const defaultGraceMs = 24 * 3_600_000

/** Describes the removed content; of a dry run, the content that would be removed. */
export interface RegistryRemoval {
  /** Names of images. */
  readonly images: string[]
  readonly blobs: number
  readonly bytes: number
  /** Holds the names that matched nothing. */
  readonly unknown: string[]
}

export interface PruneOptions {
  /** Removes tags that were pushed longer ago than this, ms. */
  readonly olderThan: number
  /** Keeps this number of newest tags in each repository, whatever their age. */
  readonly keep: number
  /** Names the repository to prune; undefined for all. */
  readonly repository: string | undefined
  readonly dryRun: boolean
}

interface RegistryMaintenanceOptions {
  readonly store: PushedStore
  readonly clock: Clock
  readonly logger: Logger
  /** Sets the time between two garbage collections, ms; default: an hour. */
  readonly intervalMs?: number
}

const collectionIntervalMs = 3_600_000

export type RegistryMaintenance = ReturnType<typeof createRegistryMaintenance>

/** Creates the maintenance of the local registry, on request and once an hour: one task at a time, concurrently with pushes. */
export function createRegistryMaintenance(options: RegistryMaintenanceOptions) {
  const { store, clock, logger } = options
  const { repositories } = store
  const isClaimed = (digest: Digest) => repositories.isClaimed(digest)
  const queue = new KeyedQueue<'all'>()
  const links = new StoredLinks(store.blobs)

  const gc = async (garbage: GarbageOptions): Promise<RegistryRemoval> => {
    const { images, manifests, blobs, bytes } = await collectGarbage(store, garbage, links)
    if (!garbage.dryRun && blobs > 0) logger.info({ manifests, blobs, bytes }, 'removed unused content')
    return { images, blobs, bytes, unknown: [] }
  }

  /** Removes the selected content of each repository, and what it leaves unreferenced. */
  const removeSelected = async (select: (repository: PushedRepository) => Selection, dryRun: boolean) => {
    const images: string[] = []
    const pendingOperations = new Map<string, Operation[]>()
    for (const repository of repositories.all()) {
      const { name } = repository
      const { tags, digests } = select(repository)
      if (tags.length + digests.length === 0) continue
      const { operations, readNames } = await planRemovals(
        repository,
        { tags, digests, links, isClaimed },
        // Commit at once: pushes go on, and an outdated plan would remove what they have added.
        async (plan) => {
          const found = { operations: plan, readNames: findRemovedImages(repository, plan) }
          if (!dryRun) await repositories.commit(name, plan)
          return found
        },
      )
      if (dryRun) pendingOperations.set(name, operations)
      images.push(...(await readNames(links)))
    }
    const { blobs, bytes } = await gc({ grace: defaultGraceMs, untagged: false, dryRun, pendingOperations })
    return { images: images.toSorted(), blobs, bytes }
  }

  const selectOld = (
    repository: PushedRepository,
    { olderThan, keep, repository: repositoryName }: PruneOptions,
  ): Selection => {
    if (repositoryName !== undefined && repository.name !== repositoryName) return emptySelection
    const byAge = [...repository.tags]
      // Tags of signatures and lists of referrers are removed with their image.
      .filter(([tag]) => parseAttachedTag(tag) === undefined)
      .toSorted(([, a], [, b]) => b.updatedAt - a.updatedAt)
    const old = byAge.slice(keep).filter(([, { updatedAt }]) => clock.wall() - updatedAt > olderThan)
    return { tags: old.map(([tag]) => tag), digests: [] }
  }

  const collectOnSchedule = () => queue.run('all', () => gc({ grace: defaultGraceMs, untagged: false, dryRun: false }))
  const onFailure = logFailure(logger, 'could not remove unused content')
  const stopCollecting = runEvery(options.intervalMs ?? collectionIntervalMs, collectOnSchedule, onFailure)

  return {
    list: (): Promise<PushedImage[]> => listPushedImages(repositories.all(), links),
    /** Removes images, repositories or digests by name. */
    remove: (names: readonly string[], dryRun: boolean): Promise<RegistryRemoval> =>
      queue.run('all', async () => {
        const matched = new Set<string>()
        const removal = await removeSelected((repository) => selectNamed(repository, names, matched), dryRun)
        return { ...removal, unknown: names.filter((name) => !matched.has(name)) }
      }),
    /** Removes unreferenced content. */
    gc: (garbage: GarbageOptions) => queue.run('all', () => gc(garbage)),
    /** Removes old tags, and what they leave unreferenced. */
    prune: (request: PruneOptions): Promise<RegistryRemoval> =>
      queue.run('all', async () => {
        const { repository: repositoryName, dryRun } = request
        const isUnknown = repositoryName !== undefined && repositories.get(repositoryName) === undefined
        const removal = await removeSelected((repository) => selectOld(repository, request), dryRun)
        return { ...removal, unknown: isUnknown ? [repositoryName] : [] }
      }),
    async close(): Promise<void> {
      stopCollecting()
      await queue.idle()
    },
  }
}

/** Selects tags, and manifests with all their tags, of one repository. */
interface Selection {
  readonly tags: readonly string[]
  readonly digests: readonly Digest[]
}

const emptySelection: Selection = { tags: [], digests: [] }

/**
 * Selects by name: `repository:tag`, `repository@digest`, a repository, or a digest in any repository. Adds the names that match
 * to `matched`.
 */
function selectNamed(repository: PushedRepository, names: readonly string[], matched: Set<string>): Selection {
  const tags: string[] = []
  const digests: Digest[] = []
  for (const name of names) {
    const count = tags.length + digests.length
    const digest = parseDigest(name.slice(name.lastIndexOf('@') + 1))
    if (name === repository.name) {
      for (const tag of repository.tags.keys()) tags.push(tag)
      for (const held of repository.manifests.keys()) digests.push(held)
    } else if (digest && (name === digest || name === `${repository.name}@${digest}`)) {
      if (repository.manifests.has(digest)) digests.push(digest)
    } else if (name.startsWith(`${repository.name}:`)) {
      const tag = name.slice(repository.name.length + 1)
      if (repository.tags.has(tag)) tags.push(tag)
    }
    if (tags.length + digests.length > count) matched.add(name)
  }
  return { tags, digests }
}
