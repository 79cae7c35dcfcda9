import type { Surroundings } from '../../config/paths.ts'
import type { LogRequest } from '../../docker/engine.ts'
import type { ContainerPlace } from '../../admin/state.ts'
import { openEngine } from '../../docker/dockerode-engine.ts'

/** The log of a mirror in a container, a line at a time, as the engine keeps it. */
export async function* containerLogs(
  surroundings: Surroundings,
  { id, engine }: ContainerPlace,
  request: LogRequest,
): AsyncGenerator<string> {
  const { containers } = await openEngine(surroundings, engine)
  yield* containers.logs(id, request)
}
