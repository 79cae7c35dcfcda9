import { mirrorPaths, type Surroundings } from '../../config/paths.ts'
import { readState } from '../../admin/state.ts'

/** Asking helpers and the engine costs a second, so commands do it only so often. */
const refreshAfterMs = 10 * 60_000

/** Whether a container's mirror has credentials of ours that are due to be handed over anew. `now`: wall clock, ms. */
export async function isRefreshDue(surroundings: Surroundings, now: number): Promise<boolean> {
  const { container } = (await readState(mirrorPaths(surroundings).stateFile)) ?? {}
  if (container === undefined || container.credentials.length === 0) return false
  const age = now - Date.parse(container.handedOverAt)
  // A clock that was set back makes no credential younger.
  return !(age >= 0 && age < refreshAfterMs)
}
