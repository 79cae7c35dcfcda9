import type { StatusReport } from '../../admin/api.ts'
import { formatDuration } from '../../lib/units.ts'
import { type Colorizer, type Colors, shortenMiddle, splitWords, wrapWords } from '../terminal.ts'

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
  colors: Colors,
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
  return [colors.dim(line(columns.map(({ title }) => title))), ...rows.map(line)].join('\n')
}

/** `0 s`, `12 s`, `3 min`: how long something has been, to a person, who does not count in milliseconds. */
export function renderAge(ms: number): string {
  return ms < 60_000 ? `${Math.floor(ms / 1000)} s` : formatDuration(ms)
}

/** As wide as the names of the facts, with what is before and after. */
const indent = 12

/** A name and what there is to say. */
export type Fact = readonly [string, string, Colorizer?]

/** Renders names and texts below each other; a text that a terminal is too narrow for goes on below itself. */
export function renderFacts(rows: readonly Fact[], colors: Colors, columns: number | undefined): string {
  return rows
    .map(([name, value, color = colors.dim]) => {
      const words = splitWords(value).map((text) => ({ text }))
      const label = { text: `  ${name.padEnd(9)}`, color: (text: string) => `  ${color(text.slice(2))}` }
      return wrapWords([label, ...words], columns, indent)
    })
    .join('\n')
}

// By hand, for loading a locale's rules takes longer than all the rest of the status.
export function count(value: number): string {
  return String(value).replaceAll(/\B(?=(\d{3})+$)/g, ',')
}

export function counted(amount: number, one: string, several: string): string {
  return `${count(amount)} ${amount === 1 ? one : several}`
}

/** A Host header is whatever a stranger sent, and so is what an upstream says. */
export function printable(text: string, most = 100): string {
  return text.replaceAll(/[^\x20-\x7e]/g, '?').slice(0, most)
}

/** What containers of Docker networks may do in the registry; nothing where no network reaches it. */
export function registryRights(
  { networks, registry }: Pick<StatusReport['endpoints'], 'networks' | 'registry'>,
  rights: 'read' | 'write' | undefined,
): string[] {
  if (rights === undefined || registry.length === 0 || Object.keys(networks).length === 0) return []
  return [
    rights === 'read'
      ? 'containers may only pull (registry.networks: read)'
      : 'containers may push and delete (registry.networks or registry.listen allows it)',
  ]
}
