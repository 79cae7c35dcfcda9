import type { FileChange } from '../clients/client-config.ts'
import type { Paint } from './paint.ts'

const contextLines = 3

/** What becomes of each file, as a unified diff with its paths. */
export async function renderDiff(changes: readonly FileChange[], paint: Paint): Promise<string> {
  const { createTwoFilesPatch, FILE_HEADERS_ONLY } = await import('diff')
  return changes
    .map(({ path, before, after }) =>
      createTwoFilesPatch(
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
        .join('\n'),
    )
    .join('')
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
