import { openConfiguredClients, type ConfiguredClients, type RecordFolders } from '../../clients/configured.ts'
import { mirrorPaths, systemStateDir, type Surroundings } from '../../config/paths.ts'
import { MirrorError } from '../../lib/errors.ts'
import { isOnlyRoots } from '../../lib/ownership.ts'
import type { Machine } from '../../clients/types.ts'

/**
 * Where this user finds what was configured. Root uses nothing that another user can change: a record says which file to write
 * and with what. `MIRROR_HOME` is the root of everything, the records of the whole machine included, where it is root's.
 * Throws MirrorError for a system folder that is not root's.
 */
export async function findRecordFolders(surroundings: Surroundings): Promise<RecordFolders> {
  const { stateDir } = mirrorPaths(surroundings)
  const system = systemStateDir(surroundings.platform)
  const isRoot = process.geteuid?.() === 0
  if (!isRoot || system === undefined) return { own: stateDir, system, isRoot: false }
  const own = isOnlyRoots(stateDir) ? stateDir : undefined
  if (own !== undefined && surroundings.env['MIRROR_HOME']) return { own, system: undefined, isRoot }
  if (isOnlyRoots(system)) return { own, system, isRoot }
  throw new MirrorError(`${system} can be changed by others than root, so what is recorded there is not used.`, {
    hints: [`ls -ld ${system}   (it has to be root's, with mode 755)`, `chown -R root: ${system}; chmod 755 ${system}`],
  })
}

/** What was configured on this machine. */
export function recordsOn({ records, stateDir }: Pick<Machine, 'records' | 'stateDir'>): ConfiguredClients {
  return openConfiguredClients(records ?? stateDir)
}
