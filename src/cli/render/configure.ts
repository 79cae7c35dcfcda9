import { basename, dirname } from 'node:path'
import { stripVTControlCharacters } from 'node:util'
import type { ClientCheckResult } from '../../clients/check.ts'
import type { PreparedClient } from '../../clients/configure.ts'
import type { ConfiguredFileState, ListedClient } from '../../clients/configured.ts'
import type { ClientRecord } from '../../clients/records.ts'
import type { FileChange } from '../../clients/types.ts'
import { type Colors, fitText, wrapText } from '../terminal.ts'
import { renderTable } from './table.ts'

/** Limits the similar files that are listed one by one. */
const maxListedFiles = 2

/** Renders the notes and the steps that are left, a line each. */
export function renderNotes(
  { why, warning, plan }: Pick<PreparedClient, 'why' | 'warning' | 'plan'>,
  colors: Colors,
): string {
  return [
    toSentence(why),
    ...(warning === undefined ? [] : [colors.yellow(`Warning: ${warning}`)]),
    ...plan.notes,
    ...plan.todo.map((step) => `${colors.bold('To do:')} ${step}`),
  ].join('\n')
}

/** Renders the result of a check; of a failed one with its likely causes. */
export function renderCheck(
  client: string,
  { seen, asked, failed, saw, reasons, image }: ClientCheckResult,
  colors: Colors,
): string {
  if (seen) return `${colors.green('ok')}    ${client} pulls through the mirror (${image})`
  const what = asked
    ? `${client} contacted the mirror for ${image}, and then failed`
    : failed === undefined
      ? `${client} pulled ${image} from somewhere else`
      : `${client} did not contact the mirror for ${image}`
  return [
    `${colors.red('FAIL')}  ${what}`,
    ...(failed === undefined
      ? []
      : failed
          .trim()
          .split('\n')
          .map((line) => colors.dim(`  ${line}`))),
    ...(saw.length === 0 ? [] : ['Seen:', ...saw.map((line) => `  ${line}`)]),
    ...(reasons.length === 0 ? [] : [reasons.length === 1 ? 'Likely cause:' : 'Likely causes:']),
    ...reasons.flatMap(({ why, fix }, at) => [`  ${at + 1}. ${why}`, `     ${colors.bold(fix)}`]),
  ].join('\n')
}

/** Renders the configured clients as a table, or as paragraphs where the table is wider than `columns`. `asked`: the named client. */
export function renderConfigured(
  clients: readonly ListedClient[],
  asked: string | undefined,
  colors: Colors,
  columns = Infinity,
): string {
  if (clients.length === 0) return `No ${asked ?? 'client'} is configured by mirror.`
  const rows = clients.flatMap(({ client, title, mirror, since, files }) =>
    joinSimilarFiles(files).map(({ path, state }, at) => [
      ...(at === 0 ? [client, title, mirror, since.slice(0, 16).replace('T', ' ')] : ['', '', '', '']),
      path,
      // Colour only the last column: escape codes would shift the others.
      state === 'as written' ? state : colors.yellow(state),
    ]),
  )
  const titles = ['CLIENT', 'PLACE', 'MIRROR', 'SINCE (UTC)', 'FILE', 'STATE']
  const table = renderTable(
    titles.map((title) => ({ title })),
    rows,
    colors,
  )
  const isTooWide = stripVTControlCharacters(table)
    .split('\n')
    .some((line) => line.length > columns)
  const list = isTooWide ? clients.map((client) => renderParagraph(client, colors, columns)).join('\n\n') : table
  const staleClients = clients.flatMap(({ client, title, stale }) =>
    stale ? [{ target: `${client}, ${title}`, ...stale }] : [],
  )
  const lines = staleClients.map(({ target, of, from, to, mend }) => {
    const what = of === 'cache' ? 'the mirror' : "the mirror's registry"
    const where = to === null ? 'which this client cannot reach now' : `which is at ${to} now`
    return colors.yellow(fitText(`${target}: ${from} is no address of ${what}, ${where}. To fix it: ${mend}`, columns))
  })
  return [list, ...(lines.length === 0 ? [] : ['', ...lines])].join('\n')
}

