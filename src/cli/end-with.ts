import { MirrorError, exitCode, type ExitCode } from '../lib/errors.ts'
import { calledAs, nameCommands } from './called-as.ts'
import { createPaint, wantsColor } from './paint.ts'
import { isDebugging, renderError } from './render-error.ts'

/** Whether it is the framework's way of ending with an exit code. */
export function isExit(error: unknown): error is Error & { oclif?: { exit?: number } } {
  return error instanceof Error && 'code' in error && error.code === 'EEXIT'
}

/** Writes to stderr why the program ends, and returns the exit code. */
export function writeFailure(failure: unknown, program: { root: string; name: string }): ExitCode {
  const paint = createPaint(wantsColor(process.stderr, process.env))
  const text = renderError(failure, paint, { debug: isDebugging(process.env) })
  process.stderr.write(nameCommands(text, calledAs(process, program)))
  return failure instanceof MirrorError ? failure.exit : exitCode.failed
}
