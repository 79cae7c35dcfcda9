import { MirrorError } from '../../lib/errors.ts'

/** Why an engine is looked for at all that cannot be asked. */
export function whereItRan(error: unknown): unknown {
  if (!(error instanceof MirrorError)) return error
  const { message, exit, hints } = error
  return new MirrorError(`The mirror ran in a container the last time. ${message}`, { exit, hints, cause: error })
}
