import type { CommandResult } from '../../lib/process.ts'

export const pullTimeoutMs = 120_000

/**
 * Pulls an image by the crictl of a node, as its kubelet would, and removes it again. See ClientPlace.pull; `missing`: what to
 * say when there is no way to the node.
 */
export async function pullByCrictl(
  crictl: (args: readonly string[]) => Promise<CommandResult | undefined>,
  image: string,
  missing: string,
): Promise<{ readonly failed: string | undefined }> {
  const result = await crictl(['pull', image])
  if (result === undefined) return { failed: missing }
  await crictl(['rmi', image])
  if (result.exitCode === 0) return { failed: undefined }
  return { failed: `${result.stdout}${result.stderr}`.trim() || 'the pull did not end' }
}
