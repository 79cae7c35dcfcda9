import { containerName, nameBefore } from './container-spec.ts'
import type { ContainerEngine } from './container-engine.ts'
import { inWords, orRefused } from './engine-words.ts'
import { findOurs } from './find-ours.ts'

/**
 * Tidies up after an `up` that was cut off while it replaced the container: what was put aside is the mirror again, unless its
 * successor is `settled`, the container that was noted down as the mirror. It is started again where that can be.
 */
export async function mendCutOff(engine: ContainerEngine, owner: string, settled: string | undefined): Promise<void> {
  const { containers } = engine
  const before = await findOurs(engine, owner, nameBefore)
  if (before === undefined) return
  const successor = await findOurs(engine, owner)
  const remove = (id: string) => inWords('A container that was left over cannot be removed', containers.remove(id))
  if (successor !== undefined && successor.id === settled) return remove(before.id)
  if (successor !== undefined) await remove(successor.id)
  await inWords('The container cannot have its name back', containers.rename(before.id, containerName))
  await orRefused(containers.start(before.id))
}
