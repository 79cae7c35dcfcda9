import { resolve } from 'node:path'
import { getAdapter } from '../clients/adapters.ts'
import { configureClient, prepareClient, type PreparedClient } from '../clients/configure.ts'
import { recognizeFile } from '../clients/files/kinds.ts'
import { localFiles } from '../clients/files/local.ts'
import type { MirrorAddress } from '../clients/find-mirror.ts'
import { getConfigureArguments, getConfigureCommand, type StoredRecord } from '../clients/records.ts'
import {
  type ClientAdapter,
  clientNames,
  type ClientOptions,
  type ConfigTarget,
  type FileChange,
  type Machine,
  type Observation,
} from '../clients/types.ts'
import { prepareUndo, undoClient } from '../clients/undo.ts'
import { getErrno, exitCode, type ExitCode, MirrorError } from '../lib/errors.ts'
import { redact } from '../lib/logger.ts'
import { quoteShellWord } from '../lib/process.ts'
import { renderDiff, renderNotes } from './render/configure.ts'
import { confirm, type Terminal } from './terminal.ts'

interface ConfigureChoices {
  readonly fallback: boolean
  readonly reload: boolean
  readonly yes: boolean
  readonly dryRun: boolean
  readonly json: boolean
  /** Shows repeated parts of the diff, too. */
  readonly wholeDiff: boolean
}

/** Shows the changes, asks, and writes them. Resolves to the report for `--json`. */
export async function configureInteractively(
  terminal: Terminal,
  request: {
    readonly machine: Machine
    readonly adapter: ClientAdapter
    readonly target: ConfigTarget
    readonly mirror: MirrorAddress
    readonly args: readonly string[]
  },
  choices: ConfigureChoices,
): Promise<object> {
  const { fallback, dryRun, json } = choices
  const prepared = await prepareClient({ ...request, fallback, dryRun })
  const { target, address, plan } = prepared
  const { changes } = plan
  // Ask only about files of others; a cluster file on stdout needs no diff before it either.
  const asks = target.isOwn !== true && changes.length > 0
  if (!json) {
    if (asks)
      terminal.print(
        (await renderDiff(changes, terminal.colors, { whole: choices.wholeDiff, columns: terminal.columns })).trimEnd(),
      )
    terminal.info(renderNotes(prepared, terminal.stderrColors))
  }
  // Observe the client, which may still have to read files that are already right.
  const observation = changes.length === 0 && plan.output === undefined ? await target.observe?.(address) : undefined
  if (prepared.denial !== undefined && !json) reportDenial(terminal, prepared.denial)
  const applies = !dryRun && (!asks || (await confirm(terminal, choices, 'Write this?')))
  if (applies) await configureClient(prepared, new Date())
  if (!json) reportOutcome(terminal, prepared, applies, dryRun, observation)
  const isStale = observation?.inUse === false && observation.todo.length > 0
  const offers = applies && (changes.length > 0 || isStale)
  const reloaded = await withInterruptReport(prepared, applies, async () => {
    return applies && (await wantsReload(terminal, target, offers, choices)) && (await reload(terminal, target))
  })
  return toReport(prepared, applies, reloaded, observation)
}

function reportDenial(terminal: Terminal, { message, hints }: MirrorError): void {
  terminal.info([message, 'To write it:', ...hints.map((hint) => `  ${hint}`)].join('\n'))
}

function reportOutcome(
  terminal: Terminal,
  prepared: PreparedClient,
  applied: boolean,
  dryRun: boolean,
  observation: Observation | undefined,
): void {
  const { adapter, target, plan } = prepared
  const done = `Configured ${adapter.client}: ${target.title}.\nUndo with: ${prepared.undoCommand}`
  if (plan.output !== undefined) {
    terminal.print(plan.output.replace(/\n$/, ''))
    // Send the message to stderr, because the output may go to a shell. Files of mirror's own need none.
    if (applied && plan.changes.length > 0 && target.isOwn !== true) terminal.info(done)
  } else if (plan.changes.length === 0) {
    const already = `${adapter.client} is already configured: ${target.title}.`
    terminal.report(observation?.inUse === false ? `${already} It does not use the mirror yet:` : already)
    if (observation?.inUse === false) for (const line of observation.saw) terminal.report(`  ${line}`)
    if (observation?.inUse === undefined) for (const line of observation?.saw ?? []) terminal.info(line)
    for (const step of observation?.inUse === false ? observation.todo : [])
      terminal.info(`${terminal.stderrColors.bold('To do:')} ${step}`)
  } else if (applied) terminal.report(done)
  else if (!dryRun) terminal.info('Nothing was written.')
}

/** Adds the written files and the remaining steps to an interruption after the files were written. */
async function withInterruptReport<T>(prepared: PreparedClient, applied: boolean, act: () => Promise<T>): Promise<T> {
  try {
    return await act()
  } catch (error) {
    const isInterrupt = error instanceof MirrorError && error.exit === exitCode.interrupted
    const { adapter, target, plan, undoCommand } = prepared
    if (!isInterrupt || !applied || plan.changes.length === 0) throw error
    throw new MirrorError(
      `Interrupted: ${adapter.client} is configured (${target.title}: ${describeFiles(plan.changes)}), and was not reloaded.`,
      { exit: exitCode.interrupted, hints: [...plan.todo, `${undoCommand}   (undoes it)`], cause: error },
    )
  }
}

