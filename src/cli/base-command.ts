import { homedir } from 'node:os'
import { basename, dirname, isAbsolute, join, relative, sep } from 'node:path'
import { Command } from '@oclif/core/command'
import { describeInvoker, explainRootOwnedFile, isPathPassedOnPurpose, refuseForeignPaths } from '../admin/sudo.ts'
import { type IgnoredPath, mustCheckOwners, mirrorPaths, toRootPaths } from '../config/paths.ts'
import { checkDescriptorLimit } from '../daemon/limits.ts'
import { DockerError } from '../docker/engine.ts'
import { getCode, getErrno, exitCode, type ExitCode, MirrorError } from '../lib/errors.ts'
import { interruptGroups, type CommandEnvironment } from '../lib/process.ts'
import { describeFileFailure, formatFileFailure } from '../lib/system-errors.ts'
import { isDebugging, renderError } from './render/log.ts'
import { getColumns, createColors, type Colors, fitText, wantsColor } from './terminal.ts'

/**
 * Limits the time within which a second signal is the echo of the first, ms: a terminal and a wrapper such as npx may both pass on
 * one Ctrl-C.
 */
const echoMs = 500

const interrupts = ['SIGINT', 'SIGTERM'] as const

/**
 * Implements the behaviour that every command shares: an error becomes a message and an exit code, Ctrl-C ends the command with
 * 130.
 */
