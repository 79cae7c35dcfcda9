import type { RegistryKeeper } from '../registry/maintenance.ts'
import type { DamagedRepositoryReport } from '../admin/api.ts'
import type { RegistryActions } from '../server/admin-registry.ts'
import type { PushedRepositories } from '../registry/repositories.ts'

/** The repositories whose record is damaged. */
export function damagedReports({ damaged }: Pick<PushedRepositories, 'damaged'>): DamagedRepositoryReport[] {
  return damaged.map(({ name, path, original, reason, isServed }) => ({
    ...(name !== undefined && { repository: name }),
    path,
    original,
    reason,
    served: isServed,
  }))
}

/** What the admin listener, and the commands while no mirror runs, can have done with what was pushed. */
export function createRegistryActions(keeper: RegistryKeeper): RegistryActions {
  return {
    list: async () =>
      (await keeper.list()).map((image) => ({ ...image, pushedAt: new Date(image.pushedAt).toISOString() })),
    remove: ({ names, dryRun }) => keeper.remove(names, dryRun),
    gc: (how) => keeper.gc(how),
    prune: (how) => keeper.prune({ ...how, repository: how.repository }),
  }
}