function renderParagraph(
  { client, title, mirror, since, files }: ListedClient,
  colors: Colors,
  columns: number,
): string {
  const renderPart = (name: string, text: string) =>
    wrapText(text, columns, `  ${name.padEnd(8)}`, ' '.repeat(10)).join('\n')
  return [
    wrapText(title, columns, `${client}  `, '  ').join('\n').replace(client, colors.bold(client)),
    renderPart('mirror', mirror),
    renderPart('since', `${since.slice(0, 16).replace('T', ' ')} UTC`),
    ...joinSimilarFiles(files).map(({ path, state }) => {
      const text = renderPart('file', `${path}: ${state.replaceAll(' ', '\u00a0')}`)
      return state === 'as written' ? text : colors.yellow(text)
    }),
  ].join('\n')
}

/** Joins many files of the same state in subfolders of one folder into one line. */
function joinSimilarFiles(files: ListedClient['files']): ListedClient['files'] {
  const groups = new Map<string, { path: string; state: ConfiguredFileState }[]>()
  for (const file of files) {
    const [, above, name] = /^(.*)[\\/][^\\/]+[\\/]([^\\/]+)$/.exec(file.path) ?? []
    const key = JSON.stringify(above === undefined ? file.path : [above, name, file.state])
    groups.set(key, [...(groups.get(key) ?? []), file])
  }
  return [...groups.values()].flatMap((group) => {
    const [first] = group
    if (group.length <= maxListedFiles) return group
    const path = first!.path.replace(/[^\\/]+([\\/][^\\/]+)$/, `*$1 (${group.length} files)`)
    return [{ path, state: first!.state }]
  })
}

/** Renders the clients that still point at a stopped mirror, the effect on their pulls, and the commands that undo it. */
export function renderStillConfigured(clients: readonly ClientRecord[], undo: readonly string[]): string {
  const describe = (isAble: boolean, effect: string) => {
    const names = clients.flatMap(({ client, title, fallback }) =>
      fallback === isAble ? [`${client} (${title.replace(/ \(.*\)$/, '')})`] : [],
    )
    if (names.length === 0) return []
    return [`${capitalize(names.join(', '))} still ${names.length === 1 ? 'points' : 'point'} at the mirror. ${effect}`]
  }
  return [
    ...describe(true, 'While it is down, pulls fall back to the registry.'),
    ...describe(false, 'While it is down, pulls fail.'),
    'Undo with:',
    ...undo.map((command) => `  ${command}`),
  ].join('\n')
}

function toSentence(text: string): string {
  return `${capitalize(text)}.`
}

function capitalize(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1)
}

const contextLines = 3

/** Limits the similar parts of a diff that are all shown. */
const maxShownDiffs = 2
/** Limits the listed names of similar parts. */
const maxShownNames = 3

/**
 * Renders the changes as unified diffs with paths. Of many files, or tables of one file, that differ only in a registry's name,
 * one is shown and the others are named. `whole`: all are shown.
 */
export async function renderDiff(
  changes: readonly FileChange[],
  colors: Colors,
  { whole = false, columns }: { readonly whole?: boolean; readonly columns?: number | undefined } = {},
): Promise<string> {
  const { createTwoFilesPatch, FILE_HEADERS_ONLY } = await import('diff')
  const groups = new Map<string, FileChange[]>()
  for (const change of changes) {
    const key = whole ? change.path : getSimilarityKey(change)
    groups.set(key, [...(groups.get(key) ?? []), change])
  }
  return [...groups.values()]
    .flatMap((group) => {
      const shown = group.length > maxShownDiffs ? group.slice(0, 1) : group
      return [...shown.map(renderOne), renderOthers(group.slice(shown.length), colors, columns)]
    })
    .join('')

  function renderOne({ path, before, after }: FileChange): string {
    const lines = createTwoFilesPatch(
      before === undefined ? '/dev/null' : path,
      after === undefined ? '/dev/null' : path,
      before ?? '',
      after ?? '',
      undefined,
      undefined,
      { context: contextLines, headerOptions: FILE_HEADERS_ONLY },
    ).split('\n')
    return (whole ? lines : collapseRepeats(lines)).map((line) => paintLine(line, colors, columns)).join('\n')
  }
}

