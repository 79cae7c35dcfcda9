import type { ClientPlace, Machine } from '../app/configure/client-adapter.ts'
import { prepareUndo, undoClient } from '../app/configure/undo-client.ts'
import type { ConfiguredClient } from '../clients/configured.ts'
import { agree } from './agree.ts'
import { renderDiff } from './render-diff.ts'
import type { Talk } from './talk.ts'

export interface UndoChoices {
  readonly reload: boolean
  readonly yes: boolean
  readonly dryRun: boolean
  readonly json: boolean
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
}

/** Shows what would be put back, asks, and does it. */
export async function undoDialog(
  talk: Talk,
  machine: Machine,
  record: ConfiguredClient,
  choices: UndoChoices,
): Promise<UndoneClient> {
  const prepared = await prepareUndo(machine, record)
  const { place, plan } = prepared
  if (!choices.json) {
    if (plan.changes.length > 0) talk.print((await renderDiff(plan.changes, talk.paint)).trimEnd())
    for (const note of plan.notes) talk.say(note)
  }
  const asks = place.ours !== true && plan.changes.length > 0
  const applied = !choices.dryRun && (!asks || (await agree(talk, choices, 'Put this back?')))
  if (applied) await undoClient(machine, prepared, choices.reload)
  const files = plan.changes.map(({ path }) => path)
  const todo = applied ? stepsLeft(place, files, choices.reload) : []
  if (applied && !choices.json) {
    const what = plan.notes.length === 0 ? `${record.client} is as it was` : `Took mirror out of ${record.client}`
    talk.print(`${what}: ${record.title}.`)
    for (const step of todo) talk.say(`${talk.paintAside.bold('To do:')} ${step}`)
  }
  const { client, place: id } = record
  return { client, place: id, files, notes: plan.notes, todo, applied }
}

/** What it takes until the client no longer uses the mirror. */
function stepsLeft(place: ClientPlace, files: readonly string[], reloaded: boolean): string[] {
  if (files.length === 0 || (place.reload !== undefined && reloaded)) return []
  return place.afterUndo?.(files) ?? []
}
