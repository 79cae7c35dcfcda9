import { MirrorError, exitCode } from '../lib/errors.ts'
import { DockerError } from '../docker/engine.ts'

/** What has become of the mirror that ran before, when its successor could not be started. */
export interface Aftermath {
  /** Why it could not be put back; undefined when it was. */
  readonly refusal: Error | undefined
  /** Of the attempt. */
  readonly signal: AbortSignal
}

/** The failure of a replacement, with its aftermath. A bug stays what it is. */
export function withAftermath(error: unknown, { refusal, signal }: Aftermath): unknown {
  const aftermath =
    refusal === undefined
      ? 'The mirror that ran before runs again, as it was.'
      : `The mirror that ran before could not be put back: ${refusal.message}`
  const hints = refusal === undefined ? [] : ['mirror up   (again)']
  if (signal.aborted && error === signal.reason)
    return new MirrorError(`Interrupted. ${aftermath}`, { exit: exitCode.interrupted, hints, cause: error })
  const failure = error instanceof DockerError ? new MirrorError(`The Docker engine refuses: ${error.message}.`) : error
  if (!(failure instanceof MirrorError)) return error
  const exit = signal.aborted ? exitCode.interrupted : failure.exit
  return new MirrorError(`${failure.message} ${aftermath}`, { exit, hints: [...failure.hints, ...hints], cause: error })
}
