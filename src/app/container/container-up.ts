import { join } from 'node:path'
import { findRunning, type MirrorState, readState } from '../../admin/state.ts'
import { engineElsewhere } from '../../admin/status.ts'
import { loadConfig } from '../../config/load.ts'
import { mirrorPaths } from '../../config/paths.ts'
import { inPlaceOf, wayBack } from '../../daemon/stop.ts'
import { type Dropped, droppedNetworks, findReachable, movedAddresses, type UpReport } from '../../daemon/up.ts'
import { openEngine } from '../../docker/dockerode-engine.ts'
import { hostOf } from '../../docker/endpoint.ts'
import type { ContainerEngine } from '../../docker/engine.ts'
import { wantedCredentials } from '../../daemon/container/handover.ts'
import { refuseOtherEngine } from './other-engine.ts'
import {
  type ContainerPreparation,
  type ContainerRequest,
  prepareContainer,
  upContainer,
} from '../../daemon/container/up.ts'
import { whereItRan } from './where-it-ran.ts'

/** What `up --runtime container` has to do. */
export interface ContainerUpPlan {
  readonly action: 'start' | 'replace' | 'connect' | 'nothing'
  /** Why it is to be replaced. */
  readonly changed: string[]
  /** Networks it joins and leaves without a restart. */
  readonly connect: readonly string[]
  readonly disconnect: readonly string[]
  readonly request: ContainerRequest
  readonly preparation: ContainerPreparation
  readonly engine: ContainerEngine
  /** What the mirror that runs now has, and will not have. */
  readonly dropped: Dropped
  /** The mirror that runs now, in whichever way. */
  readonly running: MirrorState | undefined
}

export interface ContainerUpInput extends Omit<ContainerRequest, 'paths' | 'config' | 'credentials'> {
  /** Registries that were named; undefined: those that the container has. */
  readonly credentials: readonly string[] | undefined
  /** Nobody has asked for a container: the mirror ran in one the last time. */
  readonly remembered: boolean
}

/** Compares what is configured with what runs. Throws a MirrorError before anything that runs is touched. */
export async function planContainerUp(input: ContainerUpInput): Promise<ContainerUpPlan> {
  const { surroundings } = input
  const paths = mirrorPaths(surroundings)
  const config = await loadConfig({ ...surroundings, paths })
  const engine = await openEngine(surroundings).catch((error: unknown) => {
    throw input.remembered ? whereItRan(error) : error
  })
  const running = await (input.remembered ? findRunning : findReachable)(paths.stateFile)
  await refuseOtherEngine(engine, paths, { ...input, running })
  const noted = running ?? (await readState(paths.stateFile))
  const before = noted?.container?.credentials ?? []
  const credentials = wantedCredentials(input.credentials, before, config)
  const request = { ...input, credentials, paths, config }
  const preparation = await prepareContainer(engine, request)
  const { plan } = preparation
  const dropped = {
    networks: droppedNetworks(running, preparation.wish.networks),
    credentials: before.filter((host) => !credentials.includes(host)),
  }
  const common = { request, preparation, engine, running, changed: [], connect: [], disconnect: [], dropped }
  if (running !== undefined && !running.container) return { ...common, action: 'replace', changed: ['runtime'] }
  if (plan.action === 'create') return { ...common, action: 'start' }
  if (plan.action === 'replace') return { ...common, action: 'replace', changed: plan.changed }
  const { connect, disconnect } = plan
  if (plan.action === 'start') return { ...common, action: 'start', connect, disconnect }
  const action = connect.length + disconnect.length > 0 ? 'connect' : 'nothing'
  return { ...common, action, connect, disconnect }
}

const outcomes = {
  start: 'started',
  replace: 'replaced',
  connect: 'connected',
  nothing: 'already-up',
} as const

/**
 * Has the configured mirror running in a container: makes it, replaces one that differs, or leaves it be. Throws a MirrorError
 * when it does not start; then the one before runs again, be it a container or a process.
 */
export async function containerUp(plan: ContainerUpPlan): Promise<UpReport> {
  const { request, running } = plan
  const { version, root, signal } = request
  const process = running !== undefined && !running.container ? running : undefined
  const back = process && (await wayBack(process, { ...request, program: join(root, 'bin', 'run.js') }))
  const { container, endpoints } = await inPlaceOf(back, signal, () =>
    upContainer(plan.engine, request, plan.preparation),
  )
  const { isElsewhere, endpoint } = plan.engine
  const engine = isElsewhere ? hostOf(endpoint) : undefined
  return {
    outcome: outcomes[plan.action],
    changed: plan.action === 'connect' ? [...plan.connect, ...plan.disconnect] : plan.changed,
    container: container.name,
    ...(engine !== undefined && { engine }),
    version,
    endpoints,
    registryNetworks: request.config.registry.networks,
    dropped: plan.dropped,
    moved: movedAddresses(running?.endpoints, endpoints, { before: running && engineElsewhere(running), now: engine }),
  }
}
