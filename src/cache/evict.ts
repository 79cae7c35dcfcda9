import { createPauses, inSlices } from '../lib/async.ts'
import { errnoOf } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { type Clock, every, later, logFailure } from '../lib/time.ts'
import type { Digest } from '../oci/digest.ts'
import { freeSpace } from '../store/blob-writer.ts'
import type { FileBlobStore } from '../store/file-blob-store.ts'
import { dropQuarantined, type Store } from '../store/open-store.ts'
import type { FileRefStore } from '../store/record-files.ts'
import type { RepositoryRecord } from '../store/records.ts'
import {
  type EvictionLimits,
  type EvictionPlan,
  removeReferences,
  type RemovedReference,
  planEviction,
  planRemoval,
  getRemovedImages,
} from './eviction-plan.ts'

export interface EvictorOptions {
  readonly store: Pick<Store, 'blobs' | 'refs' | 'runningClock' | 'layout'>
  readonly limits: EvictorLimits
  /** Whether a blob is being fetched or sent. */
  readonly isInUse: (digest: Digest) => boolean
  readonly logger: Logger
  readonly clock: Clock
  /** Between two looks at the limits, ms. */
  readonly intervalMs?: number
  readonly freeSpace?: (path: string) => Promise<number>
}

interface EvictorLimits {
  /** Bytes; 0 = no limit. */
  readonly maxSize: number
  /** Running time ms; 0 = keep. */
  readonly maxAge: number
  /** Bytes to leave free on the disk. */
  readonly minFree: number
}

interface EvictRequest {
  /** Says what would go, and touches nothing. */
  readonly dryRun: boolean
  /** Bytes that somebody wants to write. Nothing goes for them when there is room, or could not be enough of it. */
  readonly needBytes?: number
  /** Somebody waits to hear what went: what cannot be removed is a failure. */
  readonly isAsked?: boolean
}

/** What went, or would go. */
interface EvictionResult extends AppliedEviction {
  /** Names that matched nothing. */
  readonly unknown: string[]
}

/** Keeps the store within its limits. One sweep at a time; the others wait for their turn. */
export interface Evictor {
  evict(request: EvictRequest): Promise<EvictionResult>
  /** Removes images, repositories or digests by name, whatever the limits say. Throws the system's error for what cannot be removed. */
  remove(names: readonly string[], dryRun: boolean): Promise<EvictionResult>
  /** To be called after a blob was published: sweeps soon when there is too much. */
  schedule(): void
  /** Ends the sweep that is running at its next step. */
  close(): Promise<void>
}

const scheduleDelayMs = 100

