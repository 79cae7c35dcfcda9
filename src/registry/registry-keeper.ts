import type { Clock } from '../lib/clock.ts'
import { errnoOf } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { parseDigest, type Digest } from '../oci/digest.ts'
import { KeyedQueue } from '../store/keyed-queue.ts'
import type { PushedChange, PushedRepository } from '../store/pushed-repository.ts'
import type { PushedStore } from '../store/pushed-store.ts'
import { attachedTo, planForgetting } from './pushed-closure.ts'
import { collectGarbage, type GarbageOptions } from './pushed-garbage.ts'
import { listPushedImages, removedImages, type PushedImage } from './pushed-images.ts'

/** How long what nothing leads to stays, ms of running time: a manifest that names it may be on its way. */
export const usualGrace = 24 * 3_600_000

/** What went from the registry, or would go. */
export interface RegistryRemoval {
  /** Names of images. */
  readonly images: string[]
  readonly blobs: number
  readonly bytes: number
  /** Names that matched nothing. */
  readonly unknown: string[]
}

export interface PruneOptions {
  /** Tags that were pushed longer ago than this go; ms. */
  readonly olderThan: number
  /** How many tags of each repository stay however old they are, the newest ones. */
  readonly keep: number
  /** Undefined for all. */
  readonly repository: string | undefined
  readonly dryRun: boolean
}

/** Keeps the registry in order, on request and by the hour. One task at a time; pushes go on beside it. */
export interface RegistryKeeper {
  list(): PushedImage[]
  /** Removes images, repositories or digests by name. */
  remove(names: readonly string[], dryRun: boolean): Promise<RegistryRemoval>
  gc(options: GarbageOptions): Promise<RegistryRemoval>
  prune(options: PruneOptions): Promise<RegistryRemoval>
  close(): Promise<void>
}

export interface RegistryKeeperOptions {
  readonly store: PushedStore
  readonly clock: Clock
  readonly logger: Logger
  /** Between two collections, ms. */
  readonly interval?: number
}

const hour = 3_600_000

export function createRegistryKeeper(options: RegistryKeeperOptions): RegistryKeeper {
  const { store, clock, logger } = options
  const { repositories } = store
  const isClaimed = (digest: Digest) => repositories.isClaimed(digest)
  const turns = new KeyedQueue<'all'>()

  const gc = async (how: GarbageOptions): Promise<RegistryRemoval> => {
    const { images, manifests, blobs, bytes } = await collectGarbage(store, how)
    if (!how.dryRun && blobs > 0) logger.info({ manifests, blobs, bytes }, 'removed unused content')
    return { images, blobs, bytes, unknown: [] }
  }

  /** Does the changes and takes away what they leave behind; or only says so. */
  const forget = async (plan: (repository: PushedRepository) => PushedChange[], dryRun: boolean) => {
    const images: string[] = []
    const before = new Map<string, PushedChange[]>()
    for (const repository of repositories.all()) {
      const { name } = repository
      const changes = plan(repository)
      if (changes.length === 0) continue
      before.set(name, changes)
      images.push(...removedImages(repository, changes))
      // At once: pushes go on, and what was planned for an older state would take away what they bring.
      if (!dryRun) await repositories.commit(name, changes)
    }
    const { blobs, bytes } = await gc({ grace: usualGrace, untagged: false, dryRun, before })
    return { images: images.toSorted(), blobs, bytes }
  }

  const planPrune = (repository: PushedRepository, { olderThan, keep, repository: only }: PruneOptions) => {
    if (only !== undefined && repository.name !== only) return []
    const byAge = [...repository.tags]
      // Lists of referrers and signatures go with their image.
      .filter(([tag]) => attachedTo(tag) === undefined)
      .toSorted(([, a], [, b]) => b.pushedAt - a.pushedAt)
    const old = byAge.slice(keep).filter(([, { pushedAt }]) => clock.wall() - pushedAt > olderThan)
    return planForgetting(
      repository,
      old.map(([tag]) => tag),
      [],
      isClaimed,
    )
  }

  const collectUnasked = async () => {
    try {
      await turns.run('all', () => gc({ grace: usualGrace, untagged: false, dryRun: false }))
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
      logger.error({ error: String(error) }, 'could not remove unused content')
    }
  }
  const timer = setInterval(() => void collectUnasked(), options.interval ?? hour).unref()

  return {
    list: () => listPushedImages(repositories.all()),
    remove: (names, dryRun) =>
      turns.run('all', async () => {
        const matched = new Set<string>()
        const plan = (repository: PushedRepository) => planRemoval(repository, names, matched, isClaimed)
        const removal = await forget(plan, dryRun)
        return { ...removal, unknown: names.filter((name) => !matched.has(name)) }
      }),
    gc: (how) => turns.run('all', () => gc(how)),
    prune: (how) =>
      turns.run('all', async () => {
        const isUnknown = how.repository !== undefined && repositories.get(how.repository) === undefined
        const removal = await forget((repository) => planPrune(repository, how), how.dryRun)
        return { ...removal, unknown: isUnknown ? [how.repository] : [] }
      }),
    async close() {
      clearInterval(timer)
      await turns.idle()
    },
  }
}

/** A name is `repository:tag`, `repository@digest`, a repository, or a digest in any of them. Notes those that match. */
function planRemoval(
  repository: PushedRepository,
  names: readonly string[],
  matched: Set<string>,
  isClaimed: (digest: Digest) => boolean,
): PushedChange[] {
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
  return planForgetting(repository, tags, digests, isClaimed)
}
