import { type MirrorState, readState, restingEngine } from '../../admin/state.ts'
import type { MirrorPaths } from '../../config/paths.ts'
import { type DockerEndpoint, hostOf, isElsewhere } from '../../docker/endpoint.ts'
import type { ContainerEngine } from '../../docker/engine.ts'
import { exitCode, MirrorError } from '../../lib/errors.ts'

/**
 * Throws a MirrorError (exit 2) when the mirror is on an engine of another machine than the one that is chosen now: a second one
 * would begin with nothing in it, and the first one would be forgotten. Names of this machine's own engines are not compared,
 * for one engine has several.
 */
export async function refuseOtherEngine(
  engine: Pick<ContainerEngine, 'endpoint' | 'isElsewhere'>,
  { stateFile, stateDir }: Pick<MirrorPaths, 'stateFile' | 'stateDir'>,
  { running, remembered }: { running: MirrorState | undefined; remembered: boolean },
): Promise<void> {
  // Asked for by its name, a container is made where Docker is now, whatever was there before.
  if (running === undefined && !remembered) return
  const noted = running
    ? running.container?.engine
    : ((await readState(stateFile))?.container?.engine ?? (await restingEngine(stateDir)))
  if (noted === undefined || hostOf(noted) === hostOf(engine.endpoint)) return
  if (!engine.isElsewhere && !isElsewhere(noted)) return
  const what = running === undefined ? 'The mirror ran in a container the last time,' : 'The mirror runs in a container'
  throw new MirrorError(`${what} on ${hostOf(noted)}, and Docker is at ${hostOf(engine.endpoint)} now.`, {
    exit: exitCode.usage,
    hints: [
      `${choosing(noted)} mirror up   (there)`,
      running === undefined
        ? 'mirror up --runtime container   (another one, with nothing in it yet)'
        : 'mirror down   (ends that one)',
    ],
  })
}

function choosing(endpoint: DockerEndpoint): string {
  const tlsFolder = endpoint.kind === 'tcp' ? endpoint.tlsFolder : undefined
  const tls = tlsFolder === undefined ? '' : ` DOCKER_TLS_VERIFY=1 DOCKER_CERT_PATH=${tlsFolder}`
  return `DOCKER_HOST=${hostOf(endpoint)}${tls}`
}
