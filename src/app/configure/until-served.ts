import { mirrorPaths, type Surroundings } from '../../config/paths.ts'
import type { Clock } from '../../lib/time.ts'
import { findRunning } from '../../admin/state.ts'

const patienceMs = 5000
const lookMs = 100

/** Waits until the running mirror answers on a network that exists; not for ever, for its port may be taken there. */
export async function untilServed(surroundings: Surroundings, network: string, clock: Clock): Promise<void> {
  const { stateFile } = mirrorPaths(surroundings)
  const end = clock.monotonic() + patienceMs
  while (clock.monotonic() < end) {
    if ((await findRunning(stateFile))?.endpoints.networks[network] !== undefined) return
    await clock.sleep(lookMs)
  }
}
