import { exitCode } from '../lib/errors.ts'

/**
 * Decides what becomes of output that nobody takes. A reader that has seen enough, `head` say, is no failure: the command goes on
 * with its work and ends as it would have. What cannot be written, on a full disk say, is said once and makes the exit code 1. On
 * stderr there is only talk, which may be lost.
 */
export function watchOutput({ stdout, stderr }: { stdout: NodeJS.WriteStream; stderr: NodeJS.WriteStream }): void {
  let lost = false
  // The framework has a listener of its own, which ends the program with a stack.
  stdout.removeAllListeners('error')
  stdout.on('error', (error) => {
    if (isClosedPipe(error) || lost) return
    lost = true
    stderr.write(`mirror: cannot write to stdout: ${error.message.replace(/, write$/, '')}\n`)
  })
  stderr.on('error', () => {})
  process.on('exit', (code) => {
    if (lost && code === exitCode.done) process.exitCode = exitCode.failed
  })
}

/** Ends the program as soon as nobody takes its output: for commands that go on until then. */
export function endWithOutput(stdout: NodeJS.WriteStream): void {
  stdout.on('error', (error) => process.exit(isClosedPipe(error) ? exitCode.done : exitCode.failed))
}

function isClosedPipe(error: Error): boolean {
  return 'code' in error && error.code === 'EPIPE'
}
