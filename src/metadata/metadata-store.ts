import { createDeferred, createPauses, type Deferred, runInSlices } from '../lib/async.ts'
import { getErrno } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { type Clock, logFailure, runLater } from '../lib/time.ts'
import type { Digest } from '../oci/reference.ts'
import { type LogDamage, type MetadataLog, writeDamage } from './log.ts'
import type { Durability, Metadata, Operation, Repository, Use } from './metadata.ts'
import { dropLeastUsed, findHeavy, formatCommit } from './operations.ts'
import { type Repositories, toOperations } from './repositories.ts'

export interface MetadataStoreOptions {
  /** Reports whether the store has no content. Any other store without metadata has lost them. */
  readonly isNew: () => Promise<boolean>
  /** Returns a path for a damaged file, or for a copy of its damaged lines. */
  readonly setAside: (path: string) => string
  readonly logger: Logger
  readonly clock: Clock
  /** Limits the memory of the entries, bytes. Beyond that, the least recently used ones are dropped; default: no limit. */
  readonly maxWeight?: number | undefined
  /** Keeps changes in memory. */
  readonly isReadOnly?: boolean
}

/** Holds what was read from the disk. */
export interface LoadedMetadata {
  readonly repositories: Repositories
  readonly log: MetadataLog
  readonly sequence: number
  readonly damage: readonly LogDamage[]
  readonly unreadable: readonly string[]
}

const [writeDelayMs, retryDelayMs, useDelayMs] = [500, 5000, 60_000]
/** Limits the commits that are formatted in one piece, bytes. */
const maxBatchBytes = 256 * 1024
/** Sets the bytes of a checkpoint that are written at once. */
const pieceBytes = 64 * 1024
/** Limits the changes that wait for a disk that takes none, bytes. Beyond that, a checkpoint replaces them. */
const maxQueuedBytes = 16 * 1024 * 1024

interface Commit {
  readonly host: string
  readonly name: string
  readonly operations: readonly Operation[]
  /** Holds the entries that the removals of a durable commit have hidden. They come back when the disk refuses the commit. */
  hidden: readonly Operation[]
  /** Is undefined for a commit that is visible already. */
  readonly done: Deferred<void> | undefined
}

/** Keeps the metadata of a store in memory, and its commits in a log on the local disk. */
export class MetadataStore implements Metadata {
  /** Lists what was damaged when the store was loaded. */
  readonly damage: readonly LogDamage[]
  /** Lists the journals of release 0.1 that could not be read, and that were not moved. */
  readonly unreadable: readonly string[]
  readonly #options: MetadataStoreOptions
  readonly #repositories: Repositories
  readonly #log: MetadataLog
  readonly #listeners = new Set<(host: string, name: string, operations: readonly Operation[]) => void>()
  #sequence: number
  /** Holds the commits that are not on the disk yet, also while they are written. */
  #queue: Commit[] = []
  #queuedBytes = 0
  /** Holds the latest use of each entry that is not in the queue yet, by repository. */
  readonly #uses = new Map<string, Pick<Commit, 'host' | 'name'> & { readonly uses: Map<string, Use> }>()
  /** Collects the entries that came back during a checkpoint, which may have missed them. */
  #restored: Commit[] | undefined
  #writing: Promise<void> = Promise.resolve()
  #isWriting = false
  #isDropping = false
  #checkpointing: Promise<void> | undefined
  #needsCheckpoint = false
  #hasUnkeptDamage = false
  #keeping: Promise<void> | undefined
  /** Is true while the log on the disk lacks commits, because it was deleted from outside. */
  #isLost = false
  #cancelWrite: (() => void) | undefined
  #cancelUses: (() => void) | undefined
  readonly #closing = new AbortController()

