import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { killIfAlive } from './network-namespace.ts'

/** Returns the prefix of a run's network namespaces and temporary folders, made of its process id. */
export function runPrefix(pid: number): string {
  return `mirror-e2e-${pid}-`
}

/**
 * Ends and removes the leftovers of interrupted runs: those of this process, and those of processes that have ended. Works
 * synchronously, because it also runs at the exit of an interrupted process.
 */
export function removeLeftovers(): void {
  const isLeft = (name: string) => {
    const pid = /^mirror-e2e-(\d+)-/.exec(name)?.[1]
    return pid !== undefined && (Number(pid) === process.pid || !existsSync(`/proc/${pid}`))
  }
  const ip = (...args: string[]) => execFileSync('ip', ['netns', ...args], { encoding: 'utf8' }).split('\n')
  const namespaces = ip('list').map((line) => line.split(' ')[0]!)
  for (const name of namespaces.filter(isLeft)) {
    for (const pid of ip('pids', name).filter(Boolean)) killIfAlive(Number(pid))
    ip('delete', name)
  }
  for (const name of readdirSync(tmpdir()).filter(isLeft)) {
    rmSync(join(tmpdir(), name), { recursive: true, force: true, maxRetries: 10 })
  }
}
