import { forgetResting, type MirrorState, noteResting, writeState } from '../../admin/state.ts'
import type { MirrorPaths } from '../../config/paths.ts'
import type { ContainerEngine, ContainerState, PublishedPort } from '../../docker/engine.ts'
import { movePorts } from './move-ports.ts'
import { tellEndpoints } from './tell-endpoints.ts'

/** A container that is the mirror again, and what was noted down of it. */
export interface MirrorAgain {
  readonly container: ContainerState
  readonly before: MirrorState
  /** Where it was published. */
  readonly ports: readonly PublishedPort[]
}

/** Notes down that the container is the mirror again, and where it answers now: free ports may be other ones. */
export async function noteAgain(engine: ContainerEngine, paths: MirrorPaths, again: MirrorAgain): Promise<void> {
  const { container, before, ports } = again
  const endpoints = movePorts(before.endpoints, ports, container.ports)
  await tellEndpoints(engine, container, endpoints)
  await writeState(paths.stateFile, { ...before, endpoints })
  const volume = before.container?.volume
  if (volume === undefined) await forgetResting(paths.stateDir)
  else await noteResting(paths.stateDir, volume, engine.endpoint)
}
