import { configureClient, prepareClient, type PreparedClient } from '../clients/configure.ts'
import type { MirrorAddress } from '../clients/find-mirror.ts'
import { configureArguments, configureCommand, type KnownRecord } from '../clients/records.ts'
import type { ClientAdapter, ConfigTarget, FileChange, Machine, Observation } from '../clients/types.ts'
import { prepareUndo, undoClient } from '../clients/undo.ts'
import { exitCode, type ExitCode, MirrorError } from '../lib/errors.ts'
import { renderDiff, renderNotes } from './render/configure.ts'
import { confirm, type Terminal } from './terminal.ts'

interface ConfigureChoices {
  readonly fallback: boolean
  readonly reload: boolean
  readonly yes: boolean
  readonly dryRun: boolean
  readonly json: boolean
  /** Show all of many alike. */
  readonly wholeDiff: boolean
}

/** Shows what would be written, asks, and writes it. Resolves to the report of it, which is for `--json`. */
export async function configureDialog(
  terminal: Terminal,
  request: {
    readonly machine: Machine
    readonly adapter: ClientAdapter
    readonly place: ConfigTarget
    readonly mirror: MirrorAddress
    readonly args: readonly string[]
  },
  choices: ConfigureChoices,
): Promise<object> {
  const { fallback, dryRun, json } = choices
  const prepared = await prepareClient({ ...request, fallback })
  const { place, address, plan } = prepared
  const { changes } = plan
  // Our own files need no agreement, and a cluster file on stdout no difference before it.
  const asks = place.ours !== true && changes.length > 0
  if (!json) {
    if (asks) terminal.print((await renderDiff(changes, terminal.colors, { whole: choices.wholeDiff })).trimEnd())
    terminal.info(renderNotes(prepared, terminal.stderrColors))
  }
  // Files that are right already may still have to be read by the client.
  const seen = changes.length === 0 && plan.output === undefined ? await place.observe?.(address) : undefined
  const applies = !dryRun && (!asks || (await confirm(terminal, choices, 'Write this?')))
  if (applies) await configureClient(prepared, new Date())
  if (!json) tellEnd(terminal, prepared, applies, dryRun, seen)
  const isStale = seen?.inUse === false && seen.todo.length > 0
  const offers = applies && (changes.length > 0 || isStale)
  const reloaded = await unlessInterrupted(prepared, applies, async () => {
    return applies && (await wantsReload(terminal, place, offers, choices)) && (await reload(terminal, place))
  })
  return reportOf(prepared, applies, reloaded, seen)
}

function tellEnd(
  terminal: Terminal,
  prepared: PreparedClient,
  applied: boolean,
  dryRun: boolean,
  seen: Observation | undefined,
): void {
  const { adapter, place, plan } = prepared
  const done = `Configured ${adapter.client}: ${place.title}. Undo with: ${prepared.wayBack}`
  if (plan.output !== undefined) {
    terminal.print(plan.output.replace(/\n$/, ''))
    // What is printed may go to a shell. Of files that are mirror's alone nobody has to be told.
    if (applied && plan.changes.length > 0 && place.ours !== true) terminal.info(done)
  } else if (plan.changes.length === 0) {
    const already = `${adapter.client} is already configured: ${place.title}.`
    terminal.print(seen?.inUse === false ? `${already} It does not use the mirror yet:` : already)
    if (seen?.inUse === false) for (const line of seen.saw) terminal.report(`  ${line}`)
    if (seen?.inUse === undefined) for (const line of seen?.saw ?? []) terminal.info(line)
    for (const step of seen?.inUse === false ? seen.todo : [])
      terminal.info(`${terminal.stderrColors.bold('To do:')} ${step}`)
  } else if (applied) terminal.report(done)
  else if (!dryRun) terminal.info('Nothing was written.')
}

/** Once something is written, an interruption says what, and what is left to do. */
async function unlessInterrupted<T>(prepared: PreparedClient, applied: boolean, act: () => Promise<T>): Promise<T> {
  try {
    return await act()
  } catch (error) {
    const isInterrupt = error instanceof MirrorError && error.exit === exitCode.interrupted
    const { adapter, place, plan, wayBack } = prepared
    if (!isInterrupt || !applied || plan.changes.length === 0) throw error
    throw new MirrorError(
      `Interrupted: ${adapter.client} is configured (${place.title}: ${sayFiles(plan.changes)}), and was not reloaded.`,
      { exit: exitCode.interrupted, hints: [...plan.todo, `${wayBack}   (takes it back)`], cause: error },
    )
  }
}

function sayFiles(changes: readonly FileChange[]): string {
  const [first, ...others] = changes.map(({ path }) => path)
  return others.length === 0 ? `${first} is written` : `${first} and ${others.length} more are written`
}

/** By flag, or by the answer of a person: a client takes notice at a moment that suits its user. */
async function wantsReload(
  terminal: Terminal,
  { reload: how }: ConfigTarget,
  offers: boolean,
  { reload, yes, json }: ConfigureChoices,
): Promise<boolean> {
  if (reload) return true
  if (!how || !offers || yes || json || !terminal.prompt) return false
  return terminal.prompt.confirm(how.question)
}

async function reload(terminal: Terminal, { reload: how }: ConfigTarget): Promise<boolean> {
  if (how === undefined) {
    terminal.info('There is nothing here that mirror could reload.')
    return false
  }
  await how.run()
  terminal.info(how.done)
  return true
}

