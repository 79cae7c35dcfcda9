import { readFile, readlink } from 'node:fs/promises'
import { errnoOf } from './errors.ts'

/** What Linux tells of a process, beyond that its number is taken. */
export interface ProcessStat {
  /** It has ended and only waits to be reaped. */
  readonly ended: boolean
  /** Clock ticks from boot to its start. */
  readonly started: string | undefined
}

/** Undefined where there is no /proc, or no such process. Fields 3 and 22 of proc_pid_stat(5). */
export async function readProcessStat(pid: number): Promise<ProcessStat | undefined> {
  const stat = await orAbsent(readFile(`/proc/${pid}/stat`, 'utf8'))
  if (stat === undefined) return undefined
  // The name in parentheses may hold anything, spaces and parentheses included.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return { ended: fields[0] === 'Z' || fields[0] === 'X', started: fields[19] }
}

/** Tells this boot of the kernel from any other; undefined where the system has none to tell. */
export async function readBootId(): Promise<string | undefined> {
  return (await orAbsent(readFile('/proc/sys/kernel/random/boot_id', 'utf8')))?.trim()
}

/** Tells where this process's number means it; undefined where there are no such namespaces. pid_namespaces(7) */
export async function readPidNamespace(): Promise<string | undefined> {
  return orAbsent(readlink('/proc/self/ns/pid'))
}

async function orAbsent(read: Promise<string>): Promise<string | undefined> {
  try {
    return await read
  } catch (error) {
    // ESRCH: the process ended between open and read.
    if (['ENOENT', 'ENOTDIR', 'ESRCH', 'EACCES', 'EPERM'].includes(errnoOf(error) ?? '')) return undefined
    throw error
  }
}
