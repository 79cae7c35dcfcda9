import type { ContainerEngine, ContainerState } from '../docker/engine.ts'
import { removeMade } from '../daemon/container/image.ts'
import type { ContainerOrder } from './container-order.ts'
import { containerName, nameBefore } from '../daemon/container/spec.ts'
import { inWords, orRefused } from './engine-words.ts'
import { findOurs } from './find-ours.ts'
import { startAgain } from './start-again.ts'
import { stopContainer } from './stop-container.ts'
import { withAftermath } from './with-aftermath.ts'

/**
 * Has a new container in place of ours. The old one is stopped, for only one of them can have the store and the ports, and put
 * aside under another name until its successor has proved itself; otherwise it is put back as it was.
 */
export async function replaceContainer(
  engine: ContainerEngine,
  order: ContainerOrder,
  make: () => Promise<ContainerState>,
): Promise<ContainerState> {
  // Looked at again: making an image may have taken minutes, and the name may be somebody else's by now.
  const before = await findOurs(engine, order.wish.owner)
  if (before === undefined) return make()
  const { id } = before
  const { signal } = order
  signal.throwIfAborted()
  let made: ContainerState
  try {
    await stopContainer(engine, id)
    await inWords('The container cannot be put aside', engine.containers.rename(id, nameBefore))
    signal.throwIfAborted()
    made = await make()
  } catch (error) {
    const refusal = await orRefused(putBack(engine, before, order))
    throw isUp(before) ? withAftermath(error, { refusal, signal }) : error
  }
  // Should it stay, the next `up` or `down` removes it.
  await orRefused(engine.containers.remove(id))
  if (before.image !== made.image) await orRefused(removeMade(engine, before.image))
  return made
}

async function putBack(engine: ContainerEngine, before: ContainerState, order: ContainerOrder): Promise<void> {
  const { id } = before
  if (isUp(before)) return order.putBack(await startAgain(engine, id, order.clock))
  const now = await engine.containers.find(id)
  if (now !== undefined && now.name !== containerName) await engine.containers.rename(id, containerName)
}

/** One that somebody has stopped is not started by a failure. */
function isUp({ running, restarting }: ContainerState): boolean {
  return running || restarting
}
