import { configureClient, prepareClient, type PreparedClient } from '../clients/configure.ts'
import type { FoundMirror } from '../clients/find-mirror.ts'
import type { ClientAdapter, ClientPlace, FileChange, Machine, Observation } from '../clients/types.ts'
import { exitCode, MirrorError } from '../lib/errors.ts'
import { agree } from './agree.ts'
import { renderDiff } from './render-diff.ts'
import { renderNotes } from './render/configure.ts'
import type { Talk } from './talk.ts'

export interface ConfigureChoices {
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
  talk: Talk,
  request: {
    readonly machine: Machine
    readonly adapter: ClientAdapter
    readonly place: ClientPlace
    readonly mirror: FoundMirror
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
    if (asks) talk.print((await renderDiff(changes, talk.paint, { whole: choices.wholeDiff })).trimEnd())
    talk.say(renderNotes(prepared, talk.paintAside))
  }
  // Files that are right already may still have to be read by the client.
  const seen = changes.length === 0 && plan.output === undefined ? await place.observe?.(address) : undefined
  const applies = !dryRun && (!asks || (await agree(talk, choices, 'Write this?')))
  if (applies) await configureClient(prepared, new Date())
  if (!json) tellEnd(talk, prepared, applies, dryRun, seen)
  const isStale = seen?.inUse === false && seen.todo.length > 0
  const offers = applies && (changes.length > 0 || isStale)
  const reloaded = await unlessInterrupted(prepared, applies, async () => {
    return applies && (await wantsReload(talk, place, offers, choices)) && (await reload(talk, place))
  })
  return reportOf(prepared, applies, reloaded, seen)
}

function tellEnd(
  talk: Talk,
  prepared: PreparedClient,
  applied: boolean,
  dryRun: boolean,
  seen: Observation | undefined,
): void {
  const { adapter, place, plan } = prepared
  const done = `Configured ${adapter.client}: ${place.title}. Undo with: ${prepared.wayBack}`
  if (plan.output !== undefined) {
    talk.print(plan.output.replace(/\n$/, ''))
    // What is printed may go to a shell. Of files that are mirror's alone nobody has to be told.
    if (applied && plan.changes.length > 0 && place.ours !== true) talk.say(done)
  } else if (plan.changes.length === 0) {
    const already = `${adapter.client} is already configured: ${place.title}.`
    talk.print(seen?.inUse === false ? `${already} It does not use the mirror yet:` : already)
    if (seen?.inUse === false) for (const line of seen.saw) talk.report(`  ${line}`)
    if (seen?.inUse === undefined) for (const line of seen?.saw ?? []) talk.say(line)
    for (const step of seen?.inUse === false ? seen.todo : []) talk.say(`${talk.paintAside.bold('To do:')} ${step}`)
  } else if (applied) talk.report(done)
  else if (!dryRun) talk.say('Nothing was written.')
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
  talk: Talk,
  { reload: how }: ClientPlace,
  offers: boolean,
  { reload, yes, json }: ConfigureChoices,
): Promise<boolean> {
  if (reload) return true
  if (!how || !offers || yes || json || !talk.prompt) return false
  return talk.prompt.confirm(how.question)
}

async function reload(talk: Talk, { reload: how }: ClientPlace): Promise<boolean> {
  if (how === undefined) {
    talk.say('There is nothing here that mirror could reload.')
    return false
  }
  await how.run()
  talk.say(how.done)
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
