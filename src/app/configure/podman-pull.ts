import { rm } from 'node:fs/promises'
import { MirrorError, exitCode } from '../../lib/errors.ts'
import type { CommandResult, RunCommand } from '../../lib/process.ts'
import { temporaryFolder } from '../../lib/fs.ts'

const pullTimeoutMs = 120_000

/**
 * Pulls an image by whichever of podman, buildah and skopeo is there, and removes it again; `machine`: by podman in that virtual
 * machine. Resolves to what it said when it failed. Throws a MirrorError (missing) when none is there.
 */
export async function pullByPodman(
  runCommand: RunCommand,
  image: string,
  machine: string | undefined,
): Promise<{ readonly failed: string | undefined }> {
  const run = (file: string, ...args: string[]) => runCommand(file, args, { timeoutMs: pullTimeoutMs })
  const connection = machine === undefined ? [] : ['--connection', machine]
  const byPodman = await run('podman', ...connection, 'pull', '--quiet', image)
  if (byPodman) {
    if (byPodman.exitCode === 0) await run('podman', ...connection, 'image', 'rm', image)
    return { failed: complaint(byPodman) }
  }
  const byBuildah = await run('buildah', 'pull', '--quiet', image)
  if (byBuildah) {
    if (byBuildah.exitCode === 0) await run('buildah', 'rmi', image)
    return { failed: complaint(byBuildah) }
  }
  const folder = await temporaryFolder('mirror-check-')
  try {
    const bySkopeo = await run('skopeo', 'copy', '--quiet', `docker://${image}`, `dir:${folder}`)
    if (bySkopeo) return { failed: complaint(bySkopeo) }
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
  throw new MirrorError('Neither podman nor buildah nor skopeo is installed, so nothing can be pulled by them.', {
    exit: exitCode.missing,
  })
}

function complaint({ exitCode, stderr, stdout }: CommandResult): string | undefined {
  if (exitCode === 0) return undefined
  return stderr.trim() || stdout.trim() || (exitCode === undefined ? 'it took too long' : `exit code ${exitCode}`)
}
