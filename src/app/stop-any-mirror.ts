import { readState, removeState, restingEngine } from '../admin/state.ts'
import { openEngine } from '../docker/dockerode-engine.ts'
import type { ContainerEngine } from '../docker/engine.ts'
import { MirrorError } from '../lib/errors.ts'
import { containerName, nameBefore, ownerOf } from '../runtime/container-spec.ts'
import { removeContainer } from '../runtime/container.ts'
import { whereItRan } from './container/where-it-ran.ts'
import { stopMirror, type StoppedMirror, type StopRequest } from '../daemon/stop.ts'

/**
 * Ends the running mirror; where nothing has noted that one runs, a container of ours all the same: one that was stopped by
 * hand, or whose note was lost. Undefined when there was none. Throws a MirrorError (exit 4) when one was noted and its engine
 * cannot be asked.
 */
export async function stopAnyMirror(request: StopRequest): Promise<StoppedMirror | undefined> {
  const stopped = await stopMirror(request)
  if (stopped !== undefined) return stopped
  const { paths, surroundings } = request
  const state = await readState(paths.stateFile)
  // Of one that died: its user knows now that it runs no more.
  if (state !== undefined && state.container === undefined) await removeState(paths.stateFile, state.pid)
  const noted = state?.container
  let engine: ContainerEngine
  try {
    engine = await openEngine(surroundings, noted?.engine ?? (await restingEngine(paths.stateDir)))
  } catch (error) {
    // It comes back with its engine.
    if (noted !== undefined) throw whereItRan(error)
    // Where no engine is there is no container.
    if (error instanceof MirrorError) return undefined
    throw error
  }
  const found = await Promise.all([containerName, nameBefore].map((name) => engine.containers.find(name)))
  const ours = found.filter((container) => container && ownerOf(container) === paths.stateDir)
  for (const container of ours) await removeContainer(engine, container!.id)
  if (noted !== undefined) await removeState(paths.stateFile, 0)
  return ours.length === 0 ? undefined : { container: containerName, volume: noted?.volume, killed: false }
}
