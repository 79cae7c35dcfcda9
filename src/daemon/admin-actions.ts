import type { AdminActions } from '../admin/handler.ts'
import type { Parts } from './compose.ts'

/** Offering an image by which a client proves that it comes here, and clearing it away. */
export function createProbeImageActions({
  probeImages,
  evictor,
  cache,
}: Pick<Parts, 'probeImages' | 'evictor' | 'cache'>): Pick<AdminActions, 'offerProbeImage' | 'endProbeImage'> {
  return {
    offerProbeImage() {
      const { id, repository, tag, image } = probeImages.offer()
      return { id, repository, tag, digest: image.digest }
    },
    async endProbeImage(id) {
      const probeImage = probeImages.end(id)
      if (!probeImage) return undefined
      // It went through the cache as any image does.
      await evictor.remove(
        [...probeImage.seen.keys()].map((host) => `${host}/${probeImage.repository}`),
        false,
      )
      cache.forget()
      return { seen: Object.fromEntries(probeImage.seen) }
    },
  }
}
