import type { Surroundings } from '../config/paths.ts'
import type { ImageReport, RemovalReport, VerifyProgress } from '../admin/api.ts'
import { adminHere } from './mirror-status.ts'
import { runningOrStored } from './running-or-stored.ts'
import { configuredNaming, ownAddresses, type Naming } from '../admin/names.ts'

/** What is cached, whether or not a mirror runs. */
export interface CacheAccess {
  /** How its users name what is in it. */
  readonly naming: Omit<Naming, 'images'>
  list(): Promise<ImageReport[]>
  remove(names: string[], dryRun: boolean): Promise<RemovalReport>
  /** Evicts to the configured limits. */
  prune(dryRun: boolean): Promise<RemovalReport>
  /** Hashes everything. `quarantine`: damaged content is moved aside, so that it is fetched again. */
  verify(quarantine: boolean, signal: AbortSignal): AsyncIterable<VerifyProgress>
  close(): Promise<void>
}

export function openCacheAccess(surroundings: Surroundings): Promise<CacheAccess> {
  return runningOrStored<CacheAccess>(surroundings, {
    async running(here) {
      const admin = adminHere(here)
      const { cache, networks } = here.running.endpoints
      return {
        naming: await cacheNaming(surroundings, [...cache, ...Object.values(networks)]),
        list: async () => (await admin.status()).images,
        remove: (names, dryRun) => admin.remove({ names, dryRun }),
        prune: (dryRun) => admin.prune({ dryRun }),
        verify: (quarantine, signal) => admin.verify({ quarantine }, signal),
        async close() {},
      }
    },
    async stored(config, paths) {
      // Only this way needs the store's code.
      const { openStoredCache } = await import('../admin/offline.ts')
      return { ...(await openStoredCache(config, paths)), naming: await cacheNaming(surroundings, []) }
    },
  })
}

async function cacheNaming(surroundings: Surroundings, urls: string[]): Promise<Omit<Naming, 'images'>> {
  const config = await configuredNaming(surroundings)
  return {
    isOurs: ownAddresses([...urls, ...config.cache], config.names),
    defaultUpstream: config.defaultUpstream,
  }
}
