import { join } from 'node:path'
import type { ClientHome } from '../../clients/address.ts'
import { planTestcontainers } from '../../clients/testcontainers.ts'
import { isThere } from '../../lib/fs.ts'
import type { ClientAdapter, Machine } from '../../clients/types.ts'
import { printedPlace } from './printed-place.ts'

/** Testcontainers, in whatever language. */
export const testcontainersAdapter: ClientAdapter = {
  client: 'testcontainers',
  summary: 'Testcontainers: an environment variable',

  async find({ home }) {
    return (await isThere(join(home, '.testcontainers.properties'))) ? 'testcontainers' : undefined
  },

  async places(machine) {
    return [printedPlace(engineHome(machine), planTestcontainers)]
  },

  recall: (machine) => printedPlace(engineHome(machine), planTestcontainers),
}

/** It is the Docker engine that pulls. */
function engineHome({ platform }: Machine): ClientHome {
  if (platform === 'linux') return { in: 'host' }
  return { in: 'vm', what: 'the Docker engine', hostName: 'host.docker.internal' }
}
