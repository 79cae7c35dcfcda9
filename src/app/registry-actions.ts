import type { RegistryKeeper } from '../registry/registry-keeper.ts'
import type { RegistryActions } from '../server/admin-registry.ts'

/** What the admin listener, and the commands while no mirror runs, can have done with what was pushed. */
export function createRegistryActions(keeper: RegistryKeeper): RegistryActions {
  return {
    list: () => keeper.list().map((image) => ({ ...image, pushedAt: new Date(image.pushedAt).toISOString() })),
    remove: ({ names, dryRun }) => keeper.remove(names, dryRun),
    gc: (how) => keeper.gc(how),
    prune: (how) => keeper.prune({ ...how, repository: how.repository }),
  }
}
