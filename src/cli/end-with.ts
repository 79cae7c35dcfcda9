import { checkDescriptorLimit } from '../daemon/limits.ts'
import { errnoOf, MirrorError, exitCode, type ExitCode } from '../lib/errors.ts'
import { calledAs, nameCommands } from './exit.ts'
import { columnsOf } from './terminal.ts'
import { createPaint, wantsColor } from './paint.ts'
import { isDebugging, renderError } from './render-error.ts'

/** Whether it is the framework's way of ending with an exit code. */
export function isExit(error: unknown): error is Error & { oclif?: { exit?: number } } {
  return error instanceof Error && 'code' in error && error.code === 'EEXIT'
}

/** Writes to stderr why the program ends, and returns the exit code. */
export function writeFailure(error: unknown, program: { root: string; name: string }): ExitCode {
  const failure = explainDescriptors(error)
  const paint = createPaint(wantsColor(process.stderr, process.env))
  const named = (text: string) => nameCommands(text, calledAs(process, program))
  const columns = columnsOf(process.stderr)
  process.stderr.write(renderError(failure, paint, { debug: isDebugging(process.env), columns, named }))
  return failure instanceof MirrorError ? failure.exit : exitCode.failed
}

/** A limit on open files that is too low for the program itself is said in those words. */
function explainDescriptors(error: unknown): unknown {
  const cause = error instanceof MirrorError ? error.cause : error
  if (errnoOf(cause) !== 'EMFILE') return error
  try {
    checkDescriptorLimit()
    return error
  } catch (explained) {
    return explained
  }
}
