import type { Surroundings } from '../../config/paths.ts'
import { MirrorError, exitCode } from '../../lib/errors.ts'
import type { ContainerEngine } from '../../runtime/container-engine.ts'
import { findDockerEndpoint, type DockerEndpoint } from '../../runtime/docker-endpoint.ts'
import { openContainerEngine } from '../../runtime/dockerode-container-engine.ts'
import { isLoopbackAddress } from '../../server/host-guard.ts'

/** The engine that `docker` would speak to. Throws a MirrorError (exit 4) where there is none that a mirror can live in. */
export async function openEngine({ platform, env, homedir }: Surroundings): Promise<ContainerEngine> {
  const endpoint = await findDockerEndpoint({ platform, env, homedir })
  if (endpoint === undefined)
    throw new MirrorError(
      'The Docker engine of this context is reached over ssh, which only the docker command speaks.',
      {
        exit: exitCode.missing,
        hints: ['mirror up --runtime container   (on that machine itself)', 'DOCKER_CONTEXT=default mirror up …'],
      },
    )
  refuseRemote(endpoint)
  return openContainerEngine(endpoint)
}

/** Its ports would be published on that machine's loopback, where neither this command nor any client here reaches them. */
function refuseRemote(endpoint: DockerEndpoint): void {
  if (endpoint.kind === 'socket' || endpoint.host === 'localhost' || isLoopbackAddress(endpoint.host)) return
  throw new MirrorError(
    `The Docker engine at ${endpoint.host} is another machine's: a mirror there is published on its loopback only.`,
    {
      exit: exitCode.missing,
      hints: [
        'mirror up --runtime container   (on that machine itself)',
        'mirror up --runtime process   (as a plain process, here)',
      ],
    },
  )
}
