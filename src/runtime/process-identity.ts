import { errnoOf } from '../lib/errors.ts'
import { readBootId, readProcessStat } from '../lib/process-stat.ts'

/**
 * What tells a process from any other that has or had its number: the boot and the tick it was started in. Undefined where
 * the platform has no /proc, or the process is gone or only waits to be reaped.
 */
export async function processIdentity(pid: number): Promise<string | undefined> {
  const [stat, boot] = await Promise.all([readProcessStat(pid), readBootId()])
  return stat?.started === undefined || stat.ended ? undefined : `${boot ?? 'boot'}:${stat.started}`
}

/** The boot in which a process was identified so; undefined where the platform has none to tell. */
export function bootOf(identity: string | undefined): string | undefined {
  const boot = identity?.slice(0, identity.lastIndexOf(':'))
  return boot === 'boot' || boot === '' ? undefined : boot
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
