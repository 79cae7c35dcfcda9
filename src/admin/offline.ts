import type { CacheAccess } from '../app/cache-access.ts'
import { cacheRoot } from '../app/compose.ts'
import { createSweeper } from '../cache/evict.ts'
import type { Config } from '../config/config.ts'
import type { MirrorPaths } from '../config/paths.ts'
import { silentLogger } from '../lib/logger.ts'
import { systemClock } from '../lib/time.ts'
import { openStore } from '../store/open-store.ts'
import { verifyStore } from '../store/verify.ts'
import { imageReports } from './status.ts'

/** The cache on the disk, while no mirror runs. */
export async function openStoredCache({ cache }: Config, paths: MirrorPaths): Promise<Omit<CacheAccess, 'naming'>> {
  const common = { logger: silentLogger, clock: systemClock }
  const store = await openStore({
    root: cacheRoot(paths),
    verifyReads: cache.verifyReads,
    minFree: cache.minFree,
    ...common,
  })
  const sweeper = createSweeper({
    store,
    limits: { maxSize: cache.maxSize, maxAge: cache.maxAge, minFree: cache.minFree },
    isInUse: () => false,
    ...common,
  })
  return {
    async list() {
      await store.blobs.ready
      return imageReports({ store })
    },
    remove: (names, dryRun) => sweeper.remove(names, dryRun),
    prune: (dryRun) => sweeper.sweep({ dryRun, isAsked: true }),
    async *verify(quarantine, signal) {
      for await (const state of verifyStore(store, { quarantine, signal }))
        yield { ...state, damaged: [...state.damaged], done: state.checked === state.total }
    },
    async close() {
      await sweeper.close()
      await store.close()
    },
  }
}
