import { stripVTControlCharacters } from 'node:util'
import type { CheckResult } from '../../clients/check.ts'
import type { PreparedClient } from '../../clients/configure.ts'
import type { FileState, ListedClient } from '../../clients/configured.ts'
import type { ConfiguredClient } from '../../clients/records.ts'
import type { Paint } from '../paint.ts'
import { renderTable } from '../render-table.ts'
import { wrapText } from '../terminal.ts'

export { columnsOf } from '../terminal.ts'

/** As few files that are alike are listed one by one. */
const fewAlike = 2

/** What was found, and what is left to do; a line each. */
export function renderNotes(
  { why, warning, plan }: Pick<PreparedClient, 'why' | 'warning' | 'plan'>,
  paint: Paint,
): string {
  return [
    sentence(why),
    ...(warning === undefined ? [] : [paint.yellow(`Warning: ${warning}`)]),
    ...plan.notes,
    ...plan.todo.map((step) => `${paint.bold('To do:')} ${step}`),
  ].join('\n')
}

/** Whether a client was seen, and if not why that may be. */
export function renderCheck(
  client: string,
  { seen, asked, failed, saw, reasons, image }: CheckResult,
  paint: Paint,
): string {
  if (seen) return `${paint.green('ok')}    ${client} pulls through the mirror (${image})`
  const what = asked
    ? `${client} contacted the mirror for ${image}, and then failed`
    : failed === undefined
      ? `${client} pulled ${image} from somewhere else`
      : `${client} did not contact the mirror for ${image}`
  return [
    `${paint.red('FAIL')}  ${what}`,
    ...(failed === undefined
      ? []
      : failed
          .trim()
          .split('\n')
          .map((line) => paint.dim(`  ${line}`))),
    ...(saw.length === 0 ? [] : ['Seen:', ...saw.map((line) => `  ${line}`)]),
    ...(reasons.length === 0 ? [] : [reasons.length === 1 ? 'Likely cause:' : 'Likely causes:']),
    ...reasons.flatMap(({ why, fix }, at) => [`  ${at + 1}. ${why}`, `     ${paint.bold(fix)}`]),
  ].join('\n')
}

/** `asked`: the client that was asked for; undefined for all. Where the table is wider than `columns`, a paragraph for each. */
export function renderConfigured(
  clients: readonly ListedClient[],
  asked: string | undefined,
  paint: Paint,
  columns = Infinity,
): string {
  if (clients.length === 0) return `No ${asked ?? 'client'} is configured by mirror.`
  const rows = clients.flatMap(({ client, title, mirror, since, files }) =>
    withoutAlike(files).map(({ path, state }, at) => [
      ...(at === 0 ? [client, title, mirror, since.slice(0, 16).replace('T', ' ')] : ['', '', '', '']),
      path,
      // The last column: colours there move nothing.
      state === 'as written' ? state : paint.yellow(state),
    ]),
  )
  const titles = ['CLIENT', 'PLACE', 'MIRROR', 'SINCE (UTC)', 'FILE', 'STATE']
  const table = renderTable(
    titles.map((title) => ({ title })),
    rows,
    paint,
  )
  const isTooWide = stripVTControlCharacters(table)
    .split('\n')
    .some((line) => line.length > columns)
  const list = isTooWide ? clients.map((client) => paragraphOf(client, paint, columns)).join('\n\n') : table
  const moved = clients.flatMap(({ client, title, stale }) => (stale ? [{ who: `${client}, ${title}`, ...stale }] : []))
  const lines = moved.map(({ who, of, from, to, mend }) => {
    const what = of === 'cache' ? 'the mirror' : "the mirror's registry"
    const where = to === null ? 'which this client cannot reach now' : `which is at ${to} now`
    return paint.yellow(`${who}: ${from} is no address of ${what}, ${where}. To mend it: ${mend}`)
  })
  return [list, ...(lines.length === 0 ? [] : ['', ...lines])].join('\n')
}

function paragraphOf({ client, title, mirror, since, files }: ListedClient, paint: Paint, columns: number): string {
  const part = (name: string, text: string) => wrapText(text, columns, `  ${name.padEnd(8)}`, ' '.repeat(10)).join('\n')
  return [
    wrapText(title, columns, `${client}  `, '  ').join('\n').replace(client, paint.bold(client)),
    part('mirror', mirror),
    part('since', `${since.slice(0, 16).replace('T', ' ')} UTC`),
    ...withoutAlike(files).map(({ path, state }) => {
      const text = part('file', `${path}: ${state.replaceAll(' ', '\u00a0')}`)
      return state === 'as written' ? text : paint.yellow(text)
    }),
  ].join('\n')
}

/** Many files in folders of one folder, all in one state, as one. */
function withoutAlike(files: ListedClient['files']): ListedClient['files'] {
  const alike = new Map<string, { path: string; state: FileState }[]>()
  for (const file of files) {
    const [, above, name] = /^(.*)[\\/][^\\/]+[\\/]([^\\/]+)$/.exec(file.path) ?? []
    const key = JSON.stringify(above === undefined ? file.path : [above, name, file.state])
    alike.set(key, [...(alike.get(key) ?? []), file])
  }
  return [...alike.values()].flatMap((group) => {
    const [first] = group
    if (group.length <= fewAlike) return group
    const path = first!.path.replace(/[^\\/]+([\\/][^\\/]+)$/, `*$1 (${group.length} files)`)
    return [{ path, state: first!.state }]
  })
}

/** Who still points at a mirror that has ended, what becomes of their pulls, and the commands that take them back. */
export function renderPointing(clients: readonly ConfiguredClient[], undo: readonly string[]): string {
  const free = clients.filter(({ fallback }) => fallback)
  const bound = clients.filter(({ fallback }) => !fallback)
  return [
    ...(free.length === 0
      ? []
      : [`Still configured to use the mirror (they fall back to the registry while it is down): ${names(free)}.`]),
    ...(bound.length === 0
      ? []
      : [`Still configured to use the mirror, and not able to pull while it is down: ${names(bound)}.`]),
    `Undo with: ${undo.join(', and ')}`,
  ].join('\n')
}

function names(clients: readonly ConfiguredClient[]): string {
  return clients.map(({ client, title }) => `${client} (${title})`).join(', ')
}

function sentence(text: string): string {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}.`
}
