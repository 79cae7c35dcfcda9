import { configureArguments, configureCommand, type KnownRecord } from '../clients/records.ts'
import type { ClientPlace, Machine } from '../clients/types.ts'
import { prepareUndo, undoClient } from '../clients/undo.ts'
import { agree } from './agree.ts'
import { renderDiff } from './render-diff.ts'
import type { Talk } from './talk.ts'

export interface UndoChoices {
  readonly reload: boolean
  readonly yes: boolean
  readonly dryRun: boolean
  readonly json: boolean
  readonly wholeDiff: boolean
}

/** What became of one record. */
export interface UndoneClient {
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
  talk: Talk,
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
      talk.print((await renderDiff(plan.changes, talk.paint, { whole: wholeDiff })).trimEnd())
    for (const note of plan.notes) talk.say(note)
  }
  const asks = place.ours !== true && plan.changes.length > 0
  const applied = !dryRun && (!asks || (await agree(talk, choices, 'Put this back?')))
  const reloads = applied && (await wantsReloadAfterUndo(talk, place, record, choices))
  const { stillInUse } = applied ? await undoClient(machine, prepared, reloads) : { stillInUse: false }
  const files = plan.changes.map(({ path }) => path)
  const todo = applied ? await stepsLeft(machine, place, record, files, reloads, stillInUse) : []
  const how = reloads ? place.reload : undefined
  if (applied && !json) {
    const what = plan.notes.length === 0 ? `${record.client} is as it was` : `Took mirror out of ${record.client}`
    talk.print(
      stillInUse ? `The files of ${record.client} are as they were: ${record.title}.` : `${what}: ${record.title}.`,
    )
    if (how) talk.say(how.done)
    for (const step of todo) talk.say(`${talk.paintAside.bold('To do:')} ${step}`)
  }
  const { client, place: id } = record
  return { client, place: id, files, notes: plan.notes, todo, applied, reloaded: how !== undefined }
}

/** By flag, or by the answer of a person; nobody is asked where the client goes on as it would anyway. */
async function wantsReloadAfterUndo(
  talk: Talk,
  place: ClientPlace,
  record: KnownRecord,
  { reload, yes, json }: UndoChoices,
): Promise<boolean> {
  if (reload) return true
  if (place.reload === undefined || yes || json || !talk.prompt) return false
  const seen = await place.observe?.(record)
  return seen?.inUse !== false && talk.prompt.confirm(place.reload.question)
}

/** What it takes until the client no longer uses the mirror. */
async function stepsLeft(
  machine: Machine,
  place: ClientPlace,
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
