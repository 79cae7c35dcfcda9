import { describeFailure, errnoOf, exitCode } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'

export interface SurviveOptions {
  readonly logger: Logger
  /** Ends the process; what was logged is written at its end. */
  readonly exit?: (code: number) => void
}

/**
 * What the server does with failures that nothing has caught (docs/decisions/0015). A rejection that nobody handles is the end
 * of one task: it is logged with its stack and counted, and the server goes on. So is a system error that is thrown out of a
 * callback: a missing descriptor says nothing against the program's state. Any other exception may have left half-changed state
 * behind: it is logged, and the process ends with exit code 1. Returns how to stop.
 */
export function surviveFailures(
  source: Pick<NodeJS.Process, 'on' | 'off'>,
  { logger, exit = (code) => process.exit(code) }: SurviveOptions,
): () => void {
  let count = 0
  const onRejection = (reason: unknown) => {
    count += 1
    logger.error({ error: stackOf(reason), count }, 'a task failed and nothing handled it; the mirror goes on')
  }
  const onException = (error: unknown) => {
    count += 1
    const fields = { error: stackOf(error), count }
    if (errnoOf(error) !== undefined) return logger.error(fields, 'the system failed a call; the mirror goes on')
    logger.error(fields, 'an exception was not caught; the mirror ends, because its state may be damaged')
    exit(exitCode.failed)
  }
  source.on('unhandledRejection', onRejection)
  source.on('uncaughtException', onException)
  return () => {
    source.off('unhandledRejection', onRejection)
    source.off('uncaughtException', onException)
  }
}

function stackOf(error: unknown): string {
  return (error instanceof Error && error.stack) || describeFailure(error)
}
