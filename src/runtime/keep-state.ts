import { describeFailure } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import type { MirrorState } from './runtime.ts'
import { findRunning, removeState, writeState } from './state-file.ts'

export interface KeepStateOptions {
  stateFile: string
  /** What is true now. */
  state: () => MirrorState
  logger: Logger
  /** How often the file is looked at, ms. */
  everyMs?: number
}

export interface KeptState {
  /** The state has changed. */
  update(): void
  /** The mirror ends: its file goes, a successor's stays. */
  remove(): Promise<void>
}

/** Writes the state file of this process and keeps it true: a file that got lost or damaged meanwhile is written anew. */
export async function keepState({ stateFile, state, logger, everyMs = 5000 }: KeepStateOptions): Promise<KeptState> {
  await writeState(stateFile, state())
  let work = Promise.resolve()
  const inTurn = (step: () => Promise<void>) => {
    work = work
      .then(step)
      .catch((error: unknown) => logger.warn({ error: describeFailure(error) }, 'the state file cannot be written'))
  }
  const look = setInterval(
    () =>
      inTurn(async () => {
        if ((await findRunning(stateFile)) === undefined) await writeState(stateFile, state())
      }),
    everyMs,
  ).unref()
  return {
    update: () => inTurn(() => writeState(stateFile, state())),
    async remove() {
      clearInterval(look)
      await work
      await removeState(stateFile, state().pid)
    },
  }
}
