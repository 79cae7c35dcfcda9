import { mirrorPaths, type Surroundings } from '../../config/paths.ts'
import { openEngine } from '../../docker/dockerode-engine.ts'
import { ensureNetworks, kindNetworkName } from '../../docker/engine.ts'
import { MirrorError } from '../../lib/errors.ts'
import type { Clock } from '../../lib/time.ts'
import { findRunning } from '../../admin/state.ts'
import { untilServed } from './until-served.ts'

/**
 * Makes kind's network where there is none yet, as kind itself would, and waits until the mirror, a plain process, serves it:
 * before the first cluster its gateway, the address that nodes shall use, does not exist. Throws MirrorError.
 */
export async function makeKindNetworkIfAbsent(surroundings: Surroundings, clock: Clock): Promise<void> {
  const { stateFile } = mirrorPaths(surroundings)
  const name = kindNetworkName(surroundings.env)
  const running = await findRunning(stateFile)
  if (running?.runtime !== 'process' || running.endpoints.networks[name] !== undefined) return
  const { networks, isElsewhere } = await openEngine(surroundings).catch(withoutOtherRuntime)
  // A network there has no gateway here that this mirror could listen on.
  if (isElsewhere) return
  if ((await networks.find(name)) === undefined) await ensureNetworks(networks, [name], surroundings.env)
  await untilServed(surroundings, name, clock)
}

/** The mirror is a plain process already: to make it one is no remedy. */
function withoutOtherRuntime(error: unknown): never {
  if (!(error instanceof MirrorError)) throw error
  const hints = error.hints.filter((hint) => !hint.includes('--runtime process'))
  throw new MirrorError(error.message, {
    exit: error.exit,
    hints: [...hints, 'Start Docker, then run this again'],
    cause: error,
  })
}
