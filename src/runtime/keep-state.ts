import { MirrorError } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { createWriteBehind } from '../lib/time.ts'
import type { MirrorState } from './runtime.ts'
import { findRunning, isStateWritten, removeState, writeState } from '../admin/state.ts'

export interface KeepStateOptions {
  stateFile: string
  /** What is true now. */
  state: () => MirrorState
  logger: Logger
  /** How often the file is compared with the state, ms. */
  everyMs?: number
}

export interface KeptState {
  /** Resolves when the file was written for the first time; rejects when it cannot be. */
  readonly written: Promise<void>
  /** The state has changed. */
  update(): void
  /** The mirror ends: its file goes, a successor's stays. */
  remove(): Promise<void>
}

/**
 * Writes the state file of this process and keeps it true: a change reaches it whenever it comes, and a file that got lost,
 * damaged or changed meanwhile is written again.
 */
export function keepState({ stateFile, state, logger, everyMs = 5000 }: KeepStateOptions): KeptState {
  const written = writeState(stateFile, state())
  // Whoever awaits `written` hears of its failure.
  const first = written.catch(() => {})
  const behind = createWriteBehind({
    async write() {
      await first
      const now = state()
      if (await isStateWritten(stateFile, now)) return
      if (!(await isAnothers(stateFile, now))) await writeState(stateFile, now)
    },
    logger,
    failure: 'could not write the state file',
    everyMs,
  })
  // The state may have changed during the first write.
  behind.update()
  return {
    written,
    update: () => behind.update(),
    async remove() {
      await behind.stop()
      await removeState(stateFile, state().pid)
    },
  }
}

/** Whether the file is the one of another mirror that runs. */
async function isAnothers(stateFile: string, { pid }: MirrorState): Promise<boolean> {
  try {
    const running = await findRunning(stateFile)
    return running !== undefined && running.pid !== pid
  } catch (error) {
    // On a machine that cannot be asked.
    if (error instanceof MirrorError) return true
    throw error
  }
}
