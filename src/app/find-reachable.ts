import { findRunning, type MirrorState } from '../admin/state.ts'
import { MirrorError } from '../lib/errors.ts'

/** The running mirror, for what shall take its place; one on another machine that cannot be asked is none. */
export async function findReachable(stateFile: string): Promise<MirrorState | undefined> {
  try {
    return await findRunning(stateFile)
  } catch (error) {
    if (error instanceof MirrorError) return undefined
    throw error
  }
}