  /** Changes what was loaded from now on. */
  constructor(loaded: LoadedMetadata, options: MetadataStoreOptions) {
    this.#options = options
    this.#repositories = loaded.repositories
    this.#log = loaded.log
    this.#sequence = loaded.sequence
    this.damage = loaded.damage
    this.unreadable = loaded.unreadable
    this.#hasUnkeptDamage = loaded.damage.length > 0
    if (options.isReadOnly) return
    this.#limitWeight()
    if (this.#isCheckpointDue) void this.#startWrite()
  }

  /** Is true while the damaged lines could not be copied. They stay in the log until they are. */
  get hasUnkeptDamage(): boolean {
    return this.#hasUnkeptDamage
  }

  get sequence(): number {
    return this.#sequence
  }

  get(host: string, name: string): Repository | undefined {
    return this.#repositories.get(host, name)
  }

  all(): Iterable<Repository> {
    return this.#repositories.all()
  }

  /** Reports whether any repository holds this content, or gets it back if the disk refuses its removal. */
  isHeld(digest: Digest): boolean {
    return this.#repositories.isHeld(digest)
  }

  catchUp(): Promise<void> {
    return Promise.resolve()
  }

  /** Returns the latest time of a use, running time ms. */
  findLatestUse(): number {
    return this.#repositories.findLatestUse()
  }

  commit(
    { host, name }: Pick<Repository, 'host' | 'name'>,
    operations: readonly Operation[],
    durability: Durability,
  ): Promise<void> {
    if (durability === 'durable') {
      const done = createDeferred()
      this.#enqueue({ host, name, operations, done, hidden: this.#repositories.hide(host, name, operations) })
      void this.#startWrite()
      return done.promise
    }
    this.#apply(host, name, operations)
    this.#enqueue({ host, name, operations, hidden: [], done: undefined })
    this.#scheduleWrite(writeDelayMs)
    this.#limitWeight(this.#repositories.get(host, name))
    return Promise.resolve()
  }

  recordUse({ host, name }: Pick<Repository, 'host' | 'name'>, use: Use): void {
    this.#apply(host, name, [use])
    const known = this.#uses.get(`${host}/${name}`) ?? { host, name, uses: new Map<string, Use>() }
    known.uses.set(`${use.op} ${'tag' in use ? use.tag : use.digest}`, use)
    this.#uses.set(`${host}/${name}`, known)
    const onFailure = logFailure(this.#options.logger, 'could not record the pulls')
    this.#cancelUses ??= runLater(useDelayMs, () => this.#queueUses(), onFailure)
  }

  /** Calls the listener with all changes from now on. Returns the function that removes it. */
  onChange(listener: (host: string, name: string, operations: readonly Operation[]) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /** Copies the damaged lines, as each checkpoint does before it replaces them. Throws the system's error. */
  keepDamage(): Promise<void> {
    return (this.#keeping ??= this.#copyDamage().finally(() => (this.#keeping = undefined)))
  }

  async #copyDamage(): Promise<void> {
    if (!this.#hasUnkeptDamage) return
    const copiedTo = this.#options.setAside(this.damage[0]!.path)
    await writeDamage(copiedTo, this.damage)
    this.#hasUnkeptDamage = false
    this.#options.logger.info({ copiedTo }, 'copied the damaged lines of the metadata')
  }

  /** Writes a checkpoint in the background. */
  requestCheckpoint(): void {
    this.#needsCheckpoint = true
    void this.#startWrite()
  }

  /** Writes a checkpoint of the commits up to now, while later ones go on. Throws the system's error, or the signal's reason. */
  writeCheckpoint(signal?: AbortSignal): Promise<void> {
    return this.#log.writeCheckpoint(this.#sequence, this.#formatCheckpoint(this.#sequence, signal))
  }

  /** Writes all changes to the disk. */
  async flush(): Promise<void> {
    this.#queueUses()
    await this.#startWrite()
  }

  /** Writes all changes, and ends a running checkpoint. Later changes stay in memory. */
  async close(): Promise<void> {
    this.#closing.abort()
    await this.flush()
    await this.#checkpointing
    if (this.#options.isReadOnly) return
    // The queue has dropped commits, which are in memory alone.
    if (this.#needsCheckpoint) await this.#startCheckpoint()
    const { isNew, logger } = this.#options
    // With the content, somebody has deleted the whole store.
    const recreate = async () => ((await isNew()) ? undefined : this.#recreateLog())
    await recreate().catch(logFailure(logger, 'could not write the deleted metadata again'))
  }

  get #isCheckpointDue(): boolean {
    if (this.#closing.signal.aborted || this.#checkpointing) return false
    return this.#needsCheckpoint || this.#log.isLong
  }

  #apply(host: string, name: string, operations: readonly Operation[]): void {
    for (const operation of operations) this.#repositories.apply(host, name, operation)
    for (const listener of this.#listeners) listener(host, name, operations)
  }

  #queueUses(): void {
    this.#cancelUses?.()
    this.#cancelUses = undefined
    if (this.#uses.size > 0) this.#scheduleWrite(writeDelayMs)
    for (const { host, name, uses } of this.#uses.values())
      this.#enqueue({ host, name, operations: [...uses.values()], hidden: [], done: undefined })
    this.#uses.clear()
  }

  #enqueue(commit: Commit): void {
    this.#queue.push(commit)
    this.#queuedBytes += estimateBytes([commit])
    if (this.#queuedBytes <= maxQueuedBytes) return
    this.#queue = this.#queue.filter(({ done }) => done)
    this.#queuedBytes = 0
    this.#needsCheckpoint = true
  }

  #scheduleWrite(delay: number): void {
    if (this.#cancelWrite || this.#closing.signal.aborted || this.#options.isReadOnly) return
    const onFailure = logFailure(this.#options.logger, 'could not write the metadata')
    this.#cancelWrite = runLater(delay, () => this.#startWrite(), onFailure)
  }

  #startWrite(): Promise<void> {
    this.#cancelWrite?.()
    this.#cancelWrite = undefined
    if (!this.#isWriting && !this.#options.isReadOnly) this.#writing = this.#write()
    return this.#writing
  }

  /** Writes the queue in batches: commits that come during a sync share the next one. */
  async #write(): Promise<void> {
    this.#isWriting = true
    try {
      let goesOn = true
      while (this.#queue.some(({ done }) => done) || (goesOn && (this.#queue.length > 0 || this.#isCheckpointDue)))
        goesOn = await this.#writeBatch()
    } finally {
      this.#isWriting = false
    }
  }

  /** Writes the next commits of the queue; returns false when the disk refuses them. */
  async #writeBatch(): Promise<boolean> {
    if (this.#isCheckpointDue)
      this.#checkpointing = this.#startCheckpoint().finally(() => {
        this.#checkpointing = undefined
        if (this.#isCheckpointDue) void this.#startWrite()
      })
    const { batch, lines } = this.#formatBatch()
    if (batch.length === 0) return true
    try {
      await this.#recreateLog()
      const isDurable = batch.some(({ done }) => done)
      await this.#log.append(Buffer.from(lines.join('')), this.#sequence + 1, isDurable)
    } catch (error) {
      this.#settle(batch, false)
      for (const { done } of batch) done?.reject(error)
      if (getErrno(error) === undefined) throw error
      if (this.#queue.length === 0) return true
      this.#options.logger.error({ error: String(error) }, 'could not write the metadata; trying again')
      this.#scheduleWrite(retryDelayMs)
      return false
    }
    this.#sequence += batch.length
    this.#settle(batch, true)
    for (const { done } of batch) done?.resolve()
    return true
  }

  /** Formats the first commits of the queue, so few that it does not block for long. */
  #formatBatch(): { readonly batch: readonly Commit[]; readonly lines: readonly string[] } {
    const lines: string[] = []
    for (let bytes = 0; lines.length < this.#queue.length && bytes < maxBatchBytes; bytes += lines.at(-1)!.length) {
      const commit = this.#queue[lines.length]!
      lines.push(formatCommit(this.#sequence + lines.length + 1, commit, commit.operations))
    }
    return { batch: this.#queue.slice(0, lines.length), lines }
  }

  /** Writes the whole state again when somebody has deleted the log. */
  async #recreateLog(): Promise<void> {
    // Remember it until the state is written, because the log forgets the lost segment before.
    this.#isLost ||= await this.#log.isLost()
    if (!this.#isLost) return
    this.#options.logger.error({ path: this.#log.folder }, 'the metadata on the disk were deleted; writing them again')
    await this.#checkpointing
    await this.writeCheckpoint()
    this.#isLost = false
  }

  /** Writes a checkpoint in the background. Logs a disk that refuses it, and tries again later. */
  async #startCheckpoint(): Promise<void> {
    const { clock, logger } = this.#options
    const { signal } = this.#closing
    // A commit that the queue drops meanwhile needs another one.
    const isNeeded = this.#needsCheckpoint
    this.#needsCheckpoint = false
    this.#restored = []
    try {
      await this.writeCheckpoint(isNeeded ? undefined : signal)
    } catch (error) {
      if (signal.aborted && !isNeeded) return
      if (getErrno(error) === undefined) throw error
      logger.error({ error: String(error) }, 'could not write a checkpoint of the metadata; trying again')
      this.#needsCheckpoint = true
      await clock.sleep(retryDelayMs, signal).catch(() => {})
    } finally {
      this.#restored = undefined
    }
  }

  /**
   * Yields the lines of a checkpoint in pieces, between which the repositories may change: all values are absolute, and the changes are in the
   * next segment. Entries whose removal is not on the disk yet are included.
   */
  async *#formatCheckpoint(sequence: number, signal?: AbortSignal): AsyncGenerator<string[], void> {
    await this.keepDamage()
    const pause = createPauses(this.#options.clock)
    let lines: string[] = []
    let bytes = 0
    for (const repository of this.all())
      for (const operation of toOperations(repository)) {
        const line = formatCommit(sequence, repository, [operation])
        lines.push(line)
        bytes += line.length
        if (bytes < pieceBytes) continue
        yield lines
        lines = []
        bytes = 0
        await pause()
        signal?.throwIfAborted()
      }
    for (const { host, name, hidden } of [...(this.#restored ?? []), ...this.#queue])
      for (const entry of hidden) {
        // A restored entry may have changed since.
        const current = this.#repositories.findEntry(host, name, entry) ?? entry
        lines.push(formatCommit(sequence, { host, name }, [current]))
      }
    yield lines
  }

  /** Starts to drop the least recently used entries when all together, or those of one repository, take too much memory. */
  #limitWeight(changed?: Repository): void {
    const { maxWeight = Infinity, clock, logger } = this.#options
    const { signal } = this.#closing
    const heavy = findHeavy(this.#repositories, changed, maxWeight)
    if (!heavy || this.#isDropping || signal.aborted) return
    this.#isDropping = true
    const dropping = dropLeastUsed(heavy, (repository, removals) => void this.commit(repository, removals, 'soon'))
    const run = async () => {
      if (await runInSlices(dropping, clock, signal))
        logger.info({ maxWeight }, 'dropped the records of the least recently used content')
      this.#isDropping = false
      // More may have come meanwhile.
      this.#limitWeight()
    }
    void run()
  }

  /** Applies a batch if it was written, and removes it from the queue, except commits to try again. Hides again what the queue removes. */
  #settle(batch: readonly Commit[], isWritten: boolean): void {
    for (const { host, name, hidden } of this.#queue.toReversed()) this.#repositories.restore(host, name, hidden)
    if (isWritten) for (const { host, name, operations, done } of batch) if (done) this.#apply(host, name, operations)
    if (!isWritten) this.#restored?.push(...batch)
    const settled = new Set(isWritten ? batch : batch.filter(({ done }) => done))
    this.#queue = this.#queue.filter((commit) => !settled.has(commit))
    this.#queuedBytes = estimateBytes(this.#queue)
    for (const commit of this.#queue)
      if (commit.done) commit.hidden = this.#repositories.hide(commit.host, commit.name, commit.operations)
  }
}

/** Estimates the length of commits on the disk, bytes. */
function estimateBytes(commits: readonly Commit[]): number {
  let bytes = 0
  for (const { operations } of commits)
    for (const operation of operations)
      bytes += 300 + (operation.op === 'manifest' ? (operation.links?.bytes.length ?? 0) * 1.4 : 0)
  return bytes
}
