import { formatBytes } from '../lib/units.ts'
import type { RemovalReport } from '../server/admin-api.ts'

/** What went from the cache, or would go. */
export function renderRemoval({ images, blobs, bytes }: RemovalReport, dryRun: boolean): string {
  if (images.length === 0 && blobs === 0) return dryRun ? 'Nothing would go.' : 'Nothing went.'
  const freed = `${images.length} ${images.length === 1 ? 'image' : 'images'}, ${blobs} ${blobs === 1 ? 'blob' : 'blobs'}, ${formatBytes(bytes)}`
  return [`${dryRun ? 'Would go' : 'Gone'}: ${freed}`, ...images.map((name) => `  ${name}`)].join('\n')
}
