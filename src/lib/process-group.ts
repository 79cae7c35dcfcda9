import { setTimeout as sleep } from 'node:timers/promises'
import { errnoOf } from './errors.ts'

/** How long a program has to put things in order after it was asked to end. */
const graceMs = 2000
const lookEveryMs = 50

/**
 * The option for `spawn` that gives a program a process group of its own, so that it can be ended together with what it has
 * started. On Windows, which has no such groups, a detached program would open a window, and `taskkill` finds the children.
 */
export const ownGroup = { detached: process.platform !== 'win32', windowsHide: true } as const

/** Sends a signal to a program that was started with `ownGroup`, and to all that it has started. False when none is left. */
export function signalGroup(pid: number, signal: NodeJS.Signals | 0): boolean {
  if (process.platform === 'win32') {
    // Not every program runs others.
    const { spawn } = process.getBuiltinModule('node:child_process')
    // Without a forced end a program that has no window takes no notice.
    if (signal !== 0) spawn('taskkill', ['/pid', String(pid), '/T', '/F'], { stdio: 'ignore' }).on('error', () => {})
    return false
  }
  try {
    return process.kill(-pid, signal)
  } catch (error) {
    // EPERM: macOS, for a group of which only a zombie is left.
    if (errnoOf(error) === 'ESRCH' || errnoOf(error) === 'EPERM') return false
    throw error
  }
}

/** Asks a program and all that it has started to end, and kills what has not ended after two seconds. */
export async function endGroup(pid: number): Promise<void> {
  if (!signalGroup(pid, 'SIGTERM')) return
  for (let waitedMs = 0; waitedMs < graceMs; waitedMs += lookEveryMs) {
    await sleep(lookEveryMs)
    if (!signalGroup(pid, 0)) return
  }
  signalGroup(pid, 'SIGKILL')
}

const running = new Set<number>()

/** Notes that this process waits for a group; the result forgets it. */
export function trackGroup(pid: number): () => void {
  running.add(pid)
  return () => void running.delete(pid)
}

/** Passes an interruption on, which the terminal sends to the group of this process only. */
export function interruptGroups(): void {
  for (const pid of running) signalGroup(pid, 'SIGINT')
}
