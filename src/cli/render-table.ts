import { shortenMiddle } from './terminal.ts'
import type { Paint } from './paint.ts'

export interface Column {
  readonly title: string
  /** Numbers stand under each other by their ends. */
  readonly align?: 'right'
  /** Its cells may lose their middle, where a terminal is too narrow. */
  readonly shrinks?: true
}

const gap = 2
const narrowest = 16

/** Columns under their titles, two spaces apart, without trailing blanks. */
export function renderTable(
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
  paint: Paint,
  width = Infinity,
): string {
  const natural = columns.map(({ title }, at) => Math.max(title.length, ...rows.map((row) => row[at]?.length ?? 0)))
  const tooMuch = Math.max(0, natural.reduce((sum, each) => sum + each + gap, -gap) - width)
  const widths = columns.map(({ shrinks }, at) =>
    shrinks ? Math.min(natural[at]!, Math.max(narrowest, natural[at]! - tooMuch)) : natural[at]!,
  )
  const line = (cells: readonly string[]) =>
    columns
      .map(({ align }, at) => {
        const cell = shortenMiddle(cells[at] ?? '', widths[at]!)
        return align === 'right' ? cell.padStart(widths[at]!) : cell.padEnd(widths[at]!)
      })
      .join('  ')
      .trimEnd()
  return [paint.dim(line(columns.map(({ title }) => title))), ...rows.map(line)].join('\n')
}
