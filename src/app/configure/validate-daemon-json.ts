import { rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { FileChange } from '../../clients/client-config.ts'
import { MirrorError, exitCode } from '../../lib/errors.ts'
import type { RunCommand } from '../../lib/process.ts'
import { temporaryFolder } from '../../lib/fs.ts'

/**
 * Has dockerd itself read what its daemon.json would become. Throws MirrorError (usage) with what it says; quiet where there is no
 * dockerd, or one before 23.0, which cannot do it.
 */
export async function validateDaemonJson(
  { path, after }: Pick<FileChange, 'path' | 'after'>,
  program: string,
  runCommand: RunCommand,
): Promise<void> {
  if (after === undefined) return
  const folder = await temporaryFolder('mirror-validate-')
  try {
    const file = join(folder, 'daemon.json')
    await writeFile(file, after, { mode: 0o600 })
    const result = await runCommand(program, ['--validate', '--config-file', file], { timeoutMs: 10_000 })
    // Whatever else keeps it from looking says nothing about the file.
    if (result === undefined || result.exitCode === 0 || !result.stderr.includes(file)) return
    throw new MirrorError(
      `dockerd would not take ${path}, so it is left alone: ${lastLine(result.stderr, file, path)}`,
      {
        exit: exitCode.usage,
        hints: [`Fix ${path} and run this again`],
      },
    )
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

function lastLine(said: string, file: string, path: string): string {
  return said.trim().split('\n').at(-1)!.replaceAll(file, path)
}
