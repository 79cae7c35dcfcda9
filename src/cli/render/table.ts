import { stripVTControlCharacters } from 'node:util'
import type { RegistryApi, RemovalReport, StatusReport, UpstreamReport } from '../../admin/api.ts'
import type { ClientName } from '../../clients/types.ts'
import { MirrorError } from '../../lib/errors.ts'
import { formatBytes, formatDuration } from '../../lib/units.ts'
import { type Colorizer, type Colors, shortenMiddle, splitWords, toTokens, wrapWords } from '../terminal.ts'

export interface Column {
  readonly title: string
  /** Aligns numbers at their last digit. */
  readonly align?: 'right'
  /** Lets cells lose their middle in a terminal that is too narrow. */
  readonly shrinks?: true
  /** Leaves the column out of a terminal that is too narrow; the column with the highest number goes first. */
  readonly drops?: number
}

const gap = 2
const minShrunkWidth = 16

/** Renders columns under their titles, two spaces apart, without trailing blanks. */
export function renderTable(
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
  colors: Colors,
  width = Infinity,
): string {
  const fullWidths = columns.map(({ title }, at) => Math.max(title.length, ...rows.map((row) => row[at]?.length ?? 0)))
  const excess = Math.max(0, fullWidths.reduce((sum, each) => sum + each + gap, -gap) - width)
  const widths = columns.map(({ shrinks }, at) =>
    shrinks ? Math.min(fullWidths[at]!, Math.max(minShrunkWidth, fullWidths[at]! - excess)) : fullWidths[at]!,
  )
  const renderLine = (cells: readonly string[]) =>
    columns
      .map(({ align }, at) => {
        const cell = shortenMiddle(cells[at] ?? '', widths[at]!)
        return align === 'right' ? cell.padStart(widths[at]!) : cell.padEnd(widths[at]!)
      })
      .join('  ')
      .trimEnd()
  return [colors.dim(renderLine(columns.map(({ title }) => title))), ...rows.map(renderLine)].join('\n')
}

/**
 * Renders rows whose first cell is a name that a user copies, so that it stays whole: in a narrow terminal columns are left out, and
 * where that is not enough, each row is a name and a line with its other cells.
 */
export function renderNamedRows(
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
  colors: Colors,
  width = Infinity,
): string {
  const dropped = columns.filter(({ drops }) => drops !== undefined).toSorted((a, b) => b.drops! - a.drops!)
  for (let count = 0; count <= dropped.length; count++) {
    const kept = columns.map((column) => !dropped.slice(0, count).includes(column))
    const keep = <T>(cells: readonly T[]) => cells.filter((_, at) => kept[at])
    const table = renderTable(keep(columns), rows.map(keep), colors)
    if (
      stripVTControlCharacters(table)
        .split('\n')
        .every((line) => line.length <= width)
    )
      return table
  }
  return rows
    .map(([name = '', ...cells]) => `${name}\n${renderCells(columns.slice(1), cells, colors, width)}`)
    .join('\n')
}

function renderCells(columns: readonly Column[], cells: readonly string[], { dim }: Colors, width: number): string {
  const tokens = columns.flatMap(({ title }, at) => [
    ...toTokens(title.toLowerCase(), dim),
    { text: `${cells[at] ?? ''}${at < columns.length - 1 ? ',' : ''}` },
  ])
  return `  ${wrapWords(tokens, width - 2, 2)}`
}

/** Renders an age in its largest unit: `0 s`, `12 s`, `3 min`. */
export function renderAge(ms: number): string {
  return ms < 60_000 ? `${Math.floor(ms / 1000)} s` : formatDuration(ms)
}

/** Pairs a name with its text. */
export type Fact = readonly [string, string, Colorizer?]

/** Renders names and texts below each other; a long text is wrapped below itself. */
export function renderFacts(rows: readonly Fact[], colors: Colors, columns: number | undefined): string {
  const width = Math.max(9, ...rows.map(([name]) => name.length))
  return rows
    .map(([name, value, color = colors.dim]) => {
      const words = splitWords(value).map((text) => ({ text }))
      const label = { text: `  ${name.padEnd(width)}`, color: (text: string) => `  ${color(text.slice(2))}` }
      return wrapWords([label, ...words], columns, width + 3)
    })
    .join('\n')
}