function describeFiles(changes: readonly FileChange[]): string {
  const [first, ...others] = changes.map(({ path }) => path)
  return others.length === 0 ? `${first} is written` : `${first} and ${others.length} more files are written`
}

/** Reports whether to reload the client now: by flag, or by the user's answer. */
async function wantsReload(
  terminal: Terminal,
  { reload: clientReload }: ConfigTarget,
  offers: boolean,
  { reload, yes, json }: ConfigureChoices,
): Promise<boolean> {
  if (reload) return true
  if (!clientReload || !offers || yes || json || !terminal.prompt) return false
  return terminal.prompt.confirm(clientReload.question)
}

async function reload(terminal: Terminal, { reload: clientReload }: ConfigTarget): Promise<boolean> {
  if (clientReload === undefined) {
    terminal.info('There is nothing here that mirror could reload.')
    return false
  }
  await clientReload.run()
  terminal.info(clientReload.done)
  return true
}

function toReport(
  { adapter, target, address, warning, plan }: PreparedClient,
  applied: boolean,
  reloaded: boolean,
  observation: Observation | undefined,
): object {
  return {
    client: adapter.client,
    place: target.id,
    mirror: address.cache,
    changes: plan.changes.map(({ path, before, after }) => ({
      path,
      action: before === undefined ? 'create' : after === undefined ? 'remove' : 'change',
    })),
    warnings: warning === undefined ? [] : [warning],
    notes: plan.notes,
    todo: [...plan.todo, ...(observation?.inUse === false && !reloaded ? observation.todo : [])],
    ...(observation && { saw: observation.saw }),
    ...(observation?.inUse !== undefined && { inUse: observation.inUse || reloaded }),
    ...(plan.output !== undefined && { output: plan.output }),
    applied,
    reloaded,
  }
}

type UndoChoices = Omit<ConfigureChoices, 'fallback'>

/** Reports the undo of one record, for `--json`. */
interface UndoneClient {
  readonly client: string
  readonly place: string
  readonly files: readonly string[]
  readonly notes: readonly string[]
  /** Holds the steps that are left to the user. */
  readonly todo: readonly string[]
  readonly applied: boolean
  readonly reloaded: boolean
}

/** Shows the files that would be restored, asks, and restores them. */
export async function undoInteractively(
  terminal: Terminal,
  machine: Machine,
  record: StoredRecord,
  choices: UndoChoices,
): Promise<UndoneClient> {
  const { reload, yes, dryRun, json, wholeDiff } = choices
  const flags = { '--reload': reload, '--yes': yes, '--dry-run': dryRun, '--json': json }
  const givenFlags = Object.entries(flags).flatMap(([flag, isGiven]) => (isGiven ? [flag] : []))
  const prepared = await prepareUndo(machine, record, getConfigureArguments(record, '--undo', ...givenFlags))
  const { target, plan } = prepared
  if (!json) {
    if (plan.changes.length > 0)
      terminal.print(
        (await renderDiff(plan.changes, terminal.colors, { whole: wholeDiff, columns: terminal.columns })).trimEnd(),
      )
    for (const note of plan.notes) terminal.info(note)
  }
  const asks = target.isOwn !== true && plan.changes.length > 0
  const applied = !dryRun && (!asks || (await confirm(terminal, choices, 'Undo this?')))
  const reloads = applied && (await wantsReloadAfterUndo(terminal, target, record, choices))
  const { stillInUse } = applied ? await undoClient(machine, prepared, reloads) : { stillInUse: false }
  const files = plan.changes.map(({ path }) => path)
  const todo = applied ? await listRemainingSteps(machine, target, record, files, reloads, stillInUse) : []
  const clientReload = reloads ? target.reload : undefined
  if (applied && !json) {
    const isUntouched = plan.notes.length > 0 && plan.changes.length === 0
    const what =
      plan.notes.length === 0
        ? `${record.client} is as it was`
        : isUntouched
          ? `No file was changed, and mirror no longer lists ${record.client} as configured`
          : `Removed mirror from ${record.client}`
    terminal.report(
      stillInUse ? `The files of ${record.client} are as they were: ${record.title}.` : `${what}: ${record.title}.`,
    )
    if (clientReload) terminal.info(clientReload.done)
    for (const step of todo) terminal.info(`${terminal.stderrColors.bold('To do:')} ${step}`)
  }
  const { client, place } = record
  return { client, place, files, notes: plan.notes, todo, applied, reloaded: clientReload !== undefined }
}

/** Reports whether to reload the client after the undo: by flag, or by the user's answer. Asks only when the client still uses the mirror. */
async function wantsReloadAfterUndo(
  terminal: Terminal,
  target: ConfigTarget,
  record: StoredRecord,
  { reload, yes, json }: UndoChoices,
): Promise<boolean> {
  if (reload) return true
  if (target.reload === undefined || yes || json || !terminal.prompt) return false
  const observation = await target.observe?.(record)
  return observation?.inUse !== false && terminal.prompt.confirm(target.reload.question)
}