export function createEvictor(options: EvictorOptions): Evictor {
  const { store, limits, isInUse, logger, clock } = options
  const closing = new AbortController()
  let last: Promise<unknown> = Promise.resolve()
  let cancelScheduled: (() => void) | undefined

  const runExclusive = (dryRun: boolean, how: RunOptions, plan: () => Promise<Plan>): Promise<EvictionResult> => {
    const result = last.then(() => run(dryRun, how, plan))
    last = result.catch(() => undefined)
    return result
  }

  const run = async (
    dryRun: boolean,
    { isForced, isManual: isAsked }: RunOptions,
    makePlan: () => Promise<Plan>,
  ): Promise<EvictionResult> => {
    await store.blobs.ready
    const claims = new RecentUse(store.refs)
    try {
      const { signal } = closing
      const plan = signal.aborted ? undefined : await inSlices(await makePlan(), clock, signal)
      if (!plan) return { images: [], blobs: 0, bytes: 0, unknown: [] }
      const unknown = plan.unknown ?? []
      const { blobs } = store
      if (dryRun) return { ...previewEviction(plan, blobs.sizes), unknown }
      // Before the records forget what would stay on the disk.
      if (isAsked && plan.references.length + plan.blobs.length > 0) await blobs.checkWritable()
      const refusals: unknown[] = []
      const onRefused = (error: unknown) => void refusals.push(error)
      const removed = await applyEviction(plan, { blobs, claims, isInUse, isForced, onRefused, logger, clock, signal })
      if (removed.blobs + removed.images.length > 0) logger.info({ ...removed }, 'removed cached content')
      if (isAsked && refusals.length > 0) throw refusals[0]
      return { ...removed, unknown }
    } finally {
      claims.close()
    }
  }

  /** The limits for the cache, after damaged blobs that were kept have made what room they can. */
  const computeLimits = async (dryRun: boolean, wanted: number): Promise<EvictionLimits> => {
    const { maxSize, maxAge, minFree } = limits
    const free = minFree + wanted > 0 ? await (options.freeSpace ?? freeSpace)(store.layout.home) : Infinity
    const reserveBytes = Math.max(0, minFree - free)
    // A disk that does not tell has shown that it is full.
    const needBytes = free === Infinity ? wanted : wanted > 0 ? Math.max(0, minFree + wanted - free) : 0
    const shortage = Math.max(reserveBytes, needBytes)
    const freed = shortage > 0 ? await dropQuarantined(store.layout, { bytes: shortage, dryRun, logger }) : 0
    return {
      maxSize,
      maxAge,
      reserveBytes: Math.max(0, reserveBytes - freed),
      needBytes: Math.max(0, needBytes - freed),
    }
  }

  const evict = ({ dryRun, needBytes = 0, isAsked = false }: EvictRequest) =>
    runExclusive(dryRun, { isForced: false, isManual: isAsked }, async () =>
      planEviction({
        limits: await computeLimits(dryRun, needBytes),
        records: store.refs.all(),
        sizes: store.blobs.sizes,
        now: store.runningClock.now(),
        isInUse,
      }),
    )

  const evictOnSchedule = () => evict({ dryRun: false })
  const onFailure = logFailure(logger, 'could not keep the store within its limits')
  const stopTimer = every(options.intervalMs ?? 60_000, evictOnSchedule, onFailure)

  return {
    evict: evict,
    remove: (names, dryRun) =>
      runExclusive(dryRun, { isForced: true, isManual: true }, async () =>
        planRemoval({ names, records: store.refs.all(), sizes: store.blobs.sizes, isInUse }),
      ),
    schedule() {
      if (
        closing.signal.aborted ||
        cancelScheduled ||
        limits.maxSize === 0 ||
        store.blobs.usage.bytes <= limits.maxSize
      )
        return
      const sweepNow = () => {
        cancelScheduled = undefined
        return evictOnSchedule()
      }
      cancelScheduled = later(scheduleDelayMs, sweepNow, onFailure)
    },
    async close() {
      closing.abort()
      stopTimer()
      cancelScheduled?.()
      await last
    },
  }
}

interface RunOptions {
  /** Images go even if they were pulled a moment ago. */
  readonly isForced: boolean
  readonly isManual: boolean
}

type Plan = Generator<undefined, EvictionPlan & { readonly unknown?: string[] }>

/** What went, or would go. */
interface AppliedEviction {
  /** Names of images. */
  readonly images: string[]
  readonly blobs: number
  readonly bytes: number
}

interface ApplyOptions {
  readonly blobs: FileBlobStore
  /** What is wanted again since the plan was begun; such content stays. */
  readonly claims: RecentUse
  readonly isInUse: (digest: Digest) => boolean
  /** Images go even if they were pulled a moment ago. */
  readonly isForced: boolean
  /** Hears of each blob that the disk does not let go. */
  readonly onRefused?: (error: unknown) => void
  readonly logger: Logger
  readonly clock: Clock
  readonly signal: AbortSignal
}

