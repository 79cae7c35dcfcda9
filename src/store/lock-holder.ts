import { readFile } from 'node:fs/promises'
import { errnoOf } from '../lib/errors.ts'

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
  const { started } = await processState(process.pid)
  return { pid: process.pid, bootId: await currentBootId(), processStart: started, nonce }
}

/** Parses a lock file; undefined when it is damaged. */
export function parseLockHolder(text: string): LockHolder | undefined {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
  if (typeof value !== 'object' || value === null) return undefined
  const { pid, bootId, processStart, nonce } = value as Record<string, unknown>
  if (!Number.isSafeInteger(pid) || (pid as number) <= 0) return undefined
  if (typeof nonce !== 'string' || !/^[0-9a-f]{32}$/.test(nonce)) return undefined
  return { pid: pid as number, bootId: stringOrNone(bootId), processStart: stringOrNone(processStart), nonce }
}

/** Whether the process that wrote this still runs. */
export async function isHolderAlive(holder: LockHolder): Promise<boolean> {
  const bootId = await currentBootId()
  if (holder.bootId !== undefined && bootId !== undefined && holder.bootId !== bootId) return false
  try {
    process.kill(holder.pid, 0)
  } catch (error) {
    if (errnoOf(error) === 'ESRCH') return false
    if (errnoOf(error) !== 'EPERM') throw error
  }
  const { ended, started } = await processState(holder.pid)
  if (ended) return false
  return holder.processStart === undefined || started === undefined || holder.processStart === started
}

function stringOrNone(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined
}

async function currentBootId(): Promise<string | undefined> {
  return (await readProc('/proc/sys/kernel/random/boot_id'))?.trim()
}

/** State and start time of a process: fields 3 and 22 of proc_pid_stat(5). */
async function processState(pid: number): Promise<{ ended: boolean; started: string | undefined }> {
  const stat = await readProc(`/proc/${pid}/stat`)
  if (stat === undefined) return { ended: false, started: undefined }
  // The name in parentheses may hold anything, spaces and parentheses included.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return { ended: fields[0] === 'Z' || fields[0] === 'X', started: fields[19] }
}

async function readProc(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    if (['ENOENT', 'ESRCH', 'EACCES', 'EPERM'].includes(errnoOf(error) ?? '')) return undefined
    throw error
  }
}
