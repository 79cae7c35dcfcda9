import { createPauses, runInSlices } from '../lib/async.ts'
import { getErrno } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { type Clock, logFailure, type OnFailure, runEvery, runLater } from '../lib/time.ts'
import { type PastChanges, toTagKey } from '../metadata/past-changes.ts'
import type { Operation, Repository } from '../metadata/metadata.ts'
import type { MetadataStore } from '../metadata/metadata-store.ts'
import { toReferrersKey } from '../metadata/metadata.ts'
import type { Digest } from '../oci/reference.ts'
import { freeSpace } from '../store/blob-writer.ts'
import type { FileBlobStore } from '../store/file-blob-store.ts'
import { dropQuarantined, type Store } from '../store/open-store.ts'
import {
  type EvictionLimits,
  type EvictionPlan,
  removeReferences,
  type ReferenceRemoval,
  planEviction,
  planRemoval,
  getRemovedImages,
} from './eviction-plan.ts'

export interface EvictorOptions {
  readonly store: Pick<Store<MetadataStore>, 'blobs' | 'runningClock' | 'layout'> & {
    readonly metadata: EvictorMetadata
  }
  readonly limits: EvictorLimits
  /** Reports whether a blob is being downloaded or sent. */
  readonly isInUse: (digest: Digest) => boolean
  /** Remembers what was removed; absent where nobody asks for it. */
  readonly pastChanges?: Pick<PastChanges, 'recordRemoval'> | undefined
  readonly logger: Logger
  readonly clock: Clock
  /** Sets the time between two scheduled evictions, ms. */
  readonly intervalMs?: number
  readonly freeSpace?: (path: string) => Promise<number>
}

type EvictorMetadata = Pick<MetadataStore, 'all' | 'get' | 'commit' | 'onChange'>

interface EvictorLimits {
  /** Bytes; 0 = no limit. */
  readonly maxSize: number
  /** Running time ms; 0 = keep. */
  readonly maxAge: number
  /** Bytes to leave free on the disk. */
  readonly minFree: number
}

interface EvictRequest {
  /** Reports what would be removed, and changes nothing. */
  readonly dryRun: boolean
  /** Bytes to make room for. Nothing is evicted for them when there is enough room, or cannot be enough. */
  readonly neededBytes?: number
  /** Is true when a user waits for the result: content that cannot be removed is an error. */
  readonly isManual?: boolean
}

/** Describes the removed content; of a dry run, the content that would be removed. */
interface EvictionResult extends AppliedEviction {
  /** Lists names that matched nothing. */
  readonly unknown: string[]
}

/** Sets the delay of a scheduled eviction, ms: several stored blobs share it. */
const scheduleDelayMs = 100

/** Keeps a store within its limits. Runs one eviction or removal at a time. */
export class Evictor {
  readonly #options: EvictorOptions
  readonly #closing = new AbortController()
  readonly #onFailure: OnFailure
  readonly #stopTimer: () => void
  /** Settles when the last eviction or removal has ended. */
  #last: Promise<unknown> = Promise.resolve()
  #cancelScheduled: (() => void) | undefined

  /** Schedules an eviction if the store is too large. Call it after a blob was stored. */
  readonly schedule = (): void => {
    const { store, limits } = this.#options
    if (this.#closing.signal.aborted || this.#cancelScheduled) return
    if (limits.maxSize === 0 || store.blobs.usage.bytes <= limits.maxSize) return
    const evictNow = () => {
      this.#cancelScheduled = undefined
      return this.evict({ dryRun: false })
    }
    this.#cancelScheduled = runLater(scheduleDelayMs, evictNow, this.#onFailure)
  }

  constructor(options: EvictorOptions) {
    this.#options = options
    this.#onFailure = logFailure(options.logger, 'could not keep the store within its limits')
    this.#stopTimer = runEvery(options.intervalMs ?? 60_000, () => this.evict({ dryRun: false }), this.#onFailure)
  }

  /** Evicts what exceeds the limits. Throws the system's error for a user's request that cannot be carried out. */
  evict({ dryRun, neededBytes = 0, isManual = false }: EvictRequest): Promise<EvictionResult> {
    const { store, isInUse } = this.#options
    return this.#runExclusive(dryRun, { isForced: false, isManual }, async () =>
      planEviction({
        limits: await this.#computeLimits(dryRun, neededBytes),
        repositories: store.metadata.all(),
        sizes: store.blobs.sizes,
        now: store.runningClock.now(),
        isInUse,
      }),
    )
  }

