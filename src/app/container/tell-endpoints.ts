import type { ContainerEngine, ContainerState } from '../../docker/engine.ts'
import { dataFolder, instanceOf } from '../../daemon/container/spec.ts'
import { inWords } from '../../runtime/engine-words.ts'
import type { Endpoints } from '../../admin/state.ts'
import { handedArchive } from './handed-archive.ts'
import { handedFiles } from './outside.ts'

/** Tells the mirror in a container where clients reach it; it is there to stay then. */
export async function tellEndpoints(
  { containers }: ContainerEngine,
  container: ContainerState,
  endpoints: Endpoints,
): Promise<void> {
  const files = { [handedFiles.endpoints]: JSON.stringify(endpoints) }
  const { id, user } = container
  const archive = await handedArchive({ files, instance: instanceOf(container) ?? '', token: undefined, user })
  await inWords('The container cannot be told its addresses', containers.unpack(id, dataFolder, archive))
}
