import type { Surroundings } from '../../config/paths.ts'
import type { LogRequest } from '../../runtime/docker-containers.ts'
import { openEngine } from './open-engine.ts'

/** The log of a mirror in a container, a line at a time, as the engine keeps it. */
export async function* containerLogs(
  surroundings: Surroundings,
  container: string,
  request: LogRequest,
): AsyncGenerator<string> {
  const { containers } = await openEngine(surroundings)
  yield* containers.logs(container, request)
}