  /** Removes images, repositories or digests by name, whatever the limits are. Throws the system's error if that fails. */
  remove(names: readonly string[], dryRun: boolean): Promise<EvictionResult> {
    const { store, isInUse } = this.#options
    return this.#runExclusive(dryRun, { isForced: true, isManual: true }, async () =>
      planRemoval({ names, repositories: store.metadata.all(), sizes: store.blobs.sizes, isInUse }),
    )
  }

  /** Stops the running eviction at its next step. */
  async close(): Promise<void> {
    this.#closing.abort()
    this.#stopTimer()
    this.#cancelScheduled?.()
    await this.#last
  }

  #runExclusive(dryRun: boolean, mode: RunOptions, plan: () => Promise<Plan>): Promise<EvictionResult> {
    const result = this.#last.then(() => this.#run(dryRun, mode, plan))
    this.#last = result.catch(() => undefined)
    return result
  }

  async #run(
    dryRun: boolean,
    { isForced, isManual }: RunOptions,
    makePlan: () => Promise<Plan>,
  ): Promise<EvictionResult> {
    const { store, isInUse, pastChanges, logger, clock } = this.#options
    await store.blobs.ready
    const recentUse = new RecentUse(store.metadata)
    try {
      const { signal } = this.#closing
      const plan = signal.aborted ? undefined : await runInSlices(await makePlan(), clock, signal)
      if (!plan) return { images: [], blobs: 0, bytes: 0, unknown: [] }
      const unknown = plan.unknown ?? []
      const { blobs, metadata } = store
      if (dryRun) return { ...previewEviction(plan, blobs.sizes), unknown }
      // Check before the metadata change: blobs that cannot be removed must not lose their records.
      if (isManual && plan.references.length + plan.blobs.length > 0) await blobs.checkWritable()
      const errors: unknown[] = []
      const onError = (error: unknown) => void errors.push(error)
      const uses = { recentUse, isInUse, isForced }
      const removed = await applyEviction(plan, {
        blobs,
        metadata,
        pastChanges,
        ...uses,
        onError,
        logger,
        clock,
        signal,
      })
      if (removed.blobs + removed.images.length > 0) logger.info({ ...removed }, 'removed cached content')
      if (isManual && errors.length > 0) throw errors[0]
      return { ...removed, unknown }
    } finally {
      recentUse.close()
    }
  }

  /** Computes the limits of an eviction. On a shortage, damaged blobs in quarantine are removed first. */
  async #computeLimits(dryRun: boolean, needed: number): Promise<EvictionLimits> {
    const { store, limits, logger } = this.#options
    const { maxSize, maxAge, minFree } = limits
    const free = minFree + needed > 0 ? await (this.#options.freeSpace ?? freeSpace)(store.layout.home) : Infinity
    const reserveBytes = Math.max(0, minFree - free)
    // If the file system does not report its free space, assume a full disk.
    const needBytes = free === Infinity ? needed : needed > 0 ? Math.max(0, minFree + needed - free) : 0
    const shortage = Math.max(reserveBytes, needBytes)
    const freed = shortage > 0 ? await dropQuarantined(store.layout, { bytes: shortage, dryRun, logger }) : 0
    return {
      maxSize,
      maxAge,
      reserveBytes: Math.max(0, reserveBytes - freed),
      needBytes: Math.max(0, needBytes - freed),
    }
  }
}

interface RunOptions {
  /** Removes images even if they were pulled since the plan was made. */
  readonly isForced: boolean
  /** Is true when a user waits for the result. */
  readonly isManual: boolean
}

type Plan = Generator<undefined, EvictionPlan & { readonly unknown?: string[] }>

interface AppliedEviction {
  /** Lists the names of images. */
  readonly images: string[]
  readonly blobs: number
  readonly bytes: number
}

interface ApplyOptions {
  readonly blobs: FileBlobStore
  readonly metadata: EvictorMetadata
  readonly pastChanges: EvictorOptions['pastChanges']
  /** Holds content that was used since the plan was started. It stays. */
  readonly recentUse: RecentUse
  readonly isInUse: (digest: Digest) => boolean
  /** Removes images even if they were pulled since the plan was made. */
  readonly isForced: boolean
  /** Receives the system's error for each blob that cannot be removed. */
  readonly onError: (error: unknown) => void
  readonly logger: Logger
  readonly clock: Clock
  readonly signal: AbortSignal
}

/** Applies a plan, metadata before blobs. Checks before each step that the content was not used meanwhile. */
async function applyEviction(plan: EvictionPlan, options: ApplyOptions): Promise<AppliedEviction> {
  const { blobs, metadata, pastChanges, recentUse, isInUse, logger, signal } = options
  const why = options.isForced ? 'removed' : 'evicted'
  const pause = createPauses(options.clock)
  const images: string[] = []
  for (const planned of groupByRepository(plan.references)) {
    if (signal.aborted) break
    const { host, name } = planned[0].reference.repository
    const repository = metadata.get(host, name)
    // It may have lost its last entry since the plan was made.
    if (!repository) continue
    const removals: ReferenceRemoval[] = []
    for (const removal of planned)
      if (options.isForced || !isUsedAgain(repository, removal, isInUse)) removals.push(removal)
      else recentUse.add(removal.reference.contents)
    if (removals.length === 0) continue
    const operations = removeReferences(repository, removals)
    if (operations.length > 0) void metadata.commit(repository, operations, 'soon')
    for (const operation of operations)
      if (operation.op === 'untag') pastChanges?.recordRemoval(toTagKey({ host, name }, operation.tag), why)
    images.push(...getRemovedImages(removals, blobs.sizes))
    await pause()
  }
  let count = 0
  let bytes = 0
  for (const digest of plan.blobs) {
    if (signal.aborted) break
    const size = blobs.sizes.get(digest)
    if (size === undefined || isInUse(digest) || recentUse.has(digest)) continue
    try {
      await blobs.remove(digest)
      pastChanges?.recordRemoval(digest, why)
      count += 1
      bytes += size
    } catch (error) {
      if (getErrno(error) === undefined) throw error
      logger.error({ digest, error: String(error) }, 'could not remove a blob')
      options.onError(error)
    }
    await pause()
  }
  return { images: images.toSorted(), blobs: count, bytes }
}

