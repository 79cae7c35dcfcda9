import { MirrorError, exitCode, type ExitCode } from '../lib/errors.ts'

/** What came of several things, one after the other. */
export interface InTurn<R> {
  readonly done: readonly R[]
  /** The exit code that each failure would have ended the program with. */
  readonly failed: readonly ExitCode[]
}

/**
 * Does the same to each, and goes on when one fails: `tell` hears of each failure. The failure of a single thing is thrown, and
 * so is at once what is a bug, or the user's wish to stop.
 */
export async function eachInTurn<T, R>(
  things: readonly T[],
  act: (thing: T) => Promise<R>,
  tell: (thing: T, error: Error) => void,
): Promise<InTurn<R>> {
  const done: R[] = []
  const failed: ExitCode[] = []
  for (const thing of things) {
    try {
      done.push(await act(thing))
    } catch (error) {
      if (things.length === 1 || !(error instanceof Error) || !isFailure(error)) throw error
      failed.push(error instanceof MirrorError ? error.exit : exitCode.failed)
      tell(thing, error)
    }
  }
  return { done, failed }
}

/** What this machine or its user says no to. */
function isFailure(error: Error): boolean {
  return error instanceof MirrorError ? error.exit !== exitCode.interrupted : 'syscall' in error
}
