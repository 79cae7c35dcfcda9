import { isSystemWide, type ConfiguredClient } from '../../clients/configured.ts'
import { shellWord } from '../../lib/shell-word.ts'
import { rootCommand } from '../root-command.ts'
import type { Machine } from './client-adapter.ts'

type Undoable = Pick<ConfiguredClient, 'client' | 'root' | 'details'>

/** The arguments that take back this place, and no other of the same client. */
export function undoArguments({ client, root, details }: Undoable): string[] {
  const said = { root, scope: details['scope'], cluster: details['cluster'], file: details['file'] }
  const flags = Object.entries(said).flatMap(([name, value]) => (value === undefined ? [] : [`--${name}`, value]))
  return ['configure', client, ...flags, '--undo']
}

/** The same to be typed; under sudo by the user who has called it. */
export async function undoCommandLine(
  machine: Machine,
  record: Undoable,
  more: readonly string[] = [],
): Promise<string> {
  const args = [...undoArguments(record), ...more]
  if (isSystemWide(record) && process.geteuid?.() === 0) return rootCommand(machine, args)
  return ['mirror', ...args.map(shellWord)].join(' ')
}