/** Returns what `applyEviction` would, if no content is used meanwhile. */
function previewEviction(plan: EvictionPlan, sizes: ReadonlyMap<Digest, number>): AppliedEviction {
  const images = getRemovedImages(plan.references, sizes).toSorted()
  return { images, blobs: plan.blobs.length, bytes: plan.bytes }
}

type NonEmpty<T> = [T, ...T[]]

function groupByRepository(all: readonly ReferenceRemoval[]): Iterable<NonEmpty<ReferenceRemoval>> {
  const groups = new Map<Repository, NonEmpty<ReferenceRemoval>>()
  for (const removal of all) {
    const group = groups.get(removal.reference.repository)
    if (group) group.push(removal)
    else groups.set(removal.reference.repository, [removal])
  }
  return groups.values()
}

/** Reports whether a reference was used since the plan was made. `repository` is its repository as it is now. */
function isUsedAgain(
  repository: Repository,
  { reference }: ReferenceRemoval,
  isInUse: (digest: Digest) => boolean,
): boolean {
  const { kind, digest, manifests, contents, usedAt } = reference
  if (kind === 'blob') return (repository.blobs.get(digest)?.usedAt ?? 0) > usedAt || isInUse(digest)
  if (kind === 'referrers')
    return [...repository.referrers.values()].some((list) => list.subject === digest && list.usedAt > usedAt)
  if (manifests.some((manifest) => (repository.manifests.get(manifest)?.usedAt ?? 0) > usedAt)) return true
  for (const content of contents) if (isInUse(content)) return true
  return false
}

interface Change {
  readonly host: string
  readonly name: string
  readonly operation: Operation
}

/** Tracks the content that was recorded or used since a plan was started, except what was removed again. */
class RecentUse {
  readonly #metadata: EvictorMetadata
  readonly #used = new Set<Digest>()
  /** Holds the changes whose content is not in `#used` yet. Several uses of one entry are one change. */
  readonly #changes = new Map<string, Change>()
  readonly #stop: () => void

  constructor(metadata: EvictorMetadata) {
    this.#metadata = metadata
    this.#stop = metadata.onChange((host, name, operations) => {
      for (const operation of operations) {
        const key = toEntryKey(operation)
        if (key !== undefined) this.#changes.set(`${host}/${name} ${key}`, { host, name, operation })
      }
    })
  }

  has(digest: Digest): boolean {
    for (const change of this.#changes.values()) this.#addChange(change)
    this.#changes.clear()
    return this.#used.has(digest)
  }

  add(digests: Iterable<Digest>): void {
    for (const digest of digests) this.#used.add(digest)
  }

  close(): void {
    this.#stop()
  }

  #addChange({ host, name, operation }: Change): void {
    const repository = this.#metadata.get(host, name)
    const digest = repository && findContent(repository, operation)
    if (!digest) return
    const contents = new Set([digest])
    // The set grows while it is walked.
    for (const at of contents) for (const link of repository.getLinks(at)) contents.add(link.digest)
    this.add(contents)
  }
}

/** Returns a key of the entry that an operation records or uses; undefined for a removal. */
function toEntryKey(operation: Operation): string | undefined {
  switch (operation.op) {
    case 'tag':
    case 'use-tag':
      return `tag ${operation.tag}`
    case 'manifest':
    case 'use-manifest':
      return `manifest ${operation.digest}`
    case 'blob':
    case 'use-blob':
      return `blob ${operation.digest}`
    case 'referrers':
      return `referrers ${toReferrersKey(operation)}`
    default:
      return undefined
  }
}

/** Finds the content of the entry that an operation records or uses; undefined when the entry was removed since. */
function findContent({ tags, manifests, blobs, referrers }: Repository, operation: Operation): Digest | undefined {
  switch (operation.op) {
    case 'tag':
    case 'use-tag':
      return tags.get(operation.tag)?.digest
    case 'manifest':
    case 'use-manifest':
      return manifests.has(operation.digest) ? operation.digest : undefined
    case 'blob':
    case 'use-blob':
      return blobs.has(operation.digest) ? operation.digest : undefined
    case 'referrers':
      return referrers.get(toReferrersKey(operation))?.digest
    default:
      return undefined
  }
}
