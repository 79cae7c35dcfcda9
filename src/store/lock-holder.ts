import { errnoOf } from '../lib/errors.ts'
import { parseObject } from '../lib/json-object.ts'
import { readBootId, readProcessStat } from '../lib/process-stat.ts'

/** Who holds a lock: enough to tell a live process from a dead one whose number was given away again. */
export interface LockHolder {
  readonly pid: number
  /** Of the running kernel; undefined where the system has none to tell. */
  readonly bootId: string | undefined
  /** Clock ticks from boot to the start of the process; undefined where the system does not tell. */
  readonly processStart: string | undefined
  /** 32 hex digits, new for every lock taken. */
  readonly nonce: string
}

/** This process as a holder. */
export async function describeSelf(nonce: string): Promise<LockHolder> {
  const stat = await readProcessStat(process.pid)
  return { pid: process.pid, bootId: await readBootId(), processStart: stat?.started, nonce }
}

/** Parses a lock file; undefined when it is damaged. */
export function parseLockHolder(text: string): LockHolder | undefined {
  const { pid, bootId, processStart, nonce } = parseObject(text) ?? {}
  if (!Number.isSafeInteger(pid) || (pid as number) <= 0) return undefined
  if (typeof nonce !== 'string' || !/^[0-9a-f]{32}$/.test(nonce)) return undefined
  return { pid: pid as number, bootId: stringOrNone(bootId), processStart: stringOrNone(processStart), nonce }
}

/** Whether the process that wrote this still runs. */
export async function isHolderAlive(holder: LockHolder): Promise<boolean> {
  const bootId = await readBootId()
  if (holder.bootId !== undefined && bootId !== undefined && holder.bootId !== bootId) return false
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

function stringOrNone(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined
}
