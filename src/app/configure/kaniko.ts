import { planKaniko } from '../../clients/printed.ts'
import { kindNetworkName } from '../../docker/engine.ts'
import type { ClientAdapter, ClientOptions, Machine } from '../../clients/types.ts'
import { dockerNetworkHome } from './docker-network-home.ts'
import { printedPlace } from './printed-place.ts'

/** kaniko, which runs in containers: of a cluster of kind, as far as can be known. */
export const kanikoAdapter: ClientAdapter = {
  client: 'kaniko',
  summary: 'kaniko: flags, environment, and a Pod that has them',

  // It is an image; it is never installed.
  async find() {
    return undefined
  },

  async places(machine, options) {
    return [placeFor(machine, options)]
  },

  recall: (machine) => placeFor(machine, {}),
}

function placeFor(machine: Machine, { clientVersion }: Partial<ClientOptions>) {
  const home = dockerNetworkHome(machine, 'kaniko containers', kindNetworkName(machine.env))
  return printedPlace(home, (mirror) => planKaniko(mirror, clientVersion))
}
