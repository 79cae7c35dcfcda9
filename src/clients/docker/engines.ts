import { realpath } from 'node:fs/promises'
import { join } from 'node:path'
import { createDockerodeEngine } from '../../docker/dockerode.ts'
import { type DockerEndpoint, findDockerEndpoint, hostOf } from '../../docker/endpoint.ts'
import type { DockerEngineInfo } from '../../docker/engine.ts'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { ifVisible } from '../../lib/fs.ts'
import { type DockerdProcess, findDockerd } from '../../runtime/dockerd-process.ts'
import type { Machine } from '../types.ts'

/** Where `docker` looks when nothing else was chosen. */
export const usualSocket = '/var/run/docker.sock'

type EngineMachine = Pick<Machine, 'platform' | 'env' | 'home'>

/** An engine that answers. */
export interface FoundEngine {
  readonly endpoint: DockerEndpoint
  readonly info: DockerEngineInfo
  /** Undefined when it does not run beside us, or could not be told from others. */
  readonly dockerd: DockerdProcess | undefined
}

/**
 * The engine that the `docker` command speaks to and, where nothing else was chosen, those at the other usual sockets. Throws a
 * MirrorError (missing) for one on another machine, whose files are not here.
 */
export async function findEngines(machine: EngineMachine): Promise<FoundEngine[]> {
  const engines = await Promise.all((await endpointsOf(machine)).map(lookAt))
  return engines.filter((engine) => engine !== undefined)
}

/** Whether one of this machine answers. */
export async function hasEngine(machine: EngineMachine): Promise<boolean> {
  try {
    return (await findEngines(machine)).length > 0
  } catch (error) {
    if (error instanceof MirrorError) return false
    throw error
  }
}

async function lookAt(endpoint: DockerEndpoint): Promise<FoundEngine | undefined> {
  const info = await createDockerodeEngine(endpoint).info()
  return info && !info.isPodman ? { endpoint, info, dockerd: await findDockerd(endpoint) } : undefined
}

async function endpointsOf({ platform, env, home }: EngineMachine): Promise<DockerEndpoint[]> {
  const chosen = await findDockerEndpoint({ platform, env, homedir: home })
  const isHere = chosen?.kind === 'socket' || (chosen?.kind === 'tcp' && /^(localhost|127\..*|::1)$/.test(chosen.host))
  if (!isHere) {
    const where = chosen === undefined ? 'a way that only docker itself knows' : hostOf(chosen)
    throw new MirrorError(`Docker's engine is reached by ${where}: its files are on another machine.`, {
      exit: exitCode.missing,
      hints: [
        'mirror configure docker --mirror URL   (on that machine)',
        'docker context use default   (for the engine of this one)',
      ],
    })
  }
  const isChosen = Boolean(env['DOCKER_HOST']) || chosen.kind === 'tcp' || chosen.path !== usualSocket
  if (isChosen || platform === 'win32') return [chosen]
  const others = [
    ...(env['XDG_RUNTIME_DIR'] ? [join(env['XDG_RUNTIME_DIR'], 'docker.sock')] : []),
    ...['.docker/desktop/docker.sock', '.docker/run/docker.sock', '.colima/default/docker.sock'].map((path) =>
      join(home, path),
    ),
    join(home, '.orbstack', 'run', 'docker.sock'),
  ]
  const sockets = new Map<string, string>()
  for (const path of [chosen.path, ...others]) {
    const real = await ifVisible(realpath(path))
    if (real !== undefined && !sockets.has(real)) sockets.set(real, path)
  }
  return [...sockets.values()].map((path) => ({ kind: 'socket', path }))
}
