import { homedir } from 'node:os'
import { join } from 'node:path'
import { Command } from '@oclif/core/command'
import { describeInvoker, explainRootsFile, refuseOthersPlaces } from '../admin/sudo.ts'
import { type LeftOut, looksAtOwners, toRootPaths } from '../config/paths.ts'
import { isCredentialRefreshDue } from '../daemon/container/credentials.ts'
import { explainFileFailure } from '../daemon/start-errors.ts'
import { DockerError } from '../docker/engine.ts'
import { errnoOf, exitCode, MirrorError } from '../lib/errors.ts'
import { interruptGroups, type Surroundings } from '../lib/process.ts'
import { calledAs, endWithOutput, isExit, nameCommands, writeFailure } from './exit.ts'
import { createColors, type Colors, wantsColor } from './terminal.ts'

/** A terminal and a wrapper such as npx may both tell of one Ctrl-C. */
const echoMs = 500

const interrupts = ['SIGINT', 'SIGTERM'] as const

/** What every command shares: errors become a message and an exit code, Ctrl-C ends with 130. */
export abstract class BaseCommand extends Command {
  readonly #interrupt = new AbortController()
  readonly #onInterrupt = () => {
    this.#interrupt.abort()
    // What waits for the signal comes first: a child to kill, a file to close.
    setTimeout(() => process.exit(exitCode.interrupted), 100)
  }

  /** Aborts on Ctrl-C, just before the process ends. */
  protected get interrupted(): AbortSignal {
    return this.#interrupt.signal
  }

  protected override async init(): Promise<void> {
    await super.init()
    process.on('SIGINT', this.#onInterrupt)
    const leftOut = describeLeftOut(process.env)
    if (leftOut !== undefined) this.say(leftOut)
  }

  /** From here on the command itself decides how it ends when interrupted. */
  protected takeOverInterrupt(): void {
    process.off('SIGINT', this.#onInterrupt)
  }

  /**
   * From here on an interruption, SIGTERM too, only aborts the signal, and the command ends when it has put things in order. A
   * second one, not just the echo of the first, ends it at once. Returns how to end this.
   */
  protected tidyUpWhenInterrupted(): () => void {
    this.takeOverInterrupt()
    let since: number | undefined
    const onSignal = () => {
      const now = performance.now()
      if (since !== undefined && now - since > echoMs) process.exit(exitCode.interrupted)
      if (since === undefined) this.say('Interrupted; putting things in order.')
      since ??= now
      this.#interrupt.abort()
      interruptGroups()
    }
    for (const signal of interrupts) process.on(signal, onSignal)
    return () => {
      for (const signal of interrupts) process.off(signal, onSignal)
    }
  }

  /** From here on the command ends when nobody reads what it prints: it would never end by itself. */
  protected endWhenUnread(): void {
    endWithOutput(process.stdout)
  }

  /** Data: the result that was asked for. */
  protected print(text: string): void {
    process.stdout.write(`${text}\n`)
  }

  /** The result in words, whose commands are written as the user calls them. */
  protected report(text: string): void {
    this.print(this.named(text))
  }

  protected printJson(value: unknown): void {
    this.print(JSON.stringify(value, null, 2))
  }

  /** Talk: what a person may want to know besides. */
  protected say(text: string): void {
    process.stderr.write(`${this.named(text)}\n`)
  }

  private named(text: string): string {
    return nameCommands(text, calledAs(process, this.config))
  }

  protected paintFor(stream: { isTTY?: boolean }): Colors {
    return createColors(wantsColor(stream, process.env))
  }

  /** bin/run.js of this very package. */
  protected get program(): string {
    return join(this.config.root, 'bin', 'run.js')
  }

  /** The machine as this command sees it; flags that stand for variables take their place. */
  protected surroundings(variables: Readonly<Record<string, string | undefined>> = {}): Surroundings {
    const given = Object.fromEntries(Object.entries(variables).filter(([, value]) => value !== undefined))
    const around = { platform: process.platform, homedir: homedir(), cwd: process.cwd() }
    return { ...around, env: { ...process.env, ...given }, callers: callersSurroundings() }
  }

  /**
   * The same for what only the mirror of this very user is meant by. Throws a MirrorError (usage) when we are root, and others can
   * change what was named, or what is root's.
   */
  protected ownSurroundings(variables: Readonly<Record<string, string | undefined>> = {}): Surroundings {
    const surroundings = this.surroundings(variables)
    refuseOthersPlaces(surroundings)
    return surroundings
  }

  protected override async catch(error: Error & { oclif?: { exit?: number } }): Promise<void> {
    // An exit that the command chose.
    if (isExit(error)) throw error
    const failure = await this.asMirrorError(error)
    // What has become of things is worth a word all the same.
    const tellsOfInterrupt = failure instanceof MirrorError && failure.exit === exitCode.interrupted
    if (this.interrupted.aborted && !tellsOfInterrupt) this.exit(exitCode.interrupted)
    this.exit(writeFailure(failure, this.config))
  }

  /** Whatever the command was: what a container was lent may be about to expire. */
  protected override async finally(failed: Error | undefined): Promise<void> {
    await super.finally(failed)
    if (failed !== undefined || this.interrupted.aborted) return
    if (!(await isCredentialRefreshDue(this.surroundings(), Date.now()))) return
    const { refreshCredentials } = await import('../daemon/container/credentials.ts')
    const { systemClock } = await import('../lib/time.ts')
    await refreshCredentials(this.surroundings(), systemClock).catch((failure: unknown) => {
      if (!(failure instanceof MirrorError)) throw failure
      this.say(`The container's credentials are as old as they were: ${failure.message}`)
    })
  }

  /** The framework's own complaints about flags and arguments, and what Docker refuses, in our form. */
  private async asMirrorError(error: Error & { oclif?: { exit?: number } }): Promise<Error> {
    if (error instanceof DockerError)
      return new MirrorError(`The Docker engine refuses: ${error.message}.`, { hints: ['docker info'], cause: error })
    const rootsFile = explainRootsFile(error, this.surroundings())
    if (rootsFile !== undefined) return rootsFile
    const fileFailure = explainFileFailure(error, this.surroundings())
    if (fileFailure !== undefined) return fileFailure
    // What a flag's own parser throws gets no exit code of the framework's, only its words around it.
    if (error.oclif?.exit !== exitCode.usage && !error.message.startsWith('Parsing --')) return error
    const { usageError } = await import('./help.ts')
    return usageError(error, this.id ?? '', Object.keys(this.ctor.flags ?? {}))
  }
}

let left: { readonly callers: Surroundings; readonly leftOut: readonly LeftOut[] } | undefined

/**
 * Called once, when the program starts. As root: takes out of this process's environment, and so out of that of every program it
 * starts, each place that others than root can change.
 */
export function leaveOthersPlaces(program: Pick<NodeJS.Process, 'platform' | 'env' | 'cwd'>): void {
  if (!looksAtOwners(program)) return
  const { platform, env } = program
  const callers = { platform, env: { ...env }, homedir: homedir(), cwd: folderOf(program) }
  const { env: own, leftOut } = toRootPaths(callers)
  if (leftOut.length > 0) left = { callers, leftOut }
  for (const name of Object.keys(env)) {
    if (own[name] === undefined) delete env[name]
    else env[name] = own[name]
  }
}

/** In a folder that was removed nothing is found by a relative path, whatever that is taken to start from. */
function folderOf({ cwd }: Pick<NodeJS.Process, 'cwd'>): string {
  try {
    return cwd()
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error
    return '/'
  }
}

/** The surroundings as they were before places were taken out; undefined where none was. */
function callersSurroundings(): Surroundings | undefined {
  return left?.callers
}

/** What root leaves alone, and how to use it all the same; undefined where there is nothing. */
function describeLeftOut(env: NodeJS.ProcessEnv): string | undefined {
  if (left === undefined) return undefined
  const lines = left.leftOut.map(({ name, value, why }) => {
    const instead = name === 'HOME' ? `; ${env['HOME']} takes its place` : ''
    return `  ${name}=${value}   (${why}${instead})`
  })
  return [
    'As root, mirror uses nothing that other users can change. Not used:',
    ...lines,
    `To use it, run the command ${describeInvoker(left.leftOut)}. To keep root's files elsewhere, set MIRROR_HOME to a folder of root's.`,
  ].join('\n')
}
