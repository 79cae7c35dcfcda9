import type { Surroundings } from '../../config/paths.ts'
import { MirrorError, exitCode } from '../../lib/errors.ts'
import { DockerError, type DockerNetworks } from '../../runtime/container-engine.ts'
import { kindNetworkName, makeKindNetwork } from '../../runtime/kind-network.ts'

/**
 * Sees that each network is there: kind's own is made when it is absent, others are not ours to make. Throws a MirrorError
 * (exit 2) for one that is missing.
 */
export async function ensureNetworks(
  networks: DockerNetworks,
  names: readonly string[],
  env: Surroundings['env'],
): Promise<void> {
  const kind = kindNetworkName(env)
  for (const name of names) {
    if ((await networks.find(name)) !== undefined) continue
    if (name !== kind) throw missing(name)
    try {
      await makeKindNetwork(networks, name)
    } catch (error) {
      if (!(error instanceof DockerError)) throw error
      throw new MirrorError(`The network ${name} cannot be made: ${error.message}.`, {
        hints: [`docker network create ${name}   (says more)`],
        cause: error,
      })
    }
  }
}

function missing(name: string): MirrorError {
  return new MirrorError(`There is no Docker network named ${name}, and it is not the mirror's to make.`, {
    exit: exitCode.usage,
    hints: [
      'docker network ls',
      `docker network create ${name}`,
      'mirror up again once it is there: nothing is restarted',
    ],
  })
}
