import { findRunning } from '../../admin/state.ts'
import { mirrorPaths } from '../../config/paths.ts'
import { openEngine } from '../../docker/dockerode-engine.ts'
import { findDockerEndpoint } from '../../docker/endpoint.ts'
import { ensureNetworks, kindNetworkName } from '../../docker/engine.ts'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import type { Surroundings } from '../../lib/process.ts'
import { type Clock, systemClock } from '../../lib/time.ts'
import { dockerNetworkHome, versionOf } from '../address.ts'
import { untilServed } from '../find-mirror.ts'
import type { ClientAdapter, ClientLocation, Machine } from '../types.ts'
import { refusedClusterFile } from './cluster-file.ts'
import { kindNodes, kindProgram } from './nodes.ts'
import {
  clusterFile,
  findKindCluster,
  kindClusterTarget,
  kindFilesTarget,
  recallKindCluster,
} from './running-cluster.ts'

/** kind: a cluster file, or the nodes of a running cluster. https://kind.sigs.k8s.io */
export const kindAdapter: ClientAdapter = {
  client: 'kind',
  summary: 'kind: a cluster file, or the nodes of a running cluster',

  async find(machine) {
    const version = await versionOf(machine, 'kind', 'version', '--quiet')
    return version && `kind ${version}`
  },

  async prepare(machine, { cluster }) {
    // A cluster that runs has its network.
    const isOurs = machine.platform === 'linux' && kindProgram(machine.env) === 'docker'
    if (machine.detached || cluster !== undefined || !isOurs) return
    await makeKindNetworkIfAbsent({ ...machine, homedir: machine.home }, systemClock)
  },

  async targets(machine, { file, cluster }) {
    const program = kindProgram(machine.env)
    const nodes = kindNodes(machine, program)
    const home = kindHome(machine)
    if (cluster === undefined) {
      if (!machine.detached) await refuseRemote(machine)
      return [kindFilesTarget(machine, nodes, clusterFile(machine, file), home)]
    }
    if (machine.detached || file !== undefined)
      throw new MirrorError(`--cluster is about running nodes, not about files of this machine.`, {
        exit: exitCode.usage,
        hints: [`mirror configure kind --cluster ${cluster}`],
      })
    return [kindClusterTarget(nodes, await findKindCluster(nodes, cluster), home)]
  },

  refusal: ({ reason, isCluster }) => (isCluster ? undefined : refusedClusterFile(reason)),

  recall(machine, details) {
    if (details['cluster'] !== undefined) return recallKindCluster(machine, details, kindHome(machine))
    return kindFilesTarget(machine, kindNodes(machine, kindProgram(machine.env)), details['file'], kindHome(machine))
  },
}

function kindHome({ env, platform }: Machine): ClientLocation {
  const program = kindProgram(env)
  const what = 'kind nodes'
  if (program !== 'docker')
    return {
      in: 'apart',
      what,
      why: `they are containers of ${program}, whose networks the mirror does not look for`,
      hints: [`${program} network inspect kind   (its gateway; add it to cache.listen in mirror.yaml)`],
    }
  return dockerNetworkHome({ platform }, what, kindNetworkName(env))
}

/** The nodes mount folders of the machine that the engine runs on, and ours are on this one. */
async function refuseRemote({ env, home, platform }: Machine): Promise<void> {
  if (kindProgram(env) !== 'docker') return
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
 * Makes kind's network where there is none yet, as kind itself would, and waits until the mirror, a plain process, serves it:
 * before the first cluster its gateway, the address that nodes shall use, does not exist. Throws MirrorError.
 */
async function makeKindNetworkIfAbsent(surroundings: Surroundings, clock: Clock): Promise<void> {
  const { stateFile } = mirrorPaths(surroundings)
  const name = kindNetworkName(surroundings.env)
  const running = await findRunning(stateFile)
  if (running?.runtime !== 'process' || running.endpoints.networks[name] !== undefined) return
  const { networks, isRemote: isElsewhere } = await openEngine(surroundings).catch(withoutOtherRuntime)
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
