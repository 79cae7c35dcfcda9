import type { ContainerEngine, ContainerState } from '../docker/engine.ts'
import { MirrorError } from '../lib/errors.ts'
import type { Clock } from '../lib/time.ts'
import { awaitContainer } from '../daemon/container/stop.ts'
import { adminPortOf, containerName } from '../daemon/container/spec.ts'

/**
 * Has a container of ours that was stopped, and perhaps put aside, be the mirror again. What has interrupted its successor does
 * not interrupt this. Throws a MirrorError, or a DockerError, when it cannot be.
 */
export async function startAgain(engine: ContainerEngine, id: string, clock: Clock): Promise<ContainerState> {
  const { containers } = engine
  const before = await containers.find(id)
  if (before === undefined) throw new MirrorError('It is gone.')
  if (before.name !== containerName) await containers.rename(id, containerName)
  await containers.start(id)
  const admin = adminPortOf(before)
  if (admin === undefined) return (await containers.find(id)) ?? before
  return awaitContainer(engine, { id, admin, clock, signal: new AbortController().signal })
}
