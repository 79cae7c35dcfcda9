import { errnoOf } from '../lib/errors.ts'
import { parseObject } from '../lib/json.ts'
import { readBootId, readPidNamespace, readProcessStat } from '../lib/process.ts'

/** Who holds a lock: enough to tell a live process from a dead one whose number was given away again. */
export interface LockHolder {
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
export function parseLockHolder(text: string): LockHolder | undefined {
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
export async function isHolderAlive(holder: LockHolder, self: LockHolder): Promise<boolean | undefined> {
  if (differ(holder.bootId, self.bootId) || differ(holder.pidNamespace, self.pidNamespace))
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

function differ(theirs: string | undefined, ours: string | undefined): boolean {
  return theirs !== undefined && ours !== undefined && theirs !== ours
}

function stringOrNone(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined
}
