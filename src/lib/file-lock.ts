import { randomBytes } from 'node:crypto'
import { link, readdir, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { getErrno } from './errors.ts'
import { readSmallFile } from './fs.ts'
import { parseObject } from './json.ts'
import { type Logger, silentLogger } from './logger.ts'
import { getBoot, readBootId, readPidNamespace, readProcessStat } from './process.ts'
import { type Clock, runEvery, logFailure } from './time.ts'

/** Describes a lock file that this process holds. */
export interface FileLock {
  /** Removes the file, unless another process has taken the lock meanwhile. */
  release(): Promise<void>
}

export interface FileLockOptions {
  readonly clock: Clock
  /** Identifies the container of this process, also after a restart; undefined outside of containers. */
  readonly instance?: string | undefined
  /** Is called when another process took the lock, because this one stood still for so long that it looked dead. */
  readonly onLost?: (() => void) | undefined
  /** Is true for a lock that only processes of this machine take: a holder of an earlier boot is dead, and is not polled. */
  readonly isLocal?: boolean
  /** Ends the attempt to take the lock. */
  readonly signal?: AbortSignal | undefined
  readonly logger?: Logger
}

/** Identifies the process that holds a lock: enough to tell it from a later one with the same number. */
export interface LockHolder {
  readonly pid: number
  /** Identifies the boot of the running kernel; undefined where the system does not tell. */
  readonly bootId: string | undefined
  /** Identifies the namespace that `pid` belongs to, a container's for example; undefined where the system has none. */
  readonly pidNamespace: string | undefined
  /** Identifies the container that it runs in; see `FileLockOptions`. */
  readonly instance: string | undefined
  /** Holds clock ticks from boot to the start of the process; undefined where the system does not tell. */
  readonly processStart: string | undefined
  /** 32 hex digits, new for every lock taken. */
  readonly nonce: string
}

const retryMs = 20
const maxAttempts = 150

/** Sets the interval at which a holder touches its lock. */
const beatMs = 1000
/** Limits the polls without a touch of the lock, after which a holder in another namespace is dead: four seconds. */
const maxPolls = 40
const pollMs = 100

/** Takes the lock at `path`, or returns the live process that holds it. A stale lock is replaced. */
export async function acquireFileLock(
  path: string,
  options: FileLockOptions,
): Promise<{ readonly lock: FileLock } | { readonly holder: LockHolder }> {
  const self = await describeSelf(randomBytes(16).toString('hex'), options.instance)
  const holder = await take(path, self, options)
  if (holder) return { holder }
  await removeGuards(path)
  const heartbeat = startHeartbeat(path, self, options)
  const lock = {
    async release() {
      await heartbeat.stop()
      if ((await readHolder(path))?.nonce === self.nonce) await rm(path, { force: true })
    },
  }
  return { lock }
}

/** Touches the lock, so that processes in other namespaces see that its holder is alive. */
function startHeartbeat(path: string, self: LockHolder, options: FileLockOptions): { stop(): Promise<void> } {
  const { onLost = () => {}, logger = silentLogger } = options
  let work = Promise.resolve()
  const beat = async () => {
    const holder = await readHolder(path)
    // A file that was deleted is written again, unless another process takes the lock first.
    if (holder === undefined) return void (await publish(path, self))
    if (holder.nonce !== self.nonce) {
      stop()
      onLost()
      return
    }
    const now = new Date()
    await utimes(path, now, now)
  }
  const onFailure = logFailure(logger, 'could not touch the lock file')
  const round = () => {
    work = beat().catch((error: unknown) => {
      // The lock survives a disk that fails for a moment.
      if (getErrno(error) === undefined) onFailure(error)
    })
    return work
  }
  const stop = runEvery(beatMs, round, onFailure)
  return {
    async stop() {
      stop()
      await work
    },
  }
}

/**
 * Returns undefined once this process has the file, or its live holder. Only the process that holds the guard named after the stale
 * holder may remove a stale file. Therefore no process removes a lock that was taken a moment ago in the belief that it is still the
 * stale one. A guard is a lock file itself, and a stale guard is replaced in the same way.
 */
async function take(
  path: string,
  self: LockHolder,
  options: Pick<FileLockOptions, 'clock' | 'signal'>,
): Promise<LockHolder | undefined> {
  const { clock, signal } = options
  let lastHolder: LockHolder | undefined
  for (let attempt = 0; attempt < maxAttempts; attempt++) {
    if (attempt > 0) await clock.sleep(retryMs, signal)
    if (await publish(path, self)) return undefined
    const holder = await readHolder(path)
    if (holder === undefined) continue
    lastHolder = holder
    // Without hard links a file that seems damaged may be half written.
    if (holder === unknownHolder && attempt === 0) continue
    if (holder !== unknownHolder && ((await isHolderAlive(holder, self, options)) ?? (await isTouched(path, options))))
      return holder
    const guard = `${path}.${holder.nonce}`
    if (await take(guard, self, options)) continue
    if ((await readHolder(path))?.nonce === holder.nonce) await rm(path, { force: true })
    await rm(guard, { force: true })
  }
  return lastHolder ?? self
}

/**
 * Polls for four seconds whether the holder touches the file. Counts polls and compares no clocks: clocks of other machines differ,
 * and the own one runs on while this process is paused, perhaps together with the holder.
 */
async function isTouched(path: string, { clock, signal }: Pick<FileLockOptions, 'clock' | 'signal'>): Promise<boolean> {
  const first = await readTouchTime(path)
  for (let poll = 0; poll < maxPolls; poll++) {
    await clock.sleep(pollMs, signal)
    const now = await readTouchTime(path)
    if (now !== first) return now !== undefined
  }
  return false
}

async function readTouchTime(path: string): Promise<bigint | undefined> {
  try {
    return (await stat(path, { bigint: true })).mtimeNs
  } catch (error) {
    if (getErrno(error) === 'ENOENT') return undefined
    throw error
  }
}

/** Makes the file appear with its content, or not at all. Returns false when it exists. */
async function publish(path: string, self: LockHolder): Promise<boolean> {
  const candidate = `${path}.${self.nonce}.${randomBytes(4).toString('hex')}`
  const content = JSON.stringify(self)
  try {
    await writeFile(candidate, content, { flag: 'wx', mode: 0o600 })
    await link(candidate, path)
    return true
  } catch (error) {
    const code = getErrno(error)
    // ENOENT: the holder of the lock has removed the candidate.
    if (code === 'EEXIST' || code === 'ENOENT') return false
    if (code === 'EPERM' || code === 'ENOTSUP' || code === 'ENOSYS') return publishWithoutLinks(path, content)
    throw error
  } finally {
    await rm(candidate, { force: true })
  }
}

async function publishWithoutLinks(path: string, content: string): Promise<boolean> {
  try {
    await writeFile(path, content, { flag: 'wx', mode: 0o600 })
    return true
  } catch (error) {
    if (getErrno(error) === 'EEXIST') return false
    throw error
  }
}

/** Removes guards and candidates of dead processes. Live processes do not need theirs while the lock is held. */
async function removeGuards(path: string): Promise<void> {
  const folder = dirname(path)
  for (const name of await readdir(folder))
    if (name.startsWith(`${basename(path)}.`)) await rm(join(folder, name), { force: true })
}

/** Returns the holder of the file: undefined when there is no file, `unknownHolder` when it is damaged. */
async function readHolder(path: string): Promise<LockHolder | undefined> {
  try {
    return parseHolder(await readSmallFile(path)) ?? unknownHolder
  } catch (error) {
    if (getErrno(error) === 'ENOENT') return undefined
    if (getErrno(error) === 'EFBIG') return unknownHolder
    throw error
  }
}

const unknownHolder: LockHolder = {
  pid: 0,
  bootId: undefined,
  pidNamespace: undefined,
  instance: undefined,
  processStart: undefined,
  nonce: 'damaged',
}

/** Describes this process as a holder. */
export async function describeSelf(nonce: string, instance?: string): Promise<LockHolder> {
  const [processStat, bootId, pidNamespace] = await Promise.all([
    readProcessStat(process.pid),
    readBootId(),
    readPidNamespace(),
  ])
  return { pid: process.pid, bootId, pidNamespace, instance, processStart: processStat?.started, nonce }
}

/** Parses a lock file; undefined when it is damaged. */
function parseHolder(text: string): LockHolder | undefined {
  const { pid, bootId, pidNamespace, instance, processStart, nonce, identity } = parseObject(text) ?? {}
  if (!Number.isSafeInteger(pid) || (pid as number) <= 0) return undefined
  if (typeof nonce !== 'string' || !/^[0-9a-f-]{32,36}$/.test(nonce)) return undefined
  // Earlier versions wrote the lock of commands with a UUID and with the boot and the start of the process in one text.
  const former = stringOrUndefined(identity)
  return {
    pid: pid as number,
    bootId: stringOrUndefined(bootId) ?? getBoot(former),
    pidNamespace: stringOrUndefined(pidNamespace),
    instance: stringOrUndefined(instance),
    processStart: stringOrUndefined(processStart) ?? former?.slice(former.lastIndexOf(':') + 1),
    nonce,
  }
}

/**
 * Returns whether the holder still runs; undefined for a process that is not visible from here: it belongs to another container, to
 * another machine that shares the folder, or to an earlier boot.
 */
async function isHolderAlive(
  holder: LockHolder,
  self: LockHolder,
  { isLocal }: FileLockOptions,
): Promise<boolean | undefined> {
  if (isLocal && differ(holder.bootId, self.bootId)) return false
  if (differ(holder.bootId, self.bootId) || differ(holder.pidNamespace, self.pidNamespace))
    return holder.instance !== undefined && holder.instance === self.instance ? false : undefined
  try {
    process.kill(holder.pid, 0)
  } catch (error) {
    if (getErrno(error) === 'ESRCH') return false
    if (getErrno(error) !== 'EPERM') throw error
  }
  const stat = await readProcessStat(holder.pid)
  if (stat?.ended) return false
  return holder.processStart === undefined || stat?.started === undefined || holder.processStart === stat.started
}

function differ(a: string | undefined, b: string | undefined): boolean {
  return a !== undefined && b !== undefined && a !== b
}

function stringOrUndefined(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined
}
