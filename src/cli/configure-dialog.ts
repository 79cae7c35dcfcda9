import type { ClientAdapter, ClientPlace, Machine } from '../app/configure/client-adapter.ts'
import { configureClient, prepareClient, rootOf, type PreparedClient } from '../app/configure/configure-client.ts'
import type { FileChange } from '../clients/client-config.ts'
import type { FoundMirror } from '../app/configure/find-mirror.ts'
import { shellWord } from '../lib/shell-word.ts'
import { agree } from './agree.ts'
import { renderNotes } from './render-configure.ts'
import { renderDiff } from './render-diff.ts'
import type { Talk } from './talk.ts'

export interface ConfigureChoices {
  readonly fallback: boolean
  readonly reload: boolean
  readonly yes: boolean
  readonly dryRun: boolean
  readonly json: boolean
}

/** Shows what would be written, asks, and writes it. Resolves to the report of it, which is for `--json`. */
export async function configureDialog(
  talk: Talk,
  request: { machine: Machine; adapter: ClientAdapter; place: ClientPlace; mirror: FoundMirror },
  choices: ConfigureChoices,
): Promise<object> {
  const { place } = request
  const { fallback, dryRun, json } = choices
  const prepared = await prepareClient({ ...request, fallback })
  const { changes } = prepared.plan
  // Our own files need no agreement, and a cluster file on stdout no difference before it.
  const asks = place.ours !== true && changes.length > 0
  if (!json) {
    if (asks) talk.print((await renderDiff(changes, talk.paint)).trimEnd())
    talk.say(renderNotes(prepared, talk.paintAside))
  }
  const applies = !dryRun && (!asks || (await agree(talk, choices, 'Write this?')))
  if (applies) await configureClient(prepared, new Date())
  const reloaded = applies && (await wantsReload(talk, place, changes, choices)) && (await reload(talk, place))
  if (!json) tellEnd(talk, prepared, applies, dryRun)
  return reportOf(prepared, applies, reloaded)
}

function tellEnd(talk: Talk, prepared: PreparedClient, applied: boolean, dryRun: boolean): void {
  const { adapter, place, plan } = prepared
  if (plan.output !== undefined) talk.print(plan.output.replace(/\n$/, ''))
  else if (plan.changes.length === 0) talk.print(`${adapter.client} is configured so already: ${place.title}.`)
  else if (applied) talk.print(`Configured ${adapter.client}: ${place.title}. Back: ${wayBack(prepared)}`)
  else if (!dryRun) talk.say('Nothing was written.')
}

/** The command that takes back this place, and no other of the same client. */
function wayBack({ machine, adapter, place: { details } }: PreparedClient): string {
  const said = { root: rootOf(machine), scope: details['scope'], cluster: details['cluster'], file: details['file'] }
  const flags = Object.entries(said).flatMap(([name, value]) =>
    value === undefined ? [] : [`--${name} ${shellWord(value)}`],
  )
  return ['mirror configure', adapter.client, ...flags, '--undo'].join(' ')
}

/** By flag, or by the answer of a person: a client takes notice at a moment that suits its user. */
async function wantsReload(
  talk: Talk,
  { reload: how }: ClientPlace,
  changes: readonly FileChange[],
  { reload, yes, json }: ConfigureChoices,
): Promise<boolean> {
  if (reload) return true
  if (!how || changes.length === 0 || yes || json || !talk.prompt) return false
  return talk.prompt.confirm(`Have it take notice now (${how.says})?`)
}

async function reload(talk: Talk, { reload: how }: ClientPlace): Promise<boolean> {
  if (how === undefined) {
    talk.say('There is nothing here that mirror could reload.')
    return false
  }
  await how.run()
  talk.say(`Done: ${how.says}.`)
  return true
}

function reportOf(
  { adapter, place, address, warning, plan }: PreparedClient,
  applied: boolean,
  reloaded: boolean,
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
    todo: plan.todo,
    ...(plan.output !== undefined && { output: plan.output }),
    applied,
    reloaded,
  }
}
