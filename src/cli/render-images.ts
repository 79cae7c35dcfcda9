import { formatBytes } from '../lib/units.ts'
import type { ImageReport } from '../admin/api.ts'
import { shortDigest } from './terminal.ts'
import type { Paint } from './paint.ts'
import { renderAge } from './render-age.ts'
import { renderTable } from './render-table.ts'

/** What is cached, one image a line. `now`: wall clock ms. */
export function renderImages(images: readonly ImageReport[], paint: Paint, now: number, columns?: number): string {
  return renderTable(
    [
      { title: 'IMAGE', shrinks: true },
      { title: 'SIZE', align: 'right' },
      { title: 'PULLS', align: 'right' },
      { title: 'LAST PULLED' },
      { title: 'CHECKED' },
    ],
    images.map(({ name, bytes, pulls, lastPulled, checkedAt }) => [
      shortDigest(name),
      formatBytes(bytes),
      String(pulls),
      ago(lastPulled, now),
      ago(checkedAt, now),
    ]),
    paint,
    columns,
  )
}

function ago(time: string | undefined, now: number): string {
  if (time === undefined) return '–'
  // A clock that was set back makes no future.
  return `${renderAge(Math.max(0, now - Date.parse(time)))} ago`
}
