import type { FilePort } from '../../clients/file-port.ts'
import { shellFiles } from '../../clients/shell-files.ts'
import type { RunCommand } from '../../lib/process.ts'

const machineTimeoutMs = 30_000

/** The names of podman's virtual machines that run, its default first; none without podman. */
export async function runningPodmanMachines(runCommand: RunCommand): Promise<string[]> {
  const result = await runCommand('podman', ['machine', 'list', '--format', 'json'], { timeoutMs: machineTimeoutMs })
  if (result?.exitCode !== 0) return []
  const machines = JSON.parse(result.stdout || '[]') as { Name?: string; Default?: boolean; Running?: boolean }[]
  return machines
    .filter(({ Name, Running }) => Name !== undefined && Running === true)
    .toSorted((one, other) => Number(other.Default ?? false) - Number(one.Default ?? false))
    .map(({ Name }) => Name!.replace(/\*$/, ''))
}

/** The files of such a machine; its root may write them all. */
export function filesOfPodmanMachine(runCommand: RunCommand, name: string): FilePort {
  return shellFiles(`the podman machine ${name}`, (script) =>
    // The script goes in by stdin: ssh would have its arguments read by a shell once more.
    runCommand('podman', ['machine', 'ssh', name, 'sudo', 'sh', '-s'], { input: script, timeoutMs: machineTimeoutMs }),
  )
}
