import { readdir, readFile } from 'node:fs/promises'
import { basename } from 'node:path'
import { ifVisible } from '../../lib/fs.ts'
import type { Machine } from '../types.ts'

interface RunningService {
  readonly pid: number
  readonly socket: string
}

/** Finds each `podman system service` of this user by proc(5). A service reads registries.conf only once. */
export async function findRunningServices(env: Machine['env']): Promise<RunningService[]> {
  const isRoot = process.geteuid?.() === 0
  const defaultSocket = isRoot
    ? '/run/podman/podman.sock'
    : `${env['XDG_RUNTIME_DIR'] ?? `/run/user/${process.geteuid?.()}`}/podman/podman.sock`
  const found: RunningService[] = []
  for (const entry of (await ifVisible(readdir('/proc'))) ?? []) {
    if (!/^\d+$/.test(entry)) continue
    const args = ((await ifVisible(readFile(`/proc/${entry}/cmdline`, 'utf8'))) ?? '').split('\0').slice(0, -1)
    const at = args.indexOf('service')
    if (basename(args[0] ?? '') !== 'podman' || at < 1 || args[at - 1] !== 'system') continue
    const named = args.slice(at + 1).find((arg) => /^(unix:\/\/)?\//.test(arg))
    found.push({ pid: Number(entry), socket: named?.replace(/^unix:\/\//, '') ?? defaultSocket })
  }
  return found
}

/** Returns the command that makes a podman service read its files again. */
export function getRestartCommand(pid: number): string {
  const isRoot = process.geteuid?.() === 0
  return isRoot
    ? `systemctl restart podman   (or end pid ${pid} and start it again)`
    : `systemctl --user restart podman   (or end pid ${pid} and start it again)`
}
