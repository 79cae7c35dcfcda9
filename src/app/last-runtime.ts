import { isResting, readState, type RuntimeKind } from '../admin/state.ts'
import type { MirrorPaths } from '../config/paths.ts'

/**
 * Where the mirror ran the last time, whether or not it does now; undefined for one that never ran. One that has ended is
 * remembered as long as what it cached is where only a mirror of its kind finds it.
 */
export async function lastRuntime({ stateFile, stateDir }: MirrorPaths): Promise<RuntimeKind | undefined> {
  const state = await readState(stateFile)
  return state?.runtime ?? ((await isResting(stateDir)) ? 'container' : undefined)
}
