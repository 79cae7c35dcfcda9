import { basename, dirname } from 'node:path'
import type { FileChange } from '../clients/types.ts'
import type { Paint } from './paint.ts'

const contextLines = 3

/** As few that are alike are shown one by one. */
const fewDiffsAlike = 2
/** Of those that are not. */
const namesShown = 3

/**
 * What becomes of each file, as a unified diff with its paths. Of many files, or tables of one file, that differ in nothing but
 * a registry's name, one is shown and the others are named. `whole`: all are shown.
 */
export async function renderDiff(
  changes: readonly FileChange[],
  paint: Paint,
  { whole = false }: { readonly whole?: boolean } = {},
): Promise<string> {
  const { createTwoFilesPatch, FILE_HEADERS_ONLY } = await import('diff')
  const alike = new Map<string, FileChange[]>()
  for (const change of changes) {
    const key = whole ? change.path : likenessOf(change)
    alike.set(key, [...(alike.get(key) ?? []), change])
  }
  return [...alike.values()]
    .flatMap((group) => {
      const shown = group.length > fewDiffsAlike ? group.slice(0, 1) : group
      return [...shown.map(renderOne), renderOthers(group.slice(shown.length), paint)]
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
    return (whole ? lines : withoutRepeats(lines)).map((line) => paintLine(line, paint)).join('\n')
  }
}

/** The same for files that may be told of as one. */
function likenessOf({ path, before, after }: FileChange): string {
  const text = before === undefined ? after : after === undefined ? before : undefined
  const folder = basename(dirname(path))
  if (text === undefined || !text.includes(folder)) return path
  return JSON.stringify([before === undefined, dirname(dirname(path)), basename(path), text.split(folder)])
}

function renderOthers(others: readonly FileChange[], paint: Paint): string {
  if (others.length === 0) return ''
  const names = others.map(({ path }) => basename(dirname(path)))
  const line = `${summaryOf('file', names)} in ${dirname(dirname(others[0]!.path))}`
  return `${others[0]!.after === undefined ? paint.red(`-${line}`) : paint.green(`+${line}`)}\n`
}

function summaryOf(what: string, names: readonly string[]): string {
  const some = names.slice(0, namesShown).join(', ')
  const rest = names.length > namesShown ? ` and ${names.length - namesShown} others` : ''
  return `… ${names.length} more ${what}s like it (--diff shows all): ${some}${rest}`
}

/** A table of TOML as lines of a diff, from its head to the next one. */
interface Table {
  readonly lines: readonly string[]
  /** Of the registry that it is about. */
  readonly name: string | undefined
  readonly likeness: string
}

/** The lines of a diff, without the tables that come or go and repeat the one before them. */
function withoutRepeats(lines: readonly string[]): string[] {
  const shown: string[] = []
  let alike: Table[] = []
  const flush = () => {
    const [first, ...others] = alike
    if (first && others.length >= fewDiffsAlike) {
      const sign = first.lines[0]![0]!
      const names = others.map(({ name }) => name!)
      shown.push(...first.lines, `${sign}${summaryOf('table', names)}`, ...(isBlank(first.lines.at(-1)!) ? [sign] : []))
    } else shown.push(...alike.flatMap((table) => table.lines))
    alike = []
  }
  for (const piece of piecesOf(lines)) {
    const table = tableOf(piece)
    if (table.name === undefined || alike[0]?.likeness !== table.likeness) flush()
    if (table.name === undefined) shown.push(...piece)
    else alike.push(table)
  }
  flush()
  return shown
}

/** Cut before each head of a table that comes or goes, and where such lines end. */
function piecesOf(lines: readonly string[]): string[][] {
  const pieces: string[][] = []
  for (const [at, line] of lines.entries()) {
    const isHead = /^[+-]\[/.test(line)
    const continues = at > 0 && !isHead && line[0] === lines[at - 1]![0] && /^[+-](?![+-]{2} )/.test(line)
    if (continues) pieces.at(-1)!.push(line)
    else pieces.push([line])
  }
  return pieces
}

function tableOf(lines: readonly string[]): Table {
  const isTable = /^[+-]\[/.test(lines[0]!)
  const text = lines.join('\n').trimEnd()
  const name = isTable ? /^.\[+[^\]"]*"([^"]+)"|^.\s*prefix = "([^"]+)"/m.exec(text)?.slice(1).find(Boolean) : undefined
  return { lines, name, likeness: JSON.stringify(name === undefined ? [] : text.split(name)) }
}

function isBlank(line: string): boolean {
  return line.slice(1).trim() === ''
}

function paintLine(line: string, paint: Paint): string {
  // A carriage return at a line's end would spoil the picture.
  const shown = line.replaceAll('\r', '␍')
  if (line.startsWith('+++') || line.startsWith('---')) return paint.bold(shown)
  if (line.startsWith('@@')) return paint.dim(shown)
  if (line.startsWith('+')) return paint.green(shown)
  if (line.startsWith('-')) return paint.red(shown)
  return shown
}
