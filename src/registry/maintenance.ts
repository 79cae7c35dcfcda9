import { KeyedQueue } from '../lib/async.ts'
import type { Logger } from '../lib/logger.ts'
import { type Clock, every, logFailure } from '../lib/time.ts'
import { type Digest, parseDigest } from '../oci/digest.ts'
import { parseAttachedTag, collectGarbage, type GarbageOptions, planRemovals } from './garbage.ts'
import { listPushedImages, type PushedImage, getRemovedImageNames, StoredLinks } from './images.ts'
import type { PushedStore } from './repositories.ts'
import { copyRepository, type PushedChange, type PushedRepository } from './repository.ts'

/** How long what nothing leads to stays, ms of running time: a manifest that names it may be on its way. */
export const defaultGraceMs = 24 * 3_600_000

/** What went from the registry, or would go. */
interface RegistryRemoval {
  /** Names of images. */
  readonly images: string[]
  readonly blobs: number
  readonly bytes: number
  /** Names that matched nothing. */
  readonly unknown: string[]
}

interface PruneOptions {
  /** Tags that were pushed longer ago than this go; ms. */
  readonly olderThan: number
  /** How many tags of each repository stay however old they are, the newest ones. */
  readonly keep: number
  /** Undefined for all. */
  readonly repository: string | undefined
  readonly dryRun: boolean
}

/** Keeps the registry in order, on request and by the hour. One task at a time; pushes go on beside it. */
export interface RegistryMaintenance {
  list(): Promise<PushedImage[]>
  /** Removes images, repositories or digests by name; a repository whose journal cannot be loaded, by its own. */
  remove(names: readonly string[], dryRun: boolean): Promise<RegistryRemoval>
  gc(options: GarbageOptions): Promise<RegistryRemoval>
  prune(options: PruneOptions): Promise<RegistryRemoval>
  close(): Promise<void>
}

interface RegistryMaintenanceOptions {
  readonly store: PushedStore
  readonly clock: Clock
  readonly logger: Logger
  /** Between two collections, ms. */
  readonly interval?: number
}

const collectionIntervalMs = 3_600_000

export function createRegistryMaintenance(options: RegistryMaintenanceOptions): RegistryMaintenance {
  const { store, clock, logger } = options
  const { repositories } = store
  const isClaimed = (digest: Digest) => repositories.isClaimed(digest)
  const queue = new KeyedQueue<'all'>()
  const links = new StoredLinks(store.blobs)

  const gc = async (how: GarbageOptions): Promise<RegistryRemoval> => {
    const { images, manifests, blobs, bytes } = await collectGarbage(store, how, links)
    if (!how.dryRun && blobs > 0) logger.info({ manifests, blobs, bytes }, 'removed unused content')
    return { images, blobs, bytes, unknown: [] }
  }

  /** Forgets what is selected of each repository and takes away what that leaves behind; or only says so. */
  const removeSelected = async (select: (repository: PushedRepository) => Selection, dryRun: boolean) => {
    const images: string[] = []
    const planned = new Map<string, PushedChange[]>()
    for (const repository of repositories.all()) {
      const { name } = repository
      const { tags, digests } = select(repository)
      if (tags.length + digests.length === 0) continue
      const { before, changes } = await planRemovals(
        repository,
        { tags, digests, links, isClaimed },
        // At once: pushes go on, and what was planned for an older state would take away what they bring.
        async (plan) => {
          const found = { before: copyRepository(repository), changes: plan }
          if (!dryRun && plan.length > 0) await repositories.commit(name, plan)
          return found
        },
      )
      planned.set(name, changes)
      images.push(...(await getRemovedImageNames(before, changes, links)))
    }
    const { blobs, bytes } = await gc({ grace: defaultGraceMs, untagged: false, dryRun, pendingChanges: planned })
    return { images: images.toSorted(), blobs, bytes }
  }

  const selectOld = (repository: PushedRepository, { olderThan, keep, repository: only }: PruneOptions): Selection => {
    if (only !== undefined && repository.name !== only) return emptySelection
    const byAge = [...repository.tags]
      // Lists of referrers and signatures go with their image.
      .filter(([tag]) => parseAttachedTag(tag) === undefined)
      .toSorted(([, a], [, b]) => b.pushedAt - a.pushedAt)
    const old = byAge.slice(keep).filter(([, { pushedAt }]) => clock.wall() - pushedAt > olderThan)
    return { tags: old.map(([tag]) => tag), digests: [] }
  }

  const collectOnSchedule = () => queue.run('all', () => gc({ grace: defaultGraceMs, untagged: false, dryRun: false }))
  const onFailure = logFailure(logger, 'could not remove unused content')
  const stopCollecting = every(options.interval ?? collectionIntervalMs, collectOnSchedule, onFailure)

  return {
    list: () => listPushedImages(repositories.all(), links),
    remove: (names, dryRun) =>
      queue.run('all', async () => {
        const matched = new Set<string>()
        const damaged = names.filter((name) => repositories.isDamaged(name))
        for (const name of damaged) {
          matched.add(name)
          if (dryRun) continue
          await repositories.discardDamaged(name)
          logger.warn({ repository: name }, 'gave up a pushed repository whose journal is damaged')
        }
        const removal = await removeSelected((repository) => selectNamed(repository, names, matched), dryRun)
        const images = [...removal.images, ...damaged].toSorted()
        return { ...removal, images, unknown: names.filter((name) => !matched.has(name)) }
      }),
    gc: (how) => queue.run('all', () => gc(how)),
    prune: (how) =>
      queue.run('all', async () => {
        const isUnknown = how.repository !== undefined && repositories.get(how.repository) === undefined
        const removal = await removeSelected((repository) => selectOld(repository, how), how.dryRun)
        return { ...removal, unknown: isUnknown ? [how.repository] : [] }
      }),
    async close() {
      stopCollecting()
      await queue.idle()
    },
  }
}

/** Of one repository: tags, and manifests with all their tags. */
interface Selection {
  readonly tags: readonly string[]
  readonly digests: readonly Digest[]
}

const emptySelection: Selection = { tags: [], digests: [] }

/** A name is `repository:tag`, `repository@digest`, a repository, or a digest in any of them. Notes those that match. */
function selectNamed(repository: PushedRepository, names: readonly string[], matched: Set<string>): Selection {
  const tags: string[] = []
  const digests: Digest[] = []
  for (const name of names) {
    const found = tags.length + digests.length
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
    if (tags.length + digests.length > found) matched.add(name)
  }
  return { tags, digests }
}
