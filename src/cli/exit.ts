import { basename, dirname, join, sep } from 'node:path'
import { checkDescriptorLimit } from '../daemon/limits.ts'
import { errnoOf, exitCode, type ExitCode, MirrorError } from '../lib/errors.ts'
import { isDebugging, renderError } from './render/log.ts'
import { columnsOf, createColors, wantsColor } from './terminal.ts'

/** Whether it is the framework's way of ending with an exit code. */
export function isExit(error: unknown): error is Error & { oclif?: { exit?: number } } {
  return error instanceof Error && 'code' in error && error.code === 'EEXIT'
}

/** Writes to stderr why the program ends, and returns the exit code. */
export function writeFailure(error: unknown, program: { root: string; name: string }): ExitCode {
  const failure = explainDescriptors(error)
  const paint = createColors(wantsColor(process.stderr, process.env))
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

/** How the user calls this program. */
interface ProgramName {
  /** `mirror`; or by npx, and then his shell may know no `mirror`. */
  readonly name: string
  /** What makes it root's command: sudo, which looks for programs in the folders of the system only. */
  readonly sudo: string
}

interface RunningProcess {
  readonly env: Readonly<Record<string, string | undefined>>
  /** Of Node, and of the program as the shell found it. */
  readonly argv: readonly string[]
}

/** `root`, `name`: of the package. */
export function calledAs({ env, argv }: RunningProcess, { root, name }: { root: string; name: string }): ProgramName {
  return { name: nameOf(env, root, name), sudo: sudoFor(env, argv[1] ?? '') }
}

function nameOf(env: RunningProcess['env'], root: string, name: string): string {
  if (!isByNpx(env)) return 'mirror'
  const project = env['npm_config_local_prefix']
  // A clone, or a project that depends on this package: there npx finds the program by its own name.
  if (project !== undefined && (root === project || root === join(project, 'node_modules', name))) return 'npx mirror'
  // Elsewhere it has fetched the package, and by the program's name would fetch another one.
  return root.includes(`${sep}_npx${sep}`) ? `npx ${name}` : 'mirror'
}

function isByNpx(env: RunningProcess['env']): boolean {
  return env['npm_command'] === 'exec' && env['npm_lifecycle_event'] === 'npx'
}

// `secure_path` of sudo, as distributions set it.
const systemFolders = ['sbin', 'bin'].flatMap((folder) => [`/usr/local/${folder}`, `/usr/${folder}`, `/${folder}`])

function sudoFor(env: RunningProcess['env'], program: string): string {
  // Installed for this user (by nvm, or with a prefix in his home); a path to run.js names itself.
  const isOwn = basename(program) === 'mirror' && !systemFolders.includes(dirname(program))
  return isOwn || isByNpx(env) ? 'sudo env "PATH=$PATH"' : 'sudo'
}

const commands = 'up|down|status|logs|configure|cache|registry|credentials|init|demo|serve|help|--help'
const command = new RegExp(`(?<![\\w/.-]|\\b[Tt]he |\\b[Aa] )(sudo )?mirror (?=(?:${commands})\\b)`, 'g')

/** Text with its commands as the user calls them. */
export function nameCommands(text: string, { name, sudo }: ProgramName): string {
  if (name === 'mirror' && sudo === 'sudo') return text
  return text.replaceAll(command, (_, elevated: string | undefined) =>
    elevated === undefined ? `${name} ` : `${sudo} ${name} `,
  )
}

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
