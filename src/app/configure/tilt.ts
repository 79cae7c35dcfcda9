import { planTilt } from '../../clients/tilt.ts'
import type { ClientAdapter } from '../../clients/types.ts'
import { printedPlace } from './printed-place.ts'
import { versionOf } from './version-of.ts'

/** tilt, which pushes from this machine. */
export const tiltAdapter: ClientAdapter = {
  client: 'tilt',
  summary: 'tilt: the registry to push to',

  async find(machine) {
    const version = await versionOf(machine, 'tilt', 'version')
    return version && `tilt ${version}`
  },

  async places() {
    return [printedPlace({ in: 'host' }, planTilt)]
  },

  recall: () => printedPlace({ in: 'host' }, planTilt),
}
