import { resolve } from 'node:path'
import { adapterOf } from '../clients/adapters.ts'
import { recognizeFile } from '../clients/files/kinds.ts'
import { localFiles } from '../clients/files/local.ts'
import { clientNames, type ClientOptions, type ConfigTarget } from '../clients/types.ts'
import { errnoOf, exitCode, MirrorError } from '../lib/errors.ts'
import { redact } from '../lib/logger.ts'
import { shellWord } from '../lib/process.ts'
import { isDebugging, renderError } from './render/log.ts'
import { type Colors, NotInteractiveError } from './terminal.ts'

/** The flags of `mirror configure`, as far as they reach its dialogs. */
export interface ConfigureFlags {
  readonly reload: boolean
  readonly yes: boolean
  readonly 'dry-run': boolean
  readonly json: boolean
  readonly diff: boolean
  readonly 'no-fallback': boolean
  readonly mirror?: string | undefined
  readonly ca?: string | undefined
  readonly root?: string | undefined
  readonly scope?: string | undefined
  readonly file?: string | undefined
  readonly cluster?: string | undefined
  readonly 'client-version'?: string | undefined
  readonly 'image-store'?: string | undefined
}

/** What the dialogs are told. */
export function choicesOf({ reload, yes, 'dry-run': dryRun, json, diff }: ConfigureFlags) {
  return { reload, yes, dryRun, json, wholeDiff: diff }
}

/** The arguments by which root would configure the same place. */
export function argumentsFor(client: string, { details }: ConfigTarget, flags: ConfigureFlags): string[] {
  const { scope = client === 'docker' || client === 'k3s' ? undefined : details['scope'] } = flags
  const named = {
    mirror: flags.mirror,
    ca: flags.ca && resolve(flags.ca),
    root: flags.root && resolve(flags.root),
    scope,
    file: flags.file && resolve(flags.file),
    cluster: flags.cluster,
    'client-version': flags['client-version'],
    'image-store': flags['image-store'],
  }
  const switches = {
    'no-fallback': flags['no-fallback'],
    reload: flags.reload,
    yes: flags.yes,
    'dry-run': flags['dry-run'],
  }
  return [
    'configure',
    client,
    ...Object.entries(named).flatMap(([name, value]) => (value ? [`--${name}`, value] : [])),
    ...Object.entries(switches).flatMap(([name, isGiven]) => (isGiven ? [`--${name}`] : [])),
  ]
}

/** What the user said about the client. */
export function optionsOf(flags: ConfigureFlags): ClientOptions {
  return {
    scope: flags.scope as 'user' | 'system' | undefined,
    clientVersion: flags['client-version'],
    imageStore: flags['image-store'] as 'classic' | 'containerd' | undefined,
    file: flags.file,
    cluster: flags.cluster,
  }
}

/** An interruption names what was done before it. */
export function withDone(error: unknown, done: readonly string[]): unknown {
  const isInterrupt = error instanceof MirrorError && error.exit === exitCode.interrupted
  if (!isInterrupt || done.length === 0) return error
  const what = error.message.replace(/^Interrupted: nothing was done\.$/, 'Interrupted.')
  return new MirrorError(`${what} Done before: ${done.join(', ')}.`, {
    exit: exitCode.interrupted,
    hints: [...error.hints, 'mirror configure --list   (what is configured now)'],
    cause: error,
  })
}

/** With these nothing is printed that a client reads. */
const documentless = ['list', 'undo', 'check', 'json', 'file', 'help']

/**
 * What the program that waits for the stdout of `mirror configure` gets in place of a document that could not be made; undefined
 * where it waits for none. The words themselves say what was asked for, because they may be what is wrong.
 */
export async function configureRefusal(words: readonly string[], error: Error): Promise<string | undefined> {
  const hasFlag = (name: string) => words.some((word) => word === `--${name}` || word.startsWith(`--${name}=`))
  const client = clientNames.find((name) => words.includes(name))
  if (client === undefined || documentless.some(hasFlag)) return undefined
  const adapter = await adapterOf(client)
  const text = adapter.refusal?.({
    reason: redact(error.message).split('\n')[0]!,
    exit: error instanceof MirrorError ? error.exit : exitCode.failed,
    isCluster: hasFlag('cluster'),
  })
  return text?.replace(/\n$/, '')
}

interface FailureTeller {
  /** Of one among several: the others go on. Its files may be done, and only the reload have failed. */
  tell(what: string, error: Error): void
  /** Says what holds for all of them. */
  end(): void
}

/** Tells of what fails of several things. That nobody can be asked is no failure of any of them, and is told once, at the end. */
export function createFailureTeller(say: (text: string) => void, colors: Colors): FailureTeller {
  const render = (error: Error) => renderError(error, colors, { debug: isDebugging(process.env) }).trimEnd()
  let unasked: NotInteractiveError | undefined
  return {
    tell(what, error) {
      if (error instanceof NotInteractiveError) unasked = error
      else say(`${what}\n${render(error)}`)
    },
    end() {
      if (unasked !== undefined) say(render(unasked))
    },
  }
}

/** Why `--file` is refused for a client that takes none, with the right command for the file where it is known. */
export async function refusedFile(client: string, file: string): Promise<MirrorError> {
  const found = recognizeFile(file, await textOf(file))
  const hint = found?.hint?.replace('FILE', shellWord(file))
  const looks = found === undefined ? '' : ` It looks like ${found.is}.`
  const own = `mirror configure ${client} --dry-run   (what would be written, and where)`
  return new MirrorError(`${client} has no file of yours to merge into, so ${file} is left alone.${looks}`, {
    exit: exitCode.usage,
    hints: hint === undefined ? [own] : [hint, own],
  })
}

/** Nothing for a file that is not there, or cannot be read. */
async function textOf(file: string): Promise<string> {
  try {
    return Buffer.from((await localFiles.read(file))?.bytes ?? []).toString()
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    return ''
  }
}