/** Does what the plan says, records before blobs, looking again before each step. */
async function applyEviction(plan: EvictionPlan, options: ApplyOptions): Promise<AppliedEviction> {
  const { blobs, claims, isInUse, logger, signal } = options
  const pause = createPauses(options.clock)
  const images: string[] = []
  for (const [record, planned] of groupByRecord(plan.references)) {
    if (signal.aborted) break
    const gone: RemovedReference[] = []
    for (const forgotten of planned)
      if (options.isForced || !isUsedAgain(forgotten, isInUse)) gone.push(forgotten)
      else claims.add(forgotten.reference.contents)
    if (gone.length === 0) continue
    removeReferences(record, gone)
    claims.touchSilently(record)
    images.push(...getRemovedImages(gone, blobs.sizes))
    await pause()
  }
  let count = 0
  let bytes = 0
  for (const digest of plan.blobs) {
    if (signal.aborted) break
    const size = blobs.sizes.get(digest)
    if (size === undefined || isInUse(digest) || claims.has(digest)) continue
    try {
      await blobs.remove(digest)
      count += 1
      bytes += size
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
      logger.error({ digest, error: String(error) }, 'could not remove a blob')
      options.onRefused?.(error)
    }
    await pause()
  }
  return { images: images.toSorted(), blobs: count, bytes }
}

/** What `applyEviction` would say if nothing else happened. */
function previewEviction(plan: EvictionPlan, sizes: ReadonlyMap<Digest, number>): AppliedEviction {
  const images = getRemovedImages(plan.references, sizes).toSorted()
  return { images, blobs: plan.blobs.length, bytes: plan.bytes }
}

function groupByRecord(all: readonly RemovedReference[]): Map<RepositoryRecord, RemovedReference[]> {
  const groups = new Map<RepositoryRecord, RemovedReference[]>()
  for (const forgotten of all) {
    const group = groups.get(forgotten.reference.record)
    if (group) group.push(forgotten)
    else groups.set(forgotten.reference.record, [forgotten])
  }
  return groups
}

function isUsedAgain({ reference: holding }: RemovedReference, isInUse: (digest: Digest) => boolean): boolean {
  const { record, kind, digest, manifests, contents, usedAt } = holding
  if (kind === 'blob') return (record.blobs.get(digest)?.usedAt ?? 0) > usedAt || isInUse(digest)
  if (kind === 'referrers')
    return [...record.referrers.values()].some((list) => list.subject === digest && list.usedAt > usedAt)
  if (manifests.some((manifest) => (record.manifests.get(manifest)?.usedAt ?? 0) > usedAt)) return true
  for (const content of contents) if (isInUse(content)) return true
  return false
}

/** What records have come to name, or been asked for, since a plan was begun: it is wanted again. */
class RecentUse {
  readonly #refs: FileRefStore
  readonly #used = new Set<Digest>()
  readonly #touched = new Set<RepositoryRecord>()
  readonly #stop: () => void
  #isIgnoring = false

  constructor(refs: FileRefStore) {
    this.#refs = refs
    this.#stop = refs.onTouch((record) => {
      if (!this.#isIgnoring) this.#touched.add(record)
    })
  }

  has(digest: Digest): boolean {
    for (const record of this.#touched) this.#addRecord(record)
    this.#touched.clear()
    return this.#used.has(digest)
  }

  add(digests: Iterable<Digest>): void {
    for (const digest of digests) this.#used.add(digest)
  }

  /** Says that a record was changed, by the plan itself. */
  touchSilently(record: RepositoryRecord): void {
    this.#isIgnoring = true
    this.#refs.touch(record)
    this.#isIgnoring = false
  }

  close(): void {
    this.#stop()
  }

  #addRecord(record: RepositoryRecord): void {
    for (const { digest } of record.tags.values()) this.#used.add(digest)
    for (const digest of record.blobs.keys()) this.#used.add(digest)
    for (const { digest } of record.referrers.values()) this.#used.add(digest)
    for (const [digest, { links }] of record.manifests) {
      this.#used.add(digest)
      for (const link of links) this.#used.add(link.digest)
    }
  }
}
