import type { Config } from '../config/config.ts'
import { loadConfig } from '../config/load.ts'
import { mirrorPaths, type MirrorPaths, type Surroundings } from '../config/paths.ts'
import type {
  DamagedRepositoryReport,
  ImageReport,
  PushedImageReport,
  RegistryGcRequest,
  RegistryPruneRequest,
  RemovalReport,
  VerifyProgress,
} from './api.ts'
import { findMirrorHere, type MirrorHere } from './find-mirror.ts'
import { configuredNaming, type Naming, ownAddresses } from './names.ts'
import { refuseResting } from './state.ts'
import { adminHere } from './status.ts'
import { refuseOthersPlaces } from './sudo.ts'

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
      const { openStoredCache } = await import('./offline.ts')
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

/** What was pushed, whether or not a mirror runs. */
export interface RegistryAccess {
  /** How its users name what is in it. */
  readonly naming: Omit<Naming, 'images'>
  list(): Promise<PushedImageReport[]>
  /** The repositories whose record is damaged. */
  damaged(): Promise<DamagedRepositoryReport[]>
  remove(names: string[], dryRun: boolean): Promise<RemovalReport>
  /** Removes what nothing leads to. */
  gc(how: RegistryGcRequest): Promise<RemovalReport>
  /** Removes old tags with their images. */
  prune(how: RegistryPruneRequest): Promise<RemovalReport>
  close(): Promise<void>
}

export function openRegistryAccess(surroundings: Surroundings): Promise<RegistryAccess> {
  return runningOrStored<RegistryAccess>(surroundings, {
    async running(here) {
      const admin = adminHere(here)
      const { registry, networks } = here.running.endpoints
      return {
        // On a network it has the port that it has elsewhere.
        naming: await registryNaming(surroundings, registry, Object.values(networks)),
        list: () => admin.pushedImages(),
        damaged: async () => (await admin.status()).registry.damaged ?? [],
        remove: (names, dryRun) => admin.removePushed({ names, dryRun }),
        gc: (how) => admin.collectPushed(how),
        prune: (how) => admin.prunePushed(how),
        async close() {},
      }
    },
    async stored(config, paths) {
      // Only this way needs the store's code.
      const { openStoredRegistry } = await import('./offline.ts')
      return { ...(await openStoredRegistry(config, paths)), naming: await registryNaming(surroundings, []) }
    },
  })
}

async function registryNaming(
  surroundings: Surroundings,
  urls: string[],
  networks: string[] = [],
): Promise<Omit<Naming, 'images'>> {
  const config = await configuredNaming(surroundings)
  const names = [...config.names, ...networks.map((url) => new URL(url).hostname)]
  return { isOurs: ownAddresses([...urls, ...config.registry], names), defaultUpstream: undefined }
}

/** By the running mirror, which alone may write to its stores; by the stores themselves when none runs. */
export async function runningOrStored<T>(
  surroundings: Surroundings,
  ways: {
    readonly running: (here: MirrorHere) => Promise<T>
    readonly stored: (config: Config, paths: MirrorPaths) => Promise<T>
  },
): Promise<T> {
  const here = await findMirrorHere(surroundings)
  if (here !== undefined) return ways.running(here)
  const paths = mirrorPaths(surroundings)
  refuseOthersPlaces(surroundings)
  await refuseResting(paths.stateDir)
  return ways.stored(await loadConfig({ ...surroundings, paths }), paths)
}
