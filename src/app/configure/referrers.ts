import { containerdVersionIn, isAtLeast } from '../../clients/version.ts'
import type { Machine } from '../../clients/types.ts'

/** The first versions that know the capability `referrers` in a hosts.toml; others pass over the whole file. */
const firstVersions = { containerd: [2, 2], nerdctl: [2, 2] } as const

/**
 * Whether the other programs that read the same hosts.toml files know the capability `referrers`, as far as they are on this
 * machine. With `--root` nobody is asked: the version that was named decides.
 */
export async function readersKnowReferrers(
  { runCommand, detached }: Machine,
  programs: readonly (keyof typeof firstVersions)[],
): Promise<boolean> {
  if (detached) return true
  for (const program of programs) {
    const result = await runCommand(program, ['--version'], { timeoutMs: 5000 })
    if (result === undefined) continue
    if (!isAtLeast(containerdVersionIn(result.stdout), ...firstVersions[program])) return false
  }
  return true
}