/** Returns a key that is equal for changes that differ only in the name of their folder. */
function getSimilarityKey({ path, before, after }: FileChange): string {
  const text = before === undefined ? after : after === undefined ? before : undefined
  const folder = basename(dirname(path))
  if (text === undefined || !text.includes(folder)) return path
  return JSON.stringify([before === undefined, dirname(dirname(path)), basename(path), text.split(folder)])
}

function renderOthers(others: readonly FileChange[], colors: Colors, columns: number | undefined): string {
  if (others.length === 0) return ''
  const names = others.map(({ path }) => basename(dirname(path)))
  const line = `${summarizeSimilar('file', names)} in ${dirname(dirname(others[0]!.path))}`
  return `${paintLine(line, colors, columns)}\n`
}

function summarizeSimilar(what: string, names: readonly string[]): string {
  const some = names.slice(0, maxShownNames).join(', ')
  const rest = names.length > maxShownNames ? ` and ${names.length - maxShownNames} others` : ''
  return `… ${names.length} more ${what}s like it (--diff shows all): ${some}${rest}`
}

/** Holds a table of TOML as lines of a diff, from its head to the next one. */
interface Table {
  readonly lines: readonly string[]
  /** Holds the registry of the table. */
  readonly name: string | undefined
  readonly similarityKey: string
}

/** Returns the lines of a diff without added or removed tables that repeat the one before them. */
function collapseRepeats(lines: readonly string[]): string[] {
  const shown: string[] = []
  let groups: Table[] = []
  const flush = () => {
    const [first, ...others] = groups
    if (first && others.length >= maxShownDiffs) {
      const sign = first.lines[0]![0]!
      const names = others.map(({ name }) => name!)
      shown.push(...first.lines, summarizeSimilar('table', names), ...(isBlank(first.lines.at(-1)!) ? [sign] : []))
    } else shown.push(...groups.flatMap((table) => table.lines))
    groups = []
  }
  for (const piece of splitIntoPieces(lines)) {
    const table = parseTable(piece)
    if (table.name === undefined || groups[0]?.similarityKey !== table.similarityKey) flush()
    if (table.name === undefined) shown.push(...piece)
    else groups.push(table)
  }
  flush()
  return shown
}

/** Splits a diff before each head of an added or removed table, and after its last line. */
function splitIntoPieces(lines: readonly string[]): string[][] {
  const pieces: string[][] = []
  for (const [at, line] of lines.entries()) {
    const isHead = /^[+-]\[/.test(line)
    const continues = at > 0 && !isHead && line[0] === lines[at - 1]![0] && /^[+-](?![+-]{2} )/.test(line)
    if (continues) pieces.at(-1)!.push(line)
    else pieces.push([line])
  }
  return pieces
}

function parseTable(lines: readonly string[]): Table {
  const isTable = /^[+-]\[/.test(lines[0]!)
  const text = lines.join('\n').trimEnd()
  const name = isTable ? /^.\[+[^\]"]*"([^"]+)"|^.\s*prefix = "([^"]+)"/m.exec(text)?.slice(1).find(Boolean) : undefined
  return { lines, name, similarityKey: JSON.stringify(name === undefined ? [] : text.split(name)) }
}

function isBlank(line: string): boolean {
  return line.slice(1).trim() === ''
}

function paintLine(line: string, colors: Colors, columns: number | undefined): string {
  // Drop a carriage return, which would garble the terminal.
  const shown = line.replaceAll('\r', '␍')
  if (line.startsWith('+++') || line.startsWith('---')) return colors.bold(shown)
  if (line.startsWith('…')) return colors.dim(fitText(shown, columns))
  if (line.startsWith('@@')) return colors.dim(shown)
  if (line.startsWith('+')) return colors.green(shown)
  if (line.startsWith('-')) return colors.red(shown)
  return shown
}
