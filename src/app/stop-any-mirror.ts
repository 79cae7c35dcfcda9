import { MirrorError } from '../lib/errors.ts'
import { findDockerEndpoint } from '../runtime/docker-endpoint.ts'
import { containerName, nameBefore, ownerOf } from '../runtime/container-spec.ts'
import { openContainerEngine } from '../runtime/dockerode-container-engine.ts'
import { removeContainer } from '../runtime/container.ts'
import { stopMirror, type StopRequest, type StoppedMirror } from './stop-mirror.ts'

/**
 * Ends the running mirror; where nothing has noted that one runs, a container of ours all the same: one that was stopped by
 * hand, or whose note was lost. Undefined when there was none.
 */
export async function stopAnyMirror(request: StopRequest): Promise<StoppedMirror | undefined> {
  const stopped = await stopMirror(request)
  if (stopped !== undefined) return stopped
  const endpoint = await findDockerEndpoint(request.surroundings)
  if (endpoint === undefined) return undefined
  try {
    const engine = await openContainerEngine(endpoint)
    const names = [containerName, nameBefore]
    const found = await Promise.all(names.map((name) => engine.containers.find(name)))
    const ours = found.filter((container) => container && ownerOf(container) === request.paths.stateDir)
    for (const container of ours) await removeContainer(engine, container!.id)
    return ours.length === 0 ? undefined : { container: containerName, killed: false }
  } catch (error) {
    // Where no engine is there is no container.
    if (error instanceof MirrorError) return undefined
    throw error
  }
}
