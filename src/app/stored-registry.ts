import type { Config } from '../config/config.ts'
import type { MirrorPaths } from '../config/paths.ts'
import { systemClock } from '../lib/time.ts'
import { silentLogger } from '../lib/logger.ts'
import { createRegistryKeeper } from '../registry/maintenance.ts'
import { openPushedStore } from '../registry/repositories.ts'
import { registryRoot } from './compose-registry.ts'
import type { RegistryAccess } from '../admin/access.ts'
import { createRegistryActions, damagedReports } from './registry-actions.ts'

/** What was pushed, on the disk, while no mirror runs. */
export async function openStoredRegistry(
  { cache }: Config,
  paths: MirrorPaths,
): Promise<Omit<RegistryAccess, 'naming'>> {
  const common = { logger: silentLogger, clock: systemClock }
  const store = await openPushedStore({ root: registryRoot(paths), minFree: cache.minFree, ...common })
  const keeper = createRegistryKeeper({ store, ...common })
  const actions = createRegistryActions(keeper)
  return {
    list: () => actions.list(),
    damaged: () => Promise.resolve(damagedReports(store.repositories)),
    remove: (names, dryRun) => actions.remove({ names, dryRun }),
    gc: (how) => actions.gc(how),
    prune: (how) => actions.prune(how),
    async close() {
      await keeper.close()
      await store.close()
    },
  }
}
