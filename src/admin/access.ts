import { adminHere } from '../app/mirror-status.ts'
import { runningOrStored } from '../app/running-or-stored.ts'
import type { Surroundings } from '../config/paths.ts'
import type {
  DamagedRepositoryReport,
  PushedImageReport,
  RegistryGcRequest,
  RegistryPruneRequest,
  RemovalReport,
} from './api.ts'
import { configuredNaming, type Naming, ownAddresses } from './names.ts'

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
      const { openStoredRegistry } = await import('../app/stored-registry.ts')
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
