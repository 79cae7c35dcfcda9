import { readFile } from 'node:fs/promises'
import { errnoOf } from '../lib/errors.ts'

/**
 * What tells a process from any other that has or had its number: the boot and the tick it was started in. Undefined where
 * the platform has no /proc, or the process is gone or only waits to be reaped.
 */
export async function processIdentity(pid: number): Promise<string | undefined> {
  const [stat, boot] = await Promise.all([
    readOrNothing(`/proc/${pid}/stat`),
    readOrNothing('/proc/sys/kernel/random/boot_id'),
  ])
  // proc(5): the command's name, in parentheses, may hold anything; the state is field 3, the start time field 22.
  const fields = stat?.slice(stat.lastIndexOf(')') + 2).split(' ')
  if (fields?.[19] === undefined || fields[0] === 'Z' || fields[0] === 'X') return undefined
  return `${boot?.trim() ?? 'boot'}:${fields[19]}`
}

/** Whether the process that was identified so is still there. */
export async function isSameProcess(pid: number, identity: string | undefined): Promise<boolean> {
  if (!Number.isSafeInteger(pid) || pid <= 0) return false
  if (identity !== undefined) return (await processIdentity(pid)) === identity
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return errnoOf(error) === 'EPERM'
  }
}

async function readOrNothing(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    // ESRCH: the process ended between open and read.
    if (['ENOENT', 'ESRCH', 'EACCES', 'ENOTDIR'].includes(errnoOf(error) ?? '')) return undefined
    throw error
  }
}