/** Lists the steps after which the client no longer uses the mirror. */
async function listRemainingSteps(
  machine: Machine,
  target: ConfigTarget,
  record: StoredRecord,
  files: readonly string[],
  reloads: boolean,
  stillInUse: boolean,
): Promise<string[]> {
  if (target.reload !== undefined && reloads) return []
  if (stillInUse)
    return [
      `${await getConfigureCommand(machine, record, '--undo', '--reload')}   (${record.client} uses the mirror until then; no containers stop)`,
    ]
  return files.length === 0 ? [] : (target.listUndoSteps?.(files) ?? [])
}

/** Holds the results of a sequence of actions. */
interface Sequence<R> {
  readonly done: readonly R[]
  /** Holds the exit codes that the failures would have ended the program with. */
  readonly failed: readonly ExitCode[]
}

/**
 * Runs `act` for each item in turn. Passes a failure to `onFailure` and continues; throws the failure of a single item, and a bug or
 * an interruption at once.
 */
export async function forEachInTurn<T, R>(
  items: readonly T[],
  act: (item: T) => Promise<R>,
  onFailure: (item: T, error: Error) => void,
): Promise<Sequence<R>> {
  const done: R[] = []
  const failed: ExitCode[] = []
  for (const item of items) {
    try {
      done.push(await act(item))
    } catch (error) {
      if (items.length === 1 || !(error instanceof Error) || !isFailure(error)) throw error
      failed.push(error instanceof MirrorError ? error.exit : exitCode.failed)
      onFailure(item, error)
    }
  }
  return { done, failed }
}

/** Reports whether the machine or the user is the cause of an error, not a bug or an interruption. */
function isFailure(error: Error): boolean {
  return error instanceof MirrorError ? error.exit !== exitCode.interrupted : 'syscall' in error
}

/** Holds the flags of `mirror configure` that its dialogs need. */
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

/** Maps the flags to the choices of the dialogs. */
export function toChoices({ reload, yes, 'dry-run': dryRun, json, diff }: ConfigureFlags) {
  return { reload, yes, dryRun, json, wholeDiff: diff }
}

/** Returns the arguments with which root configures the same target, also after a dry run. */
export function getRootArguments(client: string, { details }: ConfigTarget, flags: ConfigureFlags): string[] {
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
  }
  return [
    'configure',
    client,
    ...Object.entries(named).flatMap(([name, value]) => (value ? [`--${name}`, value] : [])),
    ...Object.entries(switches).flatMap(([name, isGiven]) => (isGiven ? [`--${name}`] : [])),
  ]
}

/** Maps the flags to the options of an adapter. */
export function toClientOptions(flags: ConfigureFlags): ClientOptions {
  return {
    scope: flags.scope as 'user' | 'system' | undefined,
    clientVersion: flags['client-version'],
    imageStore: flags['image-store'] as 'classic' | 'containerd' | undefined,
    file: flags.file,
    cluster: flags.cluster,
  }
}

/** Lists the flags with which nothing is printed that a client reads. */
const flagsWithoutDocument = ['list', 'undo', 'check', 'json', 'file', 'help']

/**
 * Renders the text for stdout in place of a document that could not be made, for the program that reads it (`kind create cluster
 * --config -`); undefined where no program waits for one. `argv`: the words of the command line, because their parsing may have
 * failed.
 */
export async function renderDocumentRefusal(argv: readonly string[], error: Error): Promise<string | undefined> {
  const hasFlag = (name: string) => argv.some((word) => word === `--${name}` || word.startsWith(`--${name}=`))
  const client = clientNames.find((name) => argv.includes(name))
  if (client === undefined || flagsWithoutDocument.some(hasFlag)) return undefined
  const adapter = await getAdapter(client)
  const text = adapter.renderFailure?.({
    reason: redact(error.message).split('\n')[0]!,
    exit: error instanceof MirrorError ? error.exit : exitCode.failed,
    isCluster: hasFlag('cluster'),
  })
  return text?.replace(/\n$/, '')
}

/** Creates the error for `--file` with a client that takes none. It names the right command for the file where it is known. */
export async function createFileRefusal(client: string, file: string): Promise<MirrorError> {
  const found = recognizeFile(file, await readText(file))
  const hint = found?.hint?.replace('FILE', quoteShellWord(file))
  const looks = found === undefined ? '' : ` It looks like ${found.is}.`
  const own = `mirror configure ${client} --dry-run   (what would be written, and where)`
  return new MirrorError(`${client} has no file of yours to merge into, so ${file} is left alone.${looks}`, {
    exit: exitCode.usage,
    hints: hint === undefined ? [own] : [hint, own],
  })
}

/** Reads the text of a file; empty for one that is missing or cannot be read. */
async function readText(file: string): Promise<string> {
  try {
    return Buffer.from((await localFiles.read(file))?.bytes ?? []).toString()
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    return ''
  }
}
