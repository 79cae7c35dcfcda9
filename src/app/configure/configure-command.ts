import { isSystemWide, type ConfiguredClient } from '../../clients/configured.ts'
import { shellWord } from '../../lib/process.ts'
import { rootCommand } from '../../admin/sudo.ts'
import type { Machine } from '../../clients/types.ts'

type ConfiguredPlace = Pick<ConfiguredClient, 'client' | 'root' | 'details'> & { readonly lockedByRoot?: boolean }

/** The arguments that configure, or with `--undo` take back, this place and no other of the same client. */
export function configureArguments({ client, root, details }: ConfiguredPlace, ...more: string[]): string[] {
  const said = { root, scope: details['scope'], cluster: details['cluster'], file: details['file'] }
  const flags = Object.entries(said).flatMap(([name, value]) => (value === undefined ? [] : [`--${name}`, value]))
  return ['configure', client, ...flags, ...more]
}

/** The same to be typed: through sudo for what only root can change, and under sudo by the user who has called it. */
export async function configureCommand(machine: Machine, place: ConfiguredPlace, ...more: string[]): Promise<string> {
  const args = configureArguments(place, ...more)
  const isRoots = place.lockedByRoot === true || (isSystemWide(place) && process.geteuid?.() === 0)
  return isRoots ? rootCommand(machine, args) : ['mirror', ...args.map(shellWord)].join(' ')
}
