import type { ContainerPlace, MirrorState } from '../../admin/state.ts'
import { startAgain } from '../../runtime/start-again.ts'
import { stopContainer } from '../../runtime/stop-container.ts'
import { inWords } from '../../runtime/engine-words.ts'
import type { WayBack, WayBackRequest } from '../way-back.ts'
import { noteAgain } from './note-again.ts'
import { openEngine } from '../../docker/dockerode-engine.ts'

/** Back to a mirror in a container: it is only stopped until its successor is up. */
export async function containerWayBack(
  before: MirrorState,
  { id, engine: noted }: ContainerPlace,
  { paths, surroundings, clock }: WayBackRequest,
): Promise<WayBack> {
  const engine = await openEngine(surroundings, noted)
  const ports = (await engine.containers.find(id))?.ports ?? []
  return {
    leave: () => stopContainer(engine, id),
    async goBack() {
      const container = await startAgain(engine, id, clock)
      await noteAgain(engine, paths, { container, before, ports })
    },
    forget: () => inWords('The container of the mirror before cannot be removed', engine.containers.remove(id)),
  }
}
