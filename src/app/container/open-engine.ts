import type { Surroundings } from '../../config/paths.ts'
import { MirrorError, exitCode } from '../../lib/errors.ts'
import type { ContainerEngine } from '../../runtime/container-engine.ts'
import { findDockerChoice, findDockerEndpoint, type DockerEndpoint } from '../../docker/endpoint.ts'
import { openContainerEngine } from '../../runtime/dockerode-container-engine.ts'

/**
 * The engine that was noted down; without a note the one that `docker` would speak to. Throws a MirrorError (exit 4) where it
 * cannot be asked.
 */
export async function openEngine(surroundings: Surroundings, noted?: DockerEndpoint): Promise<ContainerEngine> {
  return openContainerEngine(noted ?? (await chosenEndpoint(surroundings)))
}

async function chosenEndpoint({ platform, env, homedir }: Surroundings): Promise<DockerEndpoint> {
  const endpoint = await findDockerEndpoint({ platform, env, homedir })
  if (endpoint !== undefined) return endpoint
  const { by = 'Nothing', host } = (await findDockerChoice({ env, homedir })) ?? {}
  if (host === undefined)
    throw new MirrorError(`${by} is not there.`, {
      exit: exitCode.missing,
      hints: ['docker context ls', 'DOCKER_CONTEXT=default mirror up …'],
    })
  const forms = 'unix://, npipe://, tcp:// or ssh://[user@]host[:port]'
  throw new MirrorError(`${by} names no address of a Docker engine: ${forms}.`, {
    exit: exitCode.missing,
    hints: ['docker context inspect', 'DOCKER_HOST=unix:///var/run/docker.sock mirror up …'],
  })
}
