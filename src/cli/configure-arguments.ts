import { resolve } from 'node:path'
import type { ClientOptions, ClientPlace } from '../clients/types.ts'
import { MirrorError, exitCode } from '../lib/errors.ts'

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
export function argumentsFor(client: string, { details }: ClientPlace, flags: ConfigureFlags): string[] {
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