// Avoids Intl, because loading a locale takes longer than the rest of the status.
export function formatNumber(value: number): string {
  return String(value).replaceAll(/\B(?=(\d{3})+$)/g, ',')
}

export function formatCount(amount: number, one: string, several: string): string {
  return `${formatNumber(amount)} ${amount === 1 ? one : several}`
}

/** Makes a text of a client or an upstream safe for a terminal: printable ASCII, at most `maxLength` characters. */
export function toPrintable(text: string, maxLength = 100): string {
  return text.replaceAll(/[^\x20-\x7e]/g, '?').slice(0, maxLength)
}

/** Describes the rights of Docker networks' containers in the registry; empty where no network reaches it. */
export function describeRegistryRights(
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

/** Renders a command that pulls an image by the mirror's address, with one of these clients; none of them needs configuration for it. */
export function renderPullCommand(
  { cache }: Pick<StatusReport['endpoints'], 'cache'>,
  installed: readonly ClientName[] = [],
): string {
  const [url = ''] = cache
  const image = `${url.replace(/^https?:\/\//, '')}/docker.io/library/alpine`
  const isPlain = url.startsWith('http://')
  if (installed.includes('docker')) return `docker pull ${image}`
  if (installed.includes('podman')) return `podman pull ${isPlain ? '--tls-verify=false ' : ''}${image}`
  if (installed.includes('containerd')) return `sudo ctr images pull ${isPlain ? '--plain-http ' : ''}${image}:latest`
  return `docker pull ${image}`
}

/** Returns the word for an upstream's state on every screen. `waiting`: the mirror sends nothing for a while. */
export function nameUpstreamState({ state, lastError }: UpstreamReport): 'ok' | 'failing' | 'waiting' {
  return state === 'open' || (state === 'ok' && lastError !== undefined) ? 'waiting' : state
}

/** Returns the next step after a failure of an upstream. */
export function suggestUpstreamStep(host: string, message: string, runtime: StatusReport['runtime']): string {
  if (message.includes('the environment variable')) return 'set it, then: mirror down && mirror up'
  if (message.startsWith('The credential for'))
    return runtime === 'container' ? 'correct that, then: mirror up' : 'correct that; the next request reads it again'
  if (/ set upstreams\."/.test(message)) return 'correct mirror.yaml, then: mirror up'
  if (message.includes('could not be resolved')) return 'check the network and DNS of this machine'
  if (/ cannot be reached| refused the connection| did not (accept|answer) /.test(message))
    return 'check the network, and whether the registry is up'
  if (message.includes(' is rate limiting ')) return `wait, or log in: docker login ${host}`
  if (/ answered 5\d\d/.test(message)) return 'wait; the registry itself has a problem'
  return 'mirror logs'
}

/** Renders a removal, or a preview of one. `listed`: the images with their sizes, which include content that other images share. */
export function renderRemoval(
  { images, blobs, bytes }: RemovalReport,
  dryRun: boolean,
  listed: readonly { readonly name: string; readonly bytes: number }[] = [],
): string {
  if (images.length === 0 && blobs === 0) return 'Nothing to remove.'
  const freed = `${images.length} ${images.length === 1 ? 'image' : 'images'}, ${blobs} ${blobs === 1 ? 'blob' : 'blobs'}, ${formatBytes(bytes)}`
  const sizes = new Map(listed.map((image) => [image.name, formatBytes(image.bytes)]))
  const width = Math.max(...images.map((name) => name.length))
  const lines = images.map((name) => {
    const size = sizes.get(name)
    return size === undefined ? `  ${name}` : `  ${name.padEnd(width)}  ${size}`
  })
  return [`${dryRun ? 'Would remove' : 'Removed'}: ${freed}`, ...lines].join('\n')
}

/** Describes the unreferenced content that the registry frees later; undefined when there is none, or the registry does not answer. */
export async function describeUnfreed(registry: Pick<RegistryApi, 'gc'>): Promise<string | undefined> {
  const { bytes } = await registry.gc({ untagged: false, grace: 0, dryRun: true }).catch((error: unknown) => {
    // The removal before it has succeeded, and its result counts.
    if (error instanceof MirrorError) return { bytes: 0 }
    throw error
  })
  return bytes === 0
    ? undefined
    : `Unreferenced content of ${formatBytes(bytes)} is removed after 24 h, because a push may still need it. To remove it now: mirror registry gc --grace 0`
}
