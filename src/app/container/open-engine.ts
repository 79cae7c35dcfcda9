import { networkInterfaces } from 'node:os'
import type { Surroundings } from '../../config/paths.ts'
import { MirrorError, exitCode } from '../../lib/errors.ts'
import type { ContainerEngine } from '../../runtime/container-engine.ts'
import { findDockerChoice, findDockerEndpoint, type DockerEndpoint } from '../../runtime/docker-endpoint.ts'
import { openContainerEngine } from '../../runtime/dockerode-container-engine.ts'
import { isLoopbackAddress } from '../../server/host-guard.ts'

/** The engine that `docker` would speak to. Throws a MirrorError (exit 4) where there is none that a mirror can live in. */
export async function openEngine({ platform, env, homedir }: Surroundings): Promise<ContainerEngine> {
  const endpoint = await findDockerEndpoint({ platform, env, homedir })
  if (endpoint === undefined) throw await unreachable({ env, homedir })
  refuseRemote(endpoint)
  return openContainerEngine(endpoint)
}

/** Why there is no address that could be spoken to. */
async function unreachable(input: Pick<Surroundings, 'env' | 'homedir'>): Promise<MirrorError> {
  const { by = 'Nothing', host } = (await findDockerChoice(input)) ?? {}
  if (host === undefined)
    return new MirrorError(`${by} is not there.`, {
      exit: exitCode.missing,
      hints: ['docker context ls', 'DOCKER_CONTEXT=default mirror up …'],
    })
  if (!host.startsWith('ssh:'))
    return new MirrorError(`${by} names no address of a Docker engine: unix://, npipe:// or tcp://.`, {
      exit: exitCode.missing,
      hints: ['docker context inspect', 'DOCKER_HOST=unix:///var/run/docker.sock mirror up …'],
    })
  return new MirrorError(
    `${by} is an engine on another machine, reached over ssh: a mirror there is published on its loopback only.`,
    { exit: exitCode.missing, hints: onThatMachine },
  )
}

/** Its ports would be published on that machine's loopback, where neither this command nor any client here reaches them. */
function refuseRemote(endpoint: DockerEndpoint): void {
  if (endpoint.kind === 'socket' || isOurs(endpoint.host)) return
  throw new MirrorError(
    `The Docker engine at ${endpoint.host} is another machine's: a mirror there is published on its loopback only.`,
    { exit: exitCode.missing, hints: onThatMachine },
  )
}

const onThatMachine = [
  'mirror up --runtime container   (on that machine itself)',
  'mirror up --runtime process   (as a plain process, here)',
]

function isOurs(host: string): boolean {
  const addresses = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? [])
  return host === 'localhost' || isLoopbackAddress(host) || addresses.some(({ address }) => address === host)
}