function reportOf(
  { adapter, place, address, warning, plan }: PreparedClient,
  applied: boolean,
  reloaded: boolean,
  seen: Observation | undefined,
): object {
  return {
    client: adapter.client,
    place: place.id,
    mirror: address.cache,
    changes: plan.changes.map(({ path, before, after }) => ({
      path,
      action: before === undefined ? 'create' : after === undefined ? 'remove' : 'change',
    })),
    warnings: warning === undefined ? [] : [warning],
    notes: plan.notes,
    todo: [...plan.todo, ...(seen?.inUse === false && !reloaded ? seen.todo : [])],
    ...(seen && { saw: seen.saw }),
    ...(seen?.inUse !== undefined && { inUse: seen.inUse || reloaded }),
    ...(plan.output !== undefined && { output: plan.output }),
    applied,
    reloaded,
  }
}

interface UndoChoices {
  readonly reload: boolean
  readonly yes: boolean
  readonly dryRun: boolean
  readonly json: boolean
  readonly wholeDiff: boolean
}

/** What became of one record. */
interface UndoneClient {
  readonly client: string
  readonly place: string
  readonly files: readonly string[]
  readonly notes: readonly string[]
  /** What is left for the user to do. */
  readonly todo: readonly string[]
  readonly applied: boolean
  /** Whether the running client was made to take notice. */
  readonly reloaded: boolean
}

/** Shows what would be put back, asks, and does it. */
export async function undoDialog(
  terminal: Terminal,
  machine: Machine,
  record: KnownRecord,
  choices: UndoChoices,
): Promise<UndoneClient> {
  const { reload, yes, dryRun, json, wholeDiff } = choices
  const flags = { '--reload': reload, '--yes': yes, '--dry-run': dryRun, '--json': json }
  const given = Object.entries(flags).flatMap(([flag, isGiven]) => (isGiven ? [flag] : []))
  const prepared = await prepareUndo(machine, record, configureArguments(record, '--undo', ...given))
  const { place, plan } = prepared
  if (!json) {
    if (plan.changes.length > 0)
      terminal.print((await renderDiff(plan.changes, terminal.colors, { whole: wholeDiff })).trimEnd())
    for (const note of plan.notes) terminal.info(note)
  }
  const asks = place.ours !== true && plan.changes.length > 0
  const applied = !dryRun && (!asks || (await confirm(terminal, choices, 'Put this back?')))
  const reloads = applied && (await wantsReloadAfterUndo(terminal, place, record, choices))
  const { stillInUse } = applied ? await undoClient(machine, prepared, reloads) : { stillInUse: false }
  const files = plan.changes.map(({ path }) => path)
  const todo = applied ? await stepsLeft(machine, place, record, files, reloads, stillInUse) : []
  const how = reloads ? place.reload : undefined
  if (applied && !json) {
    const what = plan.notes.length === 0 ? `${record.client} is as it was` : `Took mirror out of ${record.client}`
    terminal.print(
      stillInUse ? `The files of ${record.client} are as they were: ${record.title}.` : `${what}: ${record.title}.`,
    )
    if (how) terminal.info(how.done)
    for (const step of todo) terminal.info(`${terminal.stderrColors.bold('To do:')} ${step}`)
  }
  const { client, place: id } = record
  return { client, place: id, files, notes: plan.notes, todo, applied, reloaded: how !== undefined }
}

/** By flag, or by the answer of a person; nobody is asked where the client goes on as it would anyway. */
async function wantsReloadAfterUndo(
  terminal: Terminal,
  place: ConfigTarget,
  record: KnownRecord,
  { reload, yes, json }: UndoChoices,
): Promise<boolean> {
  if (reload) return true
  if (place.reload === undefined || yes || json || !terminal.prompt) return false
  const seen = await place.observe?.(record)
  return seen?.inUse !== false && terminal.prompt.confirm(place.reload.question)
}

/** What it takes until the client no longer uses the mirror. */
async function stepsLeft(
  machine: Machine,
  place: ConfigTarget,
  record: KnownRecord,
  files: readonly string[],
  reloads: boolean,
  stillInUse: boolean,
): Promise<string[]> {
  if (place.reload !== undefined && reloads) return []
  if (stillInUse)
    return [
      `${await configureCommand(machine, record, '--undo', '--reload')}   (${record.client} uses the mirror until then; no containers stop)`,
    ]
  return files.length === 0 ? [] : (place.afterUndo?.(files) ?? [])
}

/** What came of several things, one after the other. */
interface Sequence<R> {
  readonly done: readonly R[]
  /** The exit code that each failure would have ended the program with. */
  readonly failed: readonly ExitCode[]
}

/**
 * Does the same to each, and goes on when one fails: `tell` hears of each failure. The failure of a single thing is thrown, and
 * so is at once what is a bug, or the user's wish to stop.
 */
export async function eachInTurn<T, R>(
  things: readonly T[],
  act: (thing: T) => Promise<R>,
  tell: (thing: T, error: Error) => void,
): Promise<Sequence<R>> {
  const done: R[] = []
  const failed: ExitCode[] = []
  for (const thing of things) {
    try {
      done.push(await act(thing))
    } catch (error) {
      if (things.length === 1 || !(error instanceof Error) || !isFailure(error)) throw error
      failed.push(error instanceof MirrorError ? error.exit : exitCode.failed)
      tell(thing, error)
    }
  }
  return { done, failed }
}

/** What this machine or its user says no to. */
function isFailure(error: Error): boolean {
  return error instanceof MirrorError ? error.exit !== exitCode.interrupted : 'syscall' in error
}
