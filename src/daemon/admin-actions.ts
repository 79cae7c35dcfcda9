import type { AdminActions } from '../admin/handler.ts'
import type { Parts } from './compose.ts'

/** Offering an image by which a client proves that it comes here, and clearing it away. */
export function createCanaryActions({
  canaries,
  sweeper,
  cache,
}: Pick<Parts, 'canaries' | 'sweeper' | 'cache'>): Pick<AdminActions, 'offerCanary' | 'endCanary'> {
  return {
    offerCanary() {
      const { id, repository, tag, image } = canaries.offer()
      return { id, repository, tag, digest: image.digest }
    },
    async endCanary(id) {
      const canary = canaries.end(id)
      if (!canary) return undefined
      // It went through the cache as any image does.
      await sweeper.remove(
        [...canary.seen.keys()].map((host) => `${host}/${canary.repository}`),
        false,
      )
      cache.forget()
      return { seen: Object.fromEntries(canary.seen) }
    },
  }
}
