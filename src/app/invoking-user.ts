import { statSync } from 'node:fs'
import type { Surroundings } from '../config/paths.ts'
import { runCommand, type RunCommand } from '../lib/process.ts'

/** The user who has become root. */
export interface InvokingUser {
  readonly uid: number
  readonly name: string
  /** The home folder. */
  readonly home: string
}

const timeoutMs = 5000

/**
 * Who has become root to start this process: by sudo, doas or pkexec, which say so; by `su -m`, which keeps the home folder.
 * Undefined when we are not root, or root itself has started it.
 */
export async function findInvokingUser(
  { env, platform, callers }: Pick<Surroundings, 'env' | 'platform' | 'callers'>,
  run: RunCommand = runCommand,
): Promise<InvokingUser | undefined> {
  if (process.geteuid?.() !== 0) return undefined
  const who = env['SUDO_UID'] ?? env['DOAS_USER'] ?? env['PKEXEC_UID'] ?? ownerOf(callers?.homedir)
  if (who === undefined || !/^[\w][\w.-]*\$?$/.test(who)) return undefined
  // macOS has no getent, and its id knows the same line.
  const said =
    platform === 'darwin'
      ? await run('id', ['-P', who], { timeoutMs })
      : await run('getent', ['passwd', who], { timeoutMs })
  const fields = said?.exitCode === 0 ? said.stdout.trim().split(':') : []
  const [name, , uid] = fields
  const home = fields.at(-2)
  if (!name || !home?.startsWith('/') || !/^\d+$/.test(uid ?? '') || uid === '0') return undefined
  return { name, uid: Number(uid), home }
}

function ownerOf(home: string | undefined): string | undefined {
  const owner = home === undefined ? undefined : statSync(home, { throwIfNoEntry: false })?.uid
  return owner === 0 ? undefined : owner?.toString()
}
