import { createEvictor } from '../cache/evict.ts'
import type { Config } from '../config/config.ts'
import { cacheRoot, type MirrorPaths, registryRoot } from '../config/paths.ts'
import { silentLogger } from '../lib/logger.ts'
import { systemClock } from '../lib/time.ts'
import { createRegistryMaintenance } from '../registry/maintenance.ts'
import { openPushedStore } from '../registry/repositories.ts'
import { openStore } from '../store/open-store.ts'
import { verifyStore } from '../store/verify.ts'
import type { CacheAccess, RegistryAccess } from './api.ts'
import { createRegistryActions, damagedReports, imageReports } from './status.ts'

/** The cache on the disk, while no mirror runs. */
export async function openStoredCache({ cache }: Config, paths: MirrorPaths): Promise<Omit<CacheAccess, 'naming'>> {
  const common = { logger: silentLogger, clock: systemClock }
  const store = await openStore({
    root: cacheRoot(paths),
    verifyReads: cache.verifyReads,
    minFree: cache.minFree,
    ...common,
  })
  const evictor = createEvictor({
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
    remove: (names, dryRun) => evictor.remove(names, dryRun),
    prune: (dryRun) => evictor.evict({ dryRun, isAsked: true }),
    async *verify(quarantine, signal) {
      for await (const state of verifyStore(store, { quarantine, signal }))
        yield { ...state, damaged: [...state.damaged], done: state.checked === state.total }
    },
    async close() {
      await evictor.close()
      await store.close()
    },
  }
}

/** What was pushed, on the disk, while no mirror runs. */
export async function openStoredRegistry(
  { cache }: Config,
  paths: MirrorPaths,
): Promise<Omit<RegistryAccess, 'naming'>> {
  const common = { logger: silentLogger, clock: systemClock }
  const store = await openPushedStore({ root: registryRoot(paths), minFree: cache.minFree, ...common })
  const maintenance = createRegistryMaintenance({ store, ...common })
  const actions = createRegistryActions(maintenance)
  return {
    list: () => actions.list(),
    damaged: () => Promise.resolve(damagedReports(store.repositories)),
    remove: (names, dryRun) => actions.remove({ names, dryRun }),
    gc: (how) => actions.gc(how),
    prune: (how) => actions.prune(how),
    async close() {
      await maintenance.close()
      await store.close()
    },
  }
}
