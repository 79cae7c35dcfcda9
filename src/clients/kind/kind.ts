import { findRunning } from '../../admin/state.ts'
import { mirrorPaths } from '../../config/paths.ts'
import { openEngine } from '../../docker/dockerode-engine.ts'
import { findDockerEndpoint } from '../../docker/endpoint.ts'
import { ensureNetworks, getKindNetworkName } from '../../docker/engine.ts'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import type { CommandEnvironment } from '../../lib/process.ts'
import { type Clock, systemClock } from '../../lib/time.ts'
import { getDockerNetworkLocation, getProgramVersion } from '../address.ts'
import { waitUntilServed } from '../find-mirror.ts'
import type { ClientAdapter, ClientLocation, Machine } from '../types.ts'
import { renderFailedClusterFile } from './cluster-file.ts'
import { openKindNodes, getKindProgram } from './nodes.ts'
import { createKindFilesTarget, resolveClusterFile } from './new-clusters.ts'
import { findKindCluster, createKindClusterTarget, restoreKindClusterTarget } from './running-cluster.ts'

/** Configures kind: a cluster file, or the nodes of a running cluster. https://kind.sigs.k8s.io */
export const kindAdapter: ClientAdapter = {
  client: 'kind',
  summary: 'kind: a cluster file, or the nodes of a running cluster',

  async find(machine) {
    const version = await getProgramVersion(machine, 'kind', 'version', '--quiet')
    return version && `kind ${version}`
  },

  async prepare(machine, { cluster }) {
    // Skip a running cluster, because it has its network.
    const usesDocker = machine.platform === 'linux' && getKindProgram(machine.env) === 'docker'
    if (machine.detached || cluster !== undefined || !usesDocker) return
    await ensureKindNetwork({ ...machine, homedir: machine.home }, systemClock)
  },

  async findTargets(machine, { file, cluster }) {
    const program = getKindProgram(machine.env)
    const nodes = openKindNodes(machine, program)
    const location = getKindLocation(machine)
    if (cluster === undefined) {
      if (!machine.detached) await refuseRemote(machine)
      return [createKindFilesTarget(machine, nodes, resolveClusterFile(machine, file), location)]
    }
    if (machine.detached || file !== undefined)
      throw new MirrorError(`--cluster configures running nodes, so --root and --file do not apply.`, {
        exit: exitCode.usage,
        hints: [`mirror configure kind --cluster ${cluster}`],
      })
    return [createKindClusterTarget(nodes, await findKindCluster(nodes, cluster), location)]
  },

  renderFailure: ({ reason, isCluster }) => (isCluster ? undefined : renderFailedClusterFile(reason)),

  restoreTarget(machine, details) {
    if (details['cluster'] !== undefined) return restoreKindClusterTarget(machine, details, getKindLocation(machine))
    return createKindFilesTarget(
      machine,
      openKindNodes(machine, getKindProgram(machine.env)),
      details['file'],
      getKindLocation(machine),
    )
  },
}

function getKindLocation({ env, platform }: Machine): ClientLocation {
  const program = getKindProgram(env)
  const what = 'kind nodes'
  if (program !== 'docker')
    return {
      in: 'isolated',
      what,
      why: `they are containers of ${program}, whose networks the mirror does not detect`,
      hints: [`${program} network inspect kind   (its gateway; add it to cache.listen in mirror.yaml)`],
    }
  return getDockerNetworkLocation({ platform }, what, getKindNetworkName(env))
}

/** Throws MirrorError (usage) for an engine on another machine, because its nodes cannot mount the folders of this one. */
async function refuseRemote({ env, home, platform }: Machine): Promise<void> {
  if (getKindProgram(env) !== 'docker') return
  const endpoint = await findDockerEndpoint({ platform, env, homedir: home })
  if (endpoint?.kind === 'socket') return
  const host = endpoint?.kind === 'tcp' ? endpoint.host : undefined
  if (host !== undefined && /^(?:localhost|127\..*|::1)$/.test(host)) return
  throw new MirrorError('The Docker engine is on another machine, where nodes cannot mount folders of this one.', {
    exit: exitCode.usage,
    hints: ['kind create cluster', 'mirror configure kind --cluster NAME   (afterwards: through docker exec)'],
  })
}

/**
 * Creates kind's network as kind itself would, and waits until the mirror process serves it: without a network there is no
 * gateway, whose address the nodes use. Does nothing when the network is served, or the mirror runs in a container. Throws
 * MirrorError.
 */
async function ensureKindNetwork(surroundings: CommandEnvironment, clock: Clock): Promise<void> {
  const { stateFile } = mirrorPaths(surroundings)
  const name = getKindNetworkName(surroundings.env)
  const running = await findRunning(stateFile)
  if (running?.runtime !== 'process' || running.endpoints.networks[name] !== undefined) return
  const { networks, isRemote } = await openEngine(surroundings).catch(rethrowWithoutRuntimeHint)
  // Stop for a remote engine, whose networks have no gateway on this machine to listen on.
  if (isRemote) return
  if ((await networks.find(name)) === undefined) await ensureNetworks(networks, [name], surroundings.env)
  await waitUntilServed(surroundings, name, clock)
}

/** Removes the hint to use `--runtime process`, because the mirror already runs as a process. */
function rethrowWithoutRuntimeHint(error: unknown): never {
  if (!(error instanceof MirrorError)) throw error
  const hints = error.hints.filter((hint) => !hint.includes('--runtime process'))
  throw new MirrorError(error.message, {
    exit: error.exit,
    hints: [...hints, 'Start Docker, then run the command again'],
    cause: error,
  })
}