export abstract class BaseCommand extends Command {
  readonly #interrupt = new AbortController()
  readonly #onInterrupt = () => {
    this.#interrupt.abort()
    // Let listeners of the signal run first: they kill a child, or close a file.
    setTimeout(() => process.exit(exitCode.interrupted), 100)
  }

  /** Aborts on Ctrl-C, just before the process ends. */
  protected get interrupted(): AbortSignal {
    return this.#interrupt.signal
  }

  protected override async init(): Promise<void> {
    await super.init()
    process.on('SIGINT', this.#onInterrupt)
    const ignored = describeDroppedPaths(process.env)
    if (ignored !== undefined) this.info(ignored)
  }

  /** Lets the command itself handle an interruption. */
  protected takeOverInterrupt(): void {
    process.off('SIGINT', this.#onInterrupt)
  }

  /**
   * Makes an interruption, SIGTERM too, only abort the signal: the command cleans up and ends by itself. A second interruption
   * that is no echo of the first ends the process at once. Returns a function that ends this.
   */
  protected cleanUpWhenInterrupted(): () => void {
    this.takeOverInterrupt()
    let since: number | undefined
    const onSignal = () => {
      const now = performance.now()
      if (since !== undefined && now - since > echoMs) process.exit(exitCode.interrupted)
      if (since === undefined) this.info('Interrupted; cleaning up.')
      since ??= now
      this.#interrupt.abort()
      interruptGroups()
    }
    for (const signal of interrupts) process.on(signal, onSignal)
    return () => {
      for (const signal of interrupts) process.off(signal, onSignal)
    }
  }

  /** Ends the process as soon as no program reads stdout: for a command that runs until it is stopped. */
  protected endWhenUnread(): void {
    endOnFailedWrite(process.stdout)
  }

  /** Writes a result, as it is, to stdout. */
  protected print(text: string): void {
    process.stdout.write(`${text}\n`)
  }

  /** Writes a result for a person to stdout, wrapped for a terminal; commands in it are named as the user calls them. */
  protected report(text: string): void {
    this.print(fitText(this.nameCommandsIn(text), getColumns(process.stdout)))
  }

  protected printJson(value: unknown): void {
    this.print(JSON.stringify(value, null, 2))
  }

  /** Writes a message for a person to stderr, wrapped for a terminal; commands in it are named as the user calls them. */
  protected info(text: string): void {
    process.stderr.write(`${fitText(this.nameCommandsIn(text), getColumns(process.stderr))}\n`)
  }

  protected nameCommandsIn(text: string): string {
    return nameCommands(text, getProgramName(process, this.config))
  }

  protected getColorsFor(stream: { isTTY?: boolean }): Colors {
    return createColors(wantsColor(stream, process.env))
  }

  /** Returns the path of this package's bin/run.js. */
  protected get program(): string {
    return join(this.config.root, 'bin', 'run.js')
  }

  /** Describes the machine as this command sees it. `variables`: those that flags stand for; they replace the environment's. */
  protected getSurroundings(variables: Readonly<Record<string, string | undefined>> = {}): CommandEnvironment {
    const given = Object.fromEntries(Object.entries(variables).filter(([, value]) => value !== undefined))
    const base = { platform: process.platform, homedir: homedir(), cwd: process.cwd() }
    return { ...base, env: { ...process.env, ...given }, callers: getCallerSurroundings() }
  }

  /**
   * Describes the machine for a command that means the mirror of this very user. Throws a MirrorError (usage) when this is root and
   * other users can change a named path, or root's own.
   */
  protected getOwnSurroundings(variables: Readonly<Record<string, string | undefined>> = {}): CommandEnvironment {
    const surroundings = this.getSurroundings(variables)
    refuseForeignPaths(surroundings)
    return surroundings
  }

  /** Warns of variables that were probably meant to be settings: an unknown one has no effect. */
  protected async warnOfMisspelledVariables(): Promise<void> {
    const { findMisspelledVariables } = await import('../config/load.ts')
    for (const { name, meant } of findMisspelledVariables(process.env))
      this.info(`${name} is not a setting of mirror. Did you mean ${meant}?`)
  }

  /**
   * Re-sends the credentials that a mirror in a container got more than ten minutes ago; they may expire. `mirror status` and
   * `mirror configure` call it when they have succeeded, and `mirror up` re-sends them itself. A failure is only a message.
   */
  protected async refreshCredentials(): Promise<void> {
    if (this.interrupted.aborted) return
    const surroundings = this.getSurroundings()
    const { readState } = await import('../admin/state.ts')
    const { container } = (await readState(mirrorPaths(surroundings).stateFile)) ?? {}
    // Load the code for the rest only when there are credentials; most mirrors have none.
    if (container === undefined || container.credentials.length === 0) return
    const { isCredentialRefreshDue, refreshCredentials } = await import('../daemon/container/credentials.ts')
    if (!(await isCredentialRefreshDue(surroundings, Date.now()))) return
    const { systemClock } = await import('../lib/time.ts')
    await refreshCredentials(surroundings, systemClock).catch((failure: unknown) => {
      if (!(failure instanceof MirrorError || failure instanceof DockerError)) throw failure
      this.info(`Could not re-send the container's credentials, so it keeps the earlier ones: ${failure.message}`)
    })
  }

  protected override async catch(error: Error & { oclif?: { exit?: number } }): Promise<void> {
    // Keep the exit code that the command has chosen.
    if (isExit(error)) throw error
    const failure = await this.toMirrorError(error)
    // Show an error about the interruption itself, because it describes the state that is left.
    const isAboutInterrupt = failure instanceof MirrorError && failure.exit === exitCode.interrupted
    if (this.interrupted.aborted && !isAboutInterrupt) this.exit(exitCode.interrupted)
    this.exit(writeFailure(failure, this.config))
  }

  /** Puts errors of the framework, of Docker and of files into this program's form. */
  private async toMirrorError(error: Error & { oclif?: { exit?: number } }): Promise<Error> {
    if (error instanceof DockerError)
      return new MirrorError(`The Docker engine refuses: ${error.message}.`, { hints: ['docker info'], cause: error })
    const rootOwnedFile = explainRootOwnedFile(error, this.getSurroundings())
    if (rootOwnedFile !== undefined) return rootOwnedFile
    const fileFailure = explainFileFailure(error, this.getSurroundings())
    if (fileFailure !== undefined) return fileFailure
    // Recognize the errors of a flag's own parser by their prefix: the framework gives them no exit code.
    if (error.oclif?.exit !== exitCode.usage && !error.message.startsWith('Parsing --')) return error
    const { toUsageError } = await import('./help.ts')
    return toUsageError(error, this.id ?? '', Object.keys(this.ctor.flags ?? {}))
  }
}

let droppedPaths: { readonly callers: CommandEnvironment; readonly ignored: readonly IgnoredPath[] } | undefined

/**
 * Removes from the environment of this process, as root, each path that other users can change; the programs that it starts do
 * not see them either. Called once, at the start.
 */
export function dropForeignPaths(program: Pick<NodeJS.Process, 'platform' | 'env' | 'cwd'>): void {
  if (!mustCheckOwners(program)) return
  const { platform, env } = program
  const callers = { platform, env: { ...env }, homedir: homedir(), cwd: getWorkingFolder(program) }
  const { env: own, ignored } = toRootPaths(callers)
  if (ignored.length > 0) droppedPaths = { callers, ignored }
  for (const name of Object.keys(env)) {
    if (own[name] === undefined) delete env[name]
    else env[name] = own[name]
  }
}

/** Returns the working folder; `/` for one that was removed, because no relative path leads anywhere from there. */
function getWorkingFolder({ cwd }: Pick<NodeJS.Process, 'cwd'>): string {
  try {
    return cwd()
  } catch (error) {
    if (getErrno(error) !== 'ENOENT') throw error
    return '/'
  }
}

/** Returns the surroundings before paths were removed; undefined where none was. */
function getCallerSurroundings(): CommandEnvironment | undefined {
  return droppedPaths?.callers
}

/** Describes the paths that root ignores, and how to use them; undefined where there are none. */
function describeDroppedPaths(env: NodeJS.ProcessEnv): string | undefined {
  if (droppedPaths === undefined) return undefined
  const isOnPurpose = isPathPassedOnPurpose(env)
  const ignored = droppedPaths.ignored.filter(({ name }) => name !== 'PATH' || !isOnPurpose)
  if (ignored.length === 0) return undefined
  const lines = ignored.map(({ name, value, why }) => {
    const instead = name === 'HOME' ? `; ${env['HOME']} takes its place` : ''
    return `  ${name}=${value}   (${why}${instead})`
  })
  return [
    'As root, mirror uses nothing that other users can change. Not used:',
    ...lines,
    `To use it, run the command ${describeInvoker(ignored)}. To keep root's files elsewhere, set MIRROR_HOME to a folder of root's.`,
  ].join('\n')
}

/** Reports whether an error is the framework's way to end with an exit code. */
export function isExit(error: unknown): error is Error & { oclif?: { exit?: number } } {
  return error instanceof Error && 'code' in error && error.code === 'EEXIT'
}

/** Writes to stderr why the program ends, and returns the exit code. */
export function writeFailure(error: unknown, program: { root: string; name: string }): ExitCode {
  const failure = explainDescriptors(error)
  const colors = createColors(wantsColor(process.stderr, process.env))
  const columns = getColumns(process.stderr)
  process.stderr.write(
    renderError(failure, colors, {
      debug: isDebugging(process.env),
      columns,
      nameCommands: (text) => nameCommands(text, getProgramName(process, program)),
    }),
  )
  return failure instanceof MirrorError ? failure.exit : exitCode.failed
}

/** Replaces EMFILE by the error about the limit on open files, where that is too low for the program itself. */
function explainDescriptors(error: unknown): unknown {
  const cause = error instanceof MirrorError ? error.cause : error
  if (getErrno(cause) !== 'EMFILE' && !isUnopenedPackage(cause)) return error
  try {
    checkDescriptorLimit()
    return error
  } catch (explained) {
    return explained
  }
}

/** Reports whether Node had no descriptor left for a package.json: Node 26 has another code for that. */
function isUnopenedPackage(error: unknown): boolean {
  return getCode(error) === 'ERR_INVALID_PACKAGE_CONFIG' && /too many open files/.test((error as Error).message)
}

/** Explains the failure of a file with next steps; undefined for any other failure. */
function explainFileFailure(error: unknown, surroundings: CommandEnvironment): MirrorError | undefined {
  const failure = describeFileFailure(error)
  const message = failure && formatFileFailure(error, failure)
  if (failure?.path === undefined || message === undefined) return undefined
  const hints = [...failure.next, ...listOtherPathHints(failure.path, failure.owner, surroundings)]
  return new MirrorError(message, { hints, cause: error })
}

/** Lists hints to use another path, where this one is the mirror's own. */
function listOtherPathHints(path: string, owner: string | undefined, surroundings: CommandEnvironment): string[] {
  const { configFile, dataDir, stateDir } = mirrorPaths(surroundings)
  if (path === configFile && surroundings.env['MIRROR_CONFIG']) return ['--config FILE   (another file)']
  const isData = isBelow(path, dataDir)
  if (!isData && !isBelow(path, stateDir) && path !== configFile) return []
  const home = surroundings.env['MIRROR_HOME']
  if (isData && surroundings.env['MIRROR_DATA']) return ['mirror up --data DIR   (another folder)']
  if (!home) return ['export MIRROR_HOME=DIR   (another folder for all files of the mirror)']
  return [
    ...(owner === undefined ? [] : ['unset MIRROR_HOME   (your own mirror, at the usual place)']),
    'export MIRROR_HOME=DIR   (a folder of yours)',
  ]
}

function isBelow(path: string, folder: string): boolean {
  const relativePath = relative(folder, path)
  return (
    relativePath === '' || (relativePath !== '..' && !relativePath.startsWith(`..${sep}`) && !isAbsolute(relativePath))
  )
}

/** Holds the words by which the user calls this program. */
interface ProgramName {
  /** Is `mirror`, or `npx mirror` where the shell may not know `mirror`. */
  readonly name: string
  /** Holds the prefix that runs it as root. sudo looks for programs only in the folders of the system. */
  readonly sudo: string
}

interface RunningProcess {
  readonly env: Readonly<Record<string, string | undefined>>
  /** Holds the path of Node, and of the program as the shell found it. */
  readonly argv: readonly string[]
}

/** Returns the words by which the user calls this program. `root`, `name`: the folder and the name of the package. */
export function getProgramName(
  { env, argv }: RunningProcess,
  { root, name }: { root: string; name: string },
): ProgramName {
  return { name: chooseProgramName(env, root, name), sudo: chooseSudoPrefix(env, argv[1] ?? '') }
}

function chooseProgramName(env: RunningProcess['env'], root: string, name: string): string {
  if (!isByNpx(env)) return 'mirror'
  const project = env['npm_config_local_prefix']
  // Use the program's own name in a clone, and in a project that depends on this package: npx finds it there.
  if (project !== undefined && (root === project || root === join(project, 'node_modules', name))) return 'npx mirror'
  // Name the package anywhere else, where npx has fetched it; `npx mirror` would fetch another one.
  return root.includes(`${sep}_npx${sep}`) ? `npx ${name}` : 'mirror'
}

function isByNpx(env: RunningProcess['env']): boolean {
  return env['npm_command'] === 'exec' && env['npm_lifecycle_event'] === 'npx'
}

// Copies `secure_path` of sudo, as distributions set it.
const systemFolders = ['sbin', 'bin'].flatMap((folder) => [`/usr/local/${folder}`, `/usr/${folder}`, `/${folder}`])

function chooseSudoPrefix(env: RunningProcess['env'], program: string): string {
  // Recognize a program of this user only, by nvm or with npm's prefix in the home folder. A path to run.js needs no search.
  const isOwn = basename(program) === 'mirror' && !systemFolders.includes(dirname(program))
  return isOwn || isByNpx(env) ? 'sudo env "PATH=$PATH"' : 'sudo'
}

const commandNames =
  'up|down|status|logs|dashboard|trace|configure|cache|registry|credentials|doctor|completion|init|demo|serve|help|--help'
const commandInText = new RegExp(`(?<![\\w/.-]|\\b[Tt]he |\\b[Aa] )(sudo )?mirror (?=(?:${commandNames})\\b)`, 'g')

/** Replaces the commands in a text by the way in which the user calls them. */
export function nameCommands(text: string, { name, sudo }: ProgramName): string {
  if (name === 'mirror' && sudo === 'sudo') return text
  return text.replaceAll(commandInText, (_, elevated: string | undefined) =>
    elevated === undefined ? `${name} ` : `${sudo} ${name} `,
  )
}

/**
 * Handles output that cannot be written. A reader that has left, such as `head`, is no failure: the command continues and ends as
 * it would have. Another error of stdout, such as a full disk, is reported once and makes the exit code 1. Stderr carries only
 * messages, which may be lost.
 */
export function watchOutput({ stdout, stderr }: { stdout: NodeJS.WriteStream; stderr: NodeJS.WriteStream }): void {
  let hasFailed = false
  // Remove the framework's own listener, which ends the program with a stack.
  stdout.removeAllListeners('error')
  stdout.on('error', (error) => {
    if (isClosedPipe(error) || hasFailed) return
    hasFailed = true
    stderr.write(`mirror: cannot write to stdout: ${error.message.replace(/, write$/, '')}\n`)
  })
  stderr.on('error', () => {})
  process.on('exit', (code) => {
    if (hasFailed && code === exitCode.done) process.exitCode = exitCode.failed
  })
}

/** Ends the program on the first failed write. */
function endOnFailedWrite(stdout: NodeJS.WriteStream): void {
  stdout.on('error', (error) => process.exit(isClosedPipe(error) ? exitCode.done : exitCode.failed))
}

function isClosedPipe(error: Error): boolean {
  return 'code' in error && error.code === 'EPIPE'
}
