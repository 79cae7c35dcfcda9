import type { Machine } from '../../clients/types.ts'

/** What a program says when it is asked for its version: the first line; undefined when it is not here, or does not say. */
export async function versionOf(
  { runCommand }: Pick<Machine, 'runCommand'>,
  program: string,
  ...args: string[]
): Promise<string | undefined> {
  const result = await runCommand(program, args, { timeoutMs: 5000 })
  return result?.exitCode === 0 ? result.stdout.trim().split('\n')[0] : undefined
}
