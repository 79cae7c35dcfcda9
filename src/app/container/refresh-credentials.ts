import { loadConfig } from '../../config/load.ts'
import { mirrorPaths, type Surroundings } from '../../config/paths.ts'
import type { Clock } from '../../lib/time.ts'
import { findOurs } from '../../runtime/find-ours.ts'
import { dataFolder, instanceOf } from '../../daemon/container/spec.ts'
import { readState, writeState } from '../../admin/state.ts'
import { inWords } from '../../runtime/engine-words.ts'
import { handOver } from '../../daemon/container/handover.ts'
import { handedArchive } from './handed-archive.ts'
import { openEngine } from '../../docker/dockerode-engine.ts'
import { inTurnIfFree } from '../../daemon/container/lock.ts'
import { handedFiles } from './outside.ts'

/**
 * Hands over anew what was handed over at the start: the registries; undefined when no container's mirror runs. Throws a
 * MirrorError when a credential cannot be had; the old ones stay then.
 */
export async function refreshCredentials(surroundings: Surroundings, clock: Clock): Promise<string[] | undefined> {
  const paths = mirrorPaths(surroundings)
  const state = await readState(paths.stateFile)
  if (state?.container === undefined) return undefined
  const { credentials } = state.container
  if (credentials.length === 0) return []
  const engine = await openEngine(surroundings, state.container.engine)
  const found = await findOurs(engine, paths.stateDir)
  if (found === undefined) return undefined
  const config = await loadConfig({ ...surroundings, paths })
  const text = await handOver(credentials, config, surroundings.env, clock)
  const archive = await handedArchive({
    files: { [handedFiles.credentials]: text },
    instance: instanceOf(found) ?? '',
    token: undefined,
    user: found.user,
  })
  await inWords(
    'The container cannot be given the credentials',
    engine.containers.unpack(found.id, dataFolder, archive),
  )
  const handedOverAt = new Date(clock.wall()).toISOString()
  // Helpers take a while: another command may have ended or replaced the mirror since, or be at it. That one hands over itself.
  await inTurnIfFree({ stateDir: paths.stateDir, clock }, async () => {
    const now = await readState(paths.stateFile)
    if (now?.container?.id === state.container?.id && now?.container)
      await writeState(paths.stateFile, { ...now, container: { ...now.container, handedOverAt } })
  })
  return credentials
}
