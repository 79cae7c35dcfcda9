import type { Paint } from './paint.ts'

export interface Column {
  readonly title: string
  /** Numbers stand under each other by their ends. */
  readonly align?: 'right'
}

/** Columns under their titles, two spaces apart, without trailing blanks. */
export function renderTable(columns: readonly Column[], rows: readonly (readonly string[])[], paint: Paint): string {
  const widths = columns.map(({ title }, at) => Math.max(title.length, ...rows.map((row) => row[at]?.length ?? 0)))
  const line = (cells: readonly string[]) =>
    columns
      .map(({ align }, at) => {
        const cell = cells[at] ?? ''
        return align === 'right' ? cell.padStart(widths[at]!) : cell.padEnd(widths[at]!)
      })
      .join('  ')
      .trimEnd()
  return [paint.dim(line(columns.map(({ title }) => title))), ...rows.map(line)].join('\n')
}
