import { planSkaffold } from '../../clients/skaffold.ts'
import type { ClientAdapter } from '../../clients/types.ts'
import { printedPlace } from './printed-place.ts'
import { versionOf } from './version-of.ts'

/** skaffold, which pushes from this machine. */
export const skaffoldAdapter: ClientAdapter = {
  client: 'skaffold',
  summary: 'skaffold: the registry to push to',

  async find(machine) {
    const version = await versionOf(machine, 'skaffold', 'version')
    return version && `skaffold ${version}`
  },

  async places() {
    return [printedPlace({ in: 'host' }, planSkaffold)]
  },

  recall: () => printedPlace({ in: 'host' }, planSkaffold),
}
