import type { Config } from '../config/config.ts'
import { loadConfig } from '../config/load.ts'
import { mirrorPaths, type MirrorPaths, type Surroundings } from '../config/paths.ts'
import { refuseResting } from './container/resting.ts'
import { findMirrorHere, type MirrorHere } from './find-mirror-here.ts'
import { refuseOthersPlaces } from '../admin/sudo.ts'

/** By the running mirror, which alone may write to its stores; by the stores themselves when none runs. */
export async function runningOrStored<T>(
  surroundings: Surroundings,
  ways: {
    readonly running: (here: MirrorHere) => Promise<T>
    readonly stored: (config: Config, paths: MirrorPaths) => Promise<T>
  },
): Promise<T> {
  const here = await findMirrorHere(surroundings)
  if (here !== undefined) return ways.running(here)
  const paths = mirrorPaths(surroundings)
  refuseOthersPlaces(surroundings)
  await refuseResting(paths.stateDir)
  return ways.stored(await loadConfig({ ...surroundings, paths }), paths)
}
