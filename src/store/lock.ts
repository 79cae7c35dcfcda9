import { randomBytes } from 'node:crypto'
import { link, readdir, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { basename, dirname } from 'node:path'
import { errnoOf, MirrorError } from '../lib/errors.ts'
import { readSmallFile } from '../lib/fs.ts'
import { parseObject } from '../lib/json.ts'
import { type Logger, silentLogger } from '../lib/logger.ts'
import { readBootId, readPidNamespace, readProcessStat } from '../lib/process.ts'
import { type Clock, every, logFailure } from '../lib/time.ts'
import type { StoreLayout } from './layout.ts'

/** The right to write to a store; one process has it at a time. */
export interface StoreLock {
  /** Gives it back; somebody else's lock is left alone. */
  release(): Promise<void>
}

interface StoreLockOptions {
  readonly clock: Clock
  /** What the container that we run in keeps when it is restarted; undefined outside of one. */
  readonly instance?: string | undefined
  /** The lock was taken from us, because we stood still for so long that we were held for dead: nothing may be written any more. */
  readonly onLost?: (() => void) | undefined
  readonly logger?: Logger
}

const retryMs = 20
const attempts = 150

/** A holder touches its lock so often. */
const heartbeatMs = 1000
/** One that cannot be looked at and has not touched it for so many looks, four seconds, is dead. */
const maxPolls = 40
const pollMs = 100

/** Takes the lock of a store. A stale one is replaced; a live holder is a `MirrorError`. */
export async function acquireStoreLock(layout: StoreLayout, options: StoreLockOptions): Promise<StoreLock> {
  const self = await describeSelf(randomBytes(16).toString('hex'), options.instance)
  const holder = await takeLock(layout.lock, self, options.clock)
  if (holder) throw createHeldError(layout, holder)
  await removeGuards(layout)
  const heartbeat = startHeartbeat(layout.lock, self, options)
  return {
    async release() {
      await heartbeat.stop()
      if ((await readHolder(layout.lock))?.nonce === self.nonce) await rm(layout.lock, { force: true })
    },
  }
}

/** Shows those who cannot look at our process that we live. */
function startHeartbeat(path: string, self: LockHolder, options: StoreLockOptions): { stop(): Promise<void> } {
  const { onLost = () => {}, logger = silentLogger } = options
  let work = Promise.resolve()
  const beat = async () => {
    const holder = await readHolder(path)
    // Somebody cleared it away; it is ours as long as nobody else takes it.
    if (holder === undefined) return void (await publishLock(path, self))
    if (holder.nonce !== self.nonce) {
      stop()
      onLost()
      return
    }
    const now = new Date()
    await utimes(path, now, now)
  }
  const onFailure = logFailure(logger, 'could not touch the lock of the store')
  const round = () => {
    work = beat().catch((error: unknown) => {
      // A disk that fails for a moment is not the end of the lock; what depends on it will say so.
      if (errnoOf(error) === undefined) onFailure(error)
    })
    return work
  }
  const stop = every(heartbeatMs, round, onFailure)
  return {
    async stop() {
      stop()
      await work
    },
  }
}

/**
 * Undefined once the file is ours, or its live holder. A stale file may be removed by one process only: the one that
 * holds the guard named after that very holder. So nobody can remove a lock that was taken a moment ago in the belief
 * that it is still the stale one. A guard is a lock like any other, and a stale guard is replaced in the same way.
 */
async function takeLock(path: string, self: LockHolder, clock: Clock): Promise<LockHolder | undefined> {
  let lastHolder: LockHolder | undefined
  for (let attempt = 0; attempt < attempts; attempt++) {
    if (attempt > 0) await clock.sleep(retryMs)
    if (await publishLock(path, self)) return undefined
    const holder = await readHolder(path)
    if (holder === undefined) continue
    lastHolder = holder
    // Without hard links a file that seems damaged may be one that is being written.
    if (holder === damagedHolder && attempt === 0) continue
    if (holder !== damagedHolder && ((await isHolderAlive(holder, self)) ?? (await isTouched(path, clock))))
      return holder
    const guard = `${path}.${holder.nonce}`
    if (await takeLock(guard, self, clock)) continue
    if ((await readHolder(path))?.nonce === holder.nonce) await rm(path, { force: true })
    await rm(guard, { force: true })
  }
  return lastHolder ?? self
}

/**
 * Whether somebody touches the file while we watch. No clock is trusted: other machines have others, and one of our own that
 * runs on while we stand still, paused perhaps together with the holder, says nothing about what we would have seen.
 */
async function isTouched(path: string, clock: Clock): Promise<boolean> {
  const first = await getTouchTime(path)
  for (let poll = 0; poll < maxPolls; poll++) {
    await clock.sleep(pollMs)
    const now = await getTouchTime(path)
    if (now !== first) return now !== undefined
  }
  return false
}

async function getTouchTime(path: string): Promise<bigint | undefined> {
  try {
    return (await stat(path, { bigint: true })).mtimeNs
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined
    throw error
  }
}

/** Makes the file appear with its content, or not at all. */
async function publishLock(path: string, self: LockHolder): Promise<boolean> {
  const candidate = `${path}.${self.nonce}.${randomBytes(4).toString('hex')}`
  const content = JSON.stringify(self)
  try {
    await writeFile(candidate, content, { flag: 'wx', mode: 0o600 })
    await link(candidate, path)
    return true
  } catch (error) {
    const code = errnoOf(error)
    // ENOENT: the holder of the lock has swept our candidate away.
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
    if (errnoOf(error) === 'EEXIST') return false
    throw error
  }
}

/** Who holds the file; undefined when there is none. A damaged file has nobody as its holder. */
async function readHolder(path: string): Promise<LockHolder | undefined> {
  try {
    return parseLockHolder(await readSmallFile(path)) ?? damagedHolder
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined
    if (errnoOf(error) === 'EFBIG') return damagedHolder
    throw error
  }
}

const damagedHolder: LockHolder = {
  pid: 0,
  bootId: undefined,
  pidNamespace: undefined,
  instance: undefined,
  processStart: undefined,
  nonce: 'damaged',
}

/** Guards and candidates of processes that died. Those of live ones are of no use to them while the lock is held. */
async function removeGuards(layout: StoreLayout): Promise<void> {
  const prefix = `${basename(layout.lock)}.`
  const folder = dirname(layout.lock)
  for (const name of await readdir(folder))
    if (name.startsWith(prefix)) await rm(layout.entry(folder, name), { force: true })
}

function createHeldError(layout: StoreLayout, holder: LockHolder): MirrorError {
  const who = holder.pid === process.pid ? `this process (${holder.pid})` : `process ${holder.pid}`
  if (holder.instance !== undefined)
    return new MirrorError(
      `The store at ${layout.root} is in use by a mirror in a container; only one can write to it.`,
      {
        hints: ['See what runs: mirror status', 'Stop it: mirror down'],
      },
    )
  return new MirrorError(`The store at ${layout.root} is in use by ${who}; only one process can write to it.`, {
    hints: [
      'See what runs: mirror status',
      'Stop it: mirror down',
      'Use another store: mirror up --data DIR, or MIRROR_HOME=DIR mirror up',
      `If process ${holder.pid} is no mirror, remove ${layout.lock}`,
    ],
  })
}

/** Who holds a lock: enough to tell a live process from a dead one whose number was given away again. */
interface LockHolder {
  readonly pid: number
  /** Of the running kernel; undefined where the system has none to tell. */
  readonly bootId: string | undefined
  /** Process numbers mean something in there only, in one container say; undefined where the system has none. */
  readonly pidNamespace: string | undefined
  /** What a container keeps when it is restarted, and shares with no other; undefined outside of one. */
  readonly instance: string | undefined
  /** Clock ticks from boot to the start of the process; undefined where the system does not tell. */
  readonly processStart: string | undefined
  /** 32 hex digits, new for every lock taken. */
  readonly nonce: string
}

/** This process as a holder. */
export async function describeSelf(nonce: string, instance?: string): Promise<LockHolder> {
  const [stat, bootId, pidNamespace] = await Promise.all([
    readProcessStat(process.pid),
    readBootId(),
    readPidNamespace(),
  ])
  return { pid: process.pid, bootId, pidNamespace, instance, processStart: stat?.started, nonce }
}

/** Parses a lock file; undefined when it is damaged. */
function parseLockHolder(text: string): LockHolder | undefined {
  const { pid, bootId, pidNamespace, instance, processStart, nonce } = parseObject(text) ?? {}
  if (!Number.isSafeInteger(pid) || (pid as number) <= 0) return undefined
  if (typeof nonce !== 'string' || !/^[0-9a-f]{32}$/.test(nonce)) return undefined
  return {
    pid: pid as number,
    bootId: stringOrNone(bootId),
    pidNamespace: stringOrNone(pidNamespace),
    instance: stringOrNone(instance),
    processStart: stringOrNone(processStart),
    nonce,
  }
}

/**
 * Whether the process that wrote this still runs; undefined for one that cannot be looked at from here: it is of another
 * container, of another machine that shares the folder, or of a boot that is over.
 */
async function isHolderAlive(holder: LockHolder, self: LockHolder): Promise<boolean | undefined> {
  if (areDifferent(holder.bootId, self.bootId) || areDifferent(holder.pidNamespace, self.pidNamespace))
    return holder.instance !== undefined && holder.instance === self.instance ? false : undefined
  try {
    process.kill(holder.pid, 0)
  } catch (error) {
    if (errnoOf(error) === 'ESRCH') return false
    if (errnoOf(error) !== 'EPERM') throw error
  }
  const stat = await readProcessStat(holder.pid)
  if (stat?.ended) return false
  return holder.processStart === undefined || stat?.started === undefined || holder.processStart === stat.started
}

function areDifferent(a: string | undefined, b: string | undefined): boolean {
  return a !== undefined && b !== undefined && a !== b
}

function stringOrNone(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined
}
