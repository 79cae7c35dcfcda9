import { basename, dirname } from 'node:path'
import type { FileChange } from '../clients/client-config.ts'
import type { Paint } from './paint.ts'

const contextLines = 3

/** As few that are alike are shown one by one. */
const fewAlike = 2

/**
 * What becomes of each file, as a unified diff with its paths. Of many files that come or go whole and differ in nothing but
 * the name of their folder, one is shown, and the paths of the others.
 */
export async function renderDiff(changes: readonly FileChange[], paint: Paint): Promise<string> {
  const { createTwoFilesPatch, FILE_HEADERS_ONLY } = await import('diff')
  const alike = new Map<string, FileChange[]>()
  for (const change of changes) {
    const key = likenessOf(change)
    alike.set(key, [...(alike.get(key) ?? []), change])
  }
  return [...alike.values()]
    .flatMap((group) => {
      const shown = group.length > fewAlike ? group.slice(0, 1) : group
      return [...shown.map(renderOne), renderOthers(group.slice(shown.length), paint)]
    })
    .join('')

  function renderOne({ path, before, after }: FileChange): string {
    return createTwoFilesPatch(
      before === undefined ? '/dev/null' : path,
      after === undefined ? '/dev/null' : path,
      before ?? '',
      after ?? '',
      undefined,
      undefined,
      { context: contextLines, headerOptions: FILE_HEADERS_ONLY },
    )
      .split('\n')
      .map((line) => paintLine(line, paint))
      .join('\n')
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
  const lines = others.map(({ path, after }) =>
    after === undefined ? paint.red(`- ${path}`) : paint.green(`+ ${path}`),
  )
  return `${[`And the same in ${others.length} more, each with the name of its own folder:`, ...lines].join('\n')}\n`
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
