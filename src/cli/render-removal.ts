import { formatBytes } from '../lib/units.ts'
import type { RemovalReport } from '../admin/api.ts'

/** Says what was removed, or would be. */
export function renderRemoval({ images, blobs, bytes }: RemovalReport, dryRun: boolean): string {
  if (images.length === 0 && blobs === 0) return 'Nothing to remove.'
  const freed = `${images.length} ${images.length === 1 ? 'image' : 'images'}, ${blobs} ${blobs === 1 ? 'blob' : 'blobs'}, ${formatBytes(bytes)}`
  return [`${dryRun ? 'Would remove' : 'Removed'}: ${freed}`, ...images.map((name) => `  ${name}`)].join('\n')
}
