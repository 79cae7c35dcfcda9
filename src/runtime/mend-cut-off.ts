import type { Clock } from '../lib/time.ts'
import { removeContainer } from '../daemon/container/reconcile.ts'
import { containerName, nameBefore } from '../daemon/container/spec.ts'
import type { ContainerEngine } from '../docker/engine.ts'
import { inWords, orRefused } from './engine-words.ts'
import { findOurs } from './find-ours.ts'
import { startAgain } from './start-again.ts'

export interface CutOff {
  /** The folder on this machine whose mirror it is. */
  readonly owner: string
  /** The id of the container that was noted down as the mirror. */
  readonly settled: string | undefined
  readonly clock: Clock
}

/**
 * Tidies up after an `up` that was cut off while it replaced the container: what was put aside is the mirror again, unless its
 * successor was noted down already. It is started again where that can be.
 */
export async function mendCutOff(engine: ContainerEngine, { owner, settled, clock }: CutOff): Promise<void> {
  const { containers } = engine
  const before = await findOurs(engine, owner, nameBefore)
  if (before === undefined) return
  const successor = await findOurs(engine, owner)
  if (successor !== undefined && successor.id === settled) return removeContainer(engine, before.id)
  if (successor !== undefined) await removeContainer(engine, successor.id)
  await inWords('The container cannot have its name back', containers.rename(before.id, containerName))
  await orRefused(startAgain(engine, before.id, clock))
}
