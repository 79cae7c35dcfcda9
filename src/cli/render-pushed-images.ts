import { formatBytes } from '../lib/units.ts'
import type { PushedImageReport } from '../admin/api.ts'
import { shortDigest } from './terminal.ts'
import type { Paint } from './paint.ts'
import { renderAge } from './render-age.ts'
import { renderTable } from './render-table.ts'

/** What was pushed, one image a line. `now`: wall clock ms. */
export function renderPushedImages(
  images: readonly PushedImageReport[],
  paint: Paint,
  now: number,
  columns?: number,
): string {
  return renderTable(
    [{ title: 'IMAGE', shrinks: true }, { title: 'DIGEST' }, { title: 'SIZE', align: 'right' }, { title: 'PUSHED' }],
    images.map(({ name, digest, bytes, pushedAt }) => [
      shortDigest(name),
      digest.slice(0, digest.indexOf(':') + 13),
      formatBytes(bytes),
      // A clock that was set back makes no future.
      `${renderAge(Math.max(0, now - Date.parse(pushedAt)))} ago`,
    ]),
    paint,
    columns,
  )
}
