import type { RegistryApi, RemovalReport } from '../../admin/api.ts'
import { MirrorError } from '../../lib/errors.ts'
import { formatBytes } from '../../lib/units.ts'

/** Renders a removal, or a preview of one. */
export function renderRemoval({ images, blobs, bytes }: RemovalReport, dryRun: boolean): string {
  if (images.length === 0 && blobs === 0) return 'Nothing to remove.'
  const freed = `${images.length} ${images.length === 1 ? 'image' : 'images'}, ${blobs} ${blobs === 1 ? 'blob' : 'blobs'}, ${formatBytes(bytes)}`
  return [`${dryRun ? 'Would remove' : 'Removed'}: ${freed}`, ...images.map((name) => `  ${name}`)].join('\n')
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
    : `${formatBytes(bytes)} more are freed after 24 h, because a push may still need them. To free them now: mirror registry gc --grace 0`
}
